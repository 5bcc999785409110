"""Results in an object store instead of a folder: a real S3 server on loopback."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from snakemake_executor_plugin_kubernetes import ExecutorSettings, parse_persistent_volumes
from typer.testing import CliRunner

from sanflow.cli import app
from tests.helpers.object_store import object_store
from tests.helpers.tracking import jobs_of
from tests.helpers.workflow import planned, snakemake, write_benchmark

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
RUN = "results/small/parts/nut/kept/seed0"
# Files in which times, folders or the machine's load are written down.
VARYING = ("index.json", "metrics.json", "train.json", "scores.npz", "/cost.", "explorer/", "logs/", "benchmarks/")


@pytest.fixture(scope="module")
def ran(root, tmp_path_factory):
    """The same benchmark in a folder and in a store: folder of the one, folder of the other, store, what it printed."""
    local, away = tmp_path_factory.mktemp("local"), tmp_path_factory.mktemp("away")
    for folder in (local, away):
        write_benchmark(folder, experiments=("kept",))
    snakemake(root, local, "results/small/tables/overview.csv")
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        answer = snakemake(root, away, *store.options)
        yield local, away, store, answer.output


def test_results_in_a_store_equal_those_in_a_folder(ran, tmp_path):
    local, _, store, _ = ran
    store.copy_to(tmp_path)
    made = {str(file.relative_to(local)) for file in (local / "results").rglob("*") if file.is_file()}
    assert made - store.files() == {"results/small/benchmark.json", "results/small/state/content.json"}
    same = {name for name in made & store.files() if not any(part in name for part in VARYING)}
    assert {f"{RUN}/checkpoint.pt", f"{RUN}/kept/epoch02.pt", f"{RUN}/images.csv", f"{RUN}/curves.npz"} <= same
    assert "results/small/tables/overview.csv" in same
    assert [name for name in sorted(same) if (tmp_path / name).read_bytes() != (local / name).read_bytes()] == []
    for folder in (RUN, f"{RUN}/epoch02"):
        here, there = (json.loads((top / folder / "metrics.json").read_text("utf-8")) for top in (local, tmp_path))
        for varying in ("cost", "provenance"):
            assert set(here.pop(varying)) == set(there.pop(varying))
        assert here == there
        here, there = (np.load(top / folder / "scores.npz") for top in (local, tmp_path))
        for name in set(here.files) - {"header", "digest"}:
            np.testing.assert_array_equal(here[name], there[name])


def test_the_explorer_in_a_store_is_complete(ran, tmp_path):
    _, _, store, _ = ran
    store.copy_to(tmp_path)
    explorer = tmp_path / "results/small/explorer"
    top = json.loads((explorer / "data/benchmark.js").read_text("utf-8").split(", ", 1)[1].removesuffix(");\n"))
    assert top["name"] == "small"
    assert top["missing"] == []
    assert len(list((explorer / "images").rglob("*-small.webp"))) == 6
    assert (explorer / "index.html").is_file()


def test_what_is_no_result_stays_in_the_folder(ran):
    """States of trainings, the cache of images and tracking are not in the store: a pod needs a volume for them."""
    _, away, store, output = ran
    assert {str(file.relative_to(away)) for file in (away / "results").rglob("*") if file.is_file()} == {
        "results/small/benchmark.json",
        "results/small/state/content.json",
    }
    assert any((away / "data/.cache").rglob("*.npy"))
    assert {name.split("/")[0] for name in store.files()} == {"results"}
    assert f"The results are in {store.place}/results/small. Copy them to results/small" in output


def test_a_second_call_finds_everything_in_the_store(root, ran):
    _, away, store, _ = ran
    assert "Nothing to be done" in snakemake(root, away, *store.options).output


def test_copied_results_can_be_sent_to_mlflow(ran, tmp_path, monkeypatch):
    _, away, store, _ = ran
    store.copy_to(away)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(away)
    answer = CliRunner().invoke(app, ["track", "publish", "small.yaml", "--uri", uri])
    assert answer.exit_code == 0, answer.output
    (run,) = [run for run in jobs_of(uri, "small") if run.data.tags["sanflow.unit"] == "small/parts/nut/kept/seed0"]
    metrics = json.loads((away / RUN / "metrics.json").read_text("utf-8"))
    assert run.data.metrics["test/aupro"] == metrics["aupro"]


def test_the_kubernetes_profile_is_an_executor_and_these_settings(root, tmp_path, monkeypatch):
    """Its plugins accept every key; where no pod runs, its volumes and its bucket are read as they are meant."""
    write_benchmark(tmp_path, experiments=("kept",))
    profile = root / "profiles/kubernetes"
    settings = yaml.safe_load((profile / "config.yaml").read_text("utf-8"))
    volumes = parse_persistent_volumes(settings["kubernetes-persistent-volumes"])
    assert [str(volume.path) for volume in volumes] == ["/workdir/data", "/workdir/results"]
    known = {f"kubernetes-{field.name.replace('_', '-')}" for field in dataclasses.fields(ExecutorSettings)}
    assert {key for key in settings if key.startswith("kubernetes-")} <= known
    with object_store() as store:
        assert {f"--{key}" for key in settings if key.startswith("default-storage")} == set(store.options[::2])
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        jobs = planned(root, tmp_path, "--workflow-profile", profile)
    assert jobs == {
        **{"index": 1, "train_keeping": 1, "score": 1, "score_epoch": 1, "evaluate": 1, "evaluate_epoch": 1},
        **{"tables": 1, "figures": 1, "dots": 1, "explorer": 1},
    }
