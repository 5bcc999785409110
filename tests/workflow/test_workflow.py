"""The workflow: what it plans, that it runs whole, and what an edit makes it run again."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.helpers.workflow import (
    EXPERIMENTS,
    ODD,
    command,
    copy_project,
    draw_category,
    environment,
    planned,
    snakemake,
    write_benchmark,
)

# The module's first run takes a minute on two free cores, and several where others work too.
pytestmark = pytest.mark.timeout(1200)
BIN = Path(sys.executable).parent
PICTURES = {"tables", "figures", "dots", "explorer"}
RULE_FILES = ("common", "data", "model", "evaluate", "report")


# What is written down --------------------------------------------------------------------------------------------


def test_lint_finds_nothing(root):
    answer = subprocess.run(
        [BIN / "snakemake", "--snakefile", root / "Snakefile", "--lint"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_files_are_formatted(root):
    subprocess.run([BIN / "snakefmt", "--check", "Snakefile", "workflow"], cwd=root, check=True, capture_output=True)


@pytest.mark.parametrize("name", RULE_FILES)
def test_rule_files_stay_readable(root, name):
    text = (root / f"workflow/rules/{name}.smk").read_text()
    rules = re.findall(r"^(?:use )?rule ", text, re.MULTILINE)
    assert text.startswith("# ")
    if name == "common":
        assert not rules
        assert text.count("\n") < 100
    else:
        assert "REQUIRED INPUTS" in text
        assert "OUTPUTS" in text
        assert not re.search(r"^\s*def ", text, re.MULTILINE)


def test_every_rule_says_what_it_does_logs_and_measures_itself(root):
    text = "".join((root / f"workflow/rules/{name}.smk").read_text() for name in RULE_FILES)
    for rule in re.split(r"^(?=rule )", text, flags=re.MULTILINE)[1:]:
        name = rule.split(":")[0]
        for part in ('"""', "\n    log:", "\n    benchmark:", "\n    resources:", "mem_mb=", "runtime=", "attempt"):
            assert part in rule, f"{name} has no {part.strip()}"


def test_everything_a_shell_sees_of_a_name_is_quoted(root):
    """A category may hold any character but / \\ { }: each placeholder of a path or a name ends with :q."""
    text = "".join((root / f"workflow/rules/{name}.smk").read_text() for name in RULE_FILES)
    for block in re.findall(r"^    shell:\n((?:        .*\n)+)", text, re.MULTILINE):
        placeholders = set(re.findall(r"(?<!\{)\{((?:input|output|params|log|wildcards)[^}]*)\}", block))
        assert {name for name in placeholders if not name.endswith(":q")} <= {"wildcards.seed"}, block


@pytest.mark.parametrize("name", ["default", "slurm", "kubernetes"])
def test_profiles_agree_on_what_reruns_a_job(root, name):
    profile = yaml.safe_load((root / f"profiles/{name}/config.yaml").read_text())
    assert profile["rerun-triggers"] == ["code", "input", "mtime", "params"]
    assert profile["rerun-incomplete"] is True
    assert profile["keep-going"] is True
    assert ("cores" in profile) == (name == "default"), "only the default profile may speak of this machine"


# What it plans ---------------------------------------------------------------------------------------------------

PLANS = {
    "demo": {"download": 1, "index": 3, "train": 12, "score": 12, "evaluate": 12},
    "paper": {"download": 1, "index": 15, "train": 90, "score": 90, "evaluate": 90},
    "official": {"download": 1, "index": 15, "train": 30, "score": 30, "evaluate": 30},
    "tiles": {"download": 1, "index": 1, "train": 21, "score": 21, "evaluate": 21},
    "ablation": {"download": 1, "index": 15, "train": 105, "score": 105, "evaluate": 105},
    "real": {
        **{"download": 3, "index": 4, "train": 18, "train_keeping": 13},
        **{"score": 31, "evaluate": 31, "score_epoch": 52, "evaluate_epoch": 52},
    },
    "epochs": {
        **{"download": 3, "index": 5, "train_keeping": 20},
        **{"score": 20, "evaluate": 20, "score_epoch": 152, "evaluate_epoch": 152},
    },
    "peers": {"download": 1, "index": 15, "train": 60, "score": 60, "make_maps": 75, "evaluate": 135},
}


def test_every_shipped_benchmark_has_its_plan_tested(root):
    assert {path.stem for path in (root / "config/benchmarks").glob("*.yaml")} == set(PLANS)


@pytest.mark.parametrize("name", PLANS)
def test_benchmarks_are_planned_without_data(root, tmp_path, name):
    plan = planned(root, tmp_path, benchmark=name)
    assert plan == PLANS[name] | {"figures": PLANS[name]["index"], "dots": 1, "tables": 1, "explorer": 1}
    assert not (tmp_path / "results").exists(), "a dry run writes nothing"


@pytest.mark.slow
def test_a_part_of_the_real_benchmark_is_chosen_by_its_files(root, tmp_path):
    """As the head of the file says: a tier, other seeds, experiments that are in no tier; also other categories."""
    text = (root / "config/benchmarks/real.yaml").read_text()
    heads = re.findall(r"^#   snakemake (results\S+) --config benchmark=real$", text, re.MULTILINE)
    named = "results/real/mvtec_ad/{bottle,cable}/{predicted,sanflow-joint-20-fp32}/seed0/metrics.json"
    one = {"download": 1, "index": 1, "score": 5, "evaluate": 5}
    for pattern, jobs in (
        (heads[0], one | {"train": 2, "train_keeping": 3}),
        (heads[1], one | {"train_keeping": 4, "score": 4, "evaluate": 4}),
        (named, one | {"index": 2, "train_keeping": 4, "score": 4, "evaluate": 4}),
    ):
        echoed = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=True)
        # The option ends the words of `--quiet`.
        assert planned(root, tmp_path, "--nolock", *echoed.stdout.split(), benchmark="real") == jobs, pattern
    assert len(heads) == 2


def test_the_fit_of_official_claims_no_gpu_and_its_scoring_does(root, tmp_path):
    output = snakemake(root, tmp_path, "--dry-run", "--printshellcmds", benchmark="official", device="auto").output
    assert len(re.findall(r"exec sanflow train --device cpu --experiment official-", output)) == 30
    assert len(re.findall(r"exec sanflow gpu-exec -- sanflow score --checkpoint ", output)) == 30
    assert "sanflow gpu-exec -- sanflow train" not in output


def test_a_dry_run_of_the_paper_is_readable(root, tmp_path):
    """Its rule `all` has 300 files; lines of 30,000 characters hid the rest."""
    output = snakemake(root, tmp_path, "--dry-run", benchmark="paper").output
    assert max(len(line) for line in output.splitlines()) < 400
    assert "Job 0: The benchmark: metrics of all jobs, tables, figures, explorer" in output
    assert re.search(r"Reasons:\n(?:.*\n)*.*output files have to be generated:\n +dots, download, evaluate", output)


@pytest.mark.parametrize(("resources", "threads"), [([], 4), (["--resources", "gpu=2"], 2)])
def test_a_training_on_a_cpu_shares_the_cores_that_snakemake_has(root, tmp_path, resources, threads):
    write_benchmark(tmp_path, experiments=("tiny",))
    known = environment(root)
    del known["OMP_NUM_THREADS"]
    line = command(root, tmp_path, "--dry-run", "--cores", "4", *resources)
    answer = subprocess.run(line, env=known, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    train = (answer.stdout + answer.stderr).partition("rule train:")[2].partition("rule ")[0]
    assert f"threads: {threads}" in train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "dmeo"}, "Did you mean 'demo'?"),
        ({"benchmrak": "demo"}, "unknown key 'benchmrak'"),
        ({"benchmark": "missing.yaml"}, "Expected a benchmark file at missing.yaml"),
        ({"benchmark": "wrong.yaml"}, "Did you mean 'epochs'?"),
        ({"benchmark": "folder.yaml"}, "there is no such folder"),
    ],
)
def test_a_wrong_configuration_stops_before_any_job(root, tmp_path, change, message):
    experiment = {"method": "sanflow", "encoder": "timm/resnet18.tv_in1k"}
    for name, datasets, extra in [
        ("wrong", {"photo_textures": {}}, {"epohcs": 3}),
        ("folder", {"mine": {"kind": "folder", "root": "nowhere"}}, {}),
    ]:
        content = {"datasets": datasets, "experiments": {"a": experiment | extra}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    answer = snakemake(root, tmp_path, "--dry-run", check=False, **change)
    assert answer.returncode == 1
    assert message in answer.output
    assert "Traceback" not in answer.output


def test_what_a_job_would_stumble_over_stops_the_benchmark_before_its_first(root, tmp_path):
    path = write_benchmark(tmp_path, experiments=("tiny", "maps"))
    shutil.rmtree(tmp_path / "maps")
    answer = snakemake(root, tmp_path, check=False)
    assert answer.returncode == 1
    assert "maps: `maps` points to nothing for nut (maps/parts/nut)" in answer.output
    assert not list((tmp_path / "results").rglob("index.csv"))
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"experiments": {"tiny": EXPERIMENTS["tiny"]}}))
    # Nothing is left locked.
    assert snakemake(root, tmp_path, "results/small/parts/nut/index.csv").returncode == 0


# That it runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small benchmark, run whole; its folder has a space and letters that are not ASCII."""
    folder = tmp_path_factory.mktemp("workflow") / "ein Ordner für alles"
    project = copy_project(folder / "project")
    work = folder / "work"
    work.mkdir()
    write_benchmark(work, odd=True)
    started = time.monotonic()
    answer = snakemake(project, work, "--notemp")
    return project, work, time.monotonic() - started, answer.output


def read(path):
    return json.loads(Path(path).read_text("utf-8"))


def test_a_perfect_tool_gets_perfect_numbers(finished):
    _, work, _, _ = finished
    for dataset, category in (("parts", "nut"), ("odd", ODD)):
        metrics = read(work / "results/small" / dataset / category / "maps/seed0/metrics.json")
        assert [metrics[name] for name in ("image_auroc", "pixel_auroc", "aupro")] == pytest.approx([1, 1, 1])


def test_every_job_leaves_what_the_contract_promises(finished):
    _, work, _, _ = finished
    run = work / "results/small/parts/nut"
    images = pd.read_csv(run / "tiny/seed0/images.csv")
    assert len(images) == 6
    for experiment in ("tiny", "kept", "kept/seed0/epoch02"):
        folder = run / experiment if "epoch" in experiment else run / experiment / "seed0"
        assert {"scores.npz", "extras.npz", "metrics.json", "images.csv", "curves.npz"} <= set(os.listdir(folder))
        metrics = read(folder / "metrics.json")
        for name in ("image_auroc", "pixel_auroc", "aupro"):
            assert 0 <= metrics[name] <= 1
    assert {"checkpoint.pt", "train.json"} <= set(os.listdir(run / "tiny/seed0"))
    assert [path.name for path in (run / "kept/seed0/kept").glob("*.pt")] == ["epoch02.pt"]
    assert [epoch["epoch"] for epoch in read(run / "tiny/seed0/train.json")["history"]] == [1, 2]


def test_the_last_kept_epoch_is_the_reported_one(finished):
    _, work, _, _ = finished
    run = work / "results/small/parts/nut/kept/seed0"
    last, kept = (np.load(folder / "scores.npz", allow_pickle=False) for folder in (run, run / "epoch02"))
    grids = [name for name in last.files if last[name].dtype == np.float32 and last[name].ndim == 3]
    assert grids
    for name in grids:
        np.testing.assert_array_equal(last[name], kept[name])


def test_tables_show_every_experiment_and_category(finished):
    _, work, _, _ = finished
    tables = work / "results/small/tables"
    text = (tables / "image_auroc.md").read_text("utf-8")
    for word in ("tiny", "kept", "maps", "nut", "100.0"):
        assert word in text
    assert all(file.stat().st_size for file in tables.iterdir())
    assert list((work / "results/small/figures").rglob("*.png"))


def test_the_explorer_shows_every_category_and_the_report_opens_on_it(finished):
    project, work, _, _ = finished
    explorer = work / "results/small/explorer"
    top = json.loads((explorer / "data/benchmark.js").read_text("utf-8").split(", ", 1)[1].removesuffix(");\n"))
    assert {category["name"] for category in top["categories"]} == {"nut", ODD}
    assert top["missing"] == []
    assert len(list((explorer / "images").rglob("*-small.webp"))) == 12
    snakemake(project, work, "--report", "results/small/report.html")
    report = (work / "results/small/report.html").read_text("utf-8")
    assert "explorer/index.html" in report
    assert "Headline metrics" in report


def test_no_name_is_run_as_a_command(finished):
    project, work, _, _ = finished
    assert not list(work.rglob("pwned"))
    assert not list(project.rglob("pwned"))


def test_training_state_is_removed_once_the_checkpoint_was_used(finished):
    _, work, _, _ = finished
    left = [path.name for path in (work / "results/small/state").rglob("*") if path.is_file()]
    assert set(left) <= {"content.json"}, "beside what is known of the owner's files, nothing is left"


def test_every_job_left_a_log_and_a_measurement(finished):
    _, work, _, _ = finished
    for kind, ending in (("logs", "log"), ("benchmarks", "jsonl")):
        files = {
            file.relative_to(work / "results/small" / kind).parts[0]
            for file in (work / "results/small" / kind).rglob(f"*.{ending}")
        }
        assert {"index", "train", "score", "score_external", "evaluate"} <= files


# What runs again -------------------------------------------------------------------------------------------------


@pytest.fixture
def edited(finished):
    """The copied project, restored after the test."""
    project, work, _, _ = finished
    originals = {}

    def edit(name, old="", new="", append=""):
        path = project / name
        originals[path] = path.read_bytes()
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1) + append, "utf-8")

    yield project, work, edit
    for path, content in originals.items():
        path.write_bytes(content)


def test_a_second_call_has_nothing_to_do(finished):
    project, work, _, _ = finished
    assert "Nothing to be done" in snakemake(project, work).output


def test_touching_package_rules_and_images_reruns_nothing(finished):
    project, work, _, _ = finished
    touched = [*project.rglob("*.py"), *project.rglob("*.smk"), *(work / "parts").rglob("*.png")]
    times = {path: path.stat().st_mtime for path in touched}
    try:
        for path in touched:
            os.utime(path, (time.time() + 5,) * 2)
        assert planned(project, work) == {}
    finally:
        for path, before in times.items():
            os.utime(path, (before, before))


def test_an_edited_figure_redraws_figures_alone(edited):
    project, work, edit = edited
    edit("sanflow/report/figures/style.py", append="\nANOTHER = 1\n")
    assert set(planned(project, work)) == {"figures", "dots"}


def test_an_edited_metric_evaluates_again_and_trains_nothing(edited):
    project, work, edit = edited
    edit("sanflow/evaluation/evaluate.py", append="\nANOTHER = 1\n")
    assert set(planned(project, work)) == {"evaluate", "evaluate_epoch"} | PICTURES


def test_edited_training_code_trains_again(edited):
    project, work, edit = edited
    edit("sanflow/methods/flow/losses.py", append="\nANOTHER = 1\n")
    plan = planned(project, work)
    assert (plan["train"], plan["train_keeping"]) == (1, 1)
    assert "index" not in plan
    assert "score_external" not in plan


def test_edited_published_numbers_make_tables_and_dots_alone(edited):
    project, work, edit = edited
    edit("resources/published.csv", append="\n")
    assert set(planned(project, work)) == {"tables", "dots"}


def test_edited_decoding_lists_the_images_again_and_makes_what_follows(edited):
    project, work, edit = edited
    edit("sanflow/data/decode.py", append="\nANOTHER = 1\n")
    plan = planned(project, work)
    assert {"index", "train", "train_keeping", "score", "score_external", "evaluate"} <= set(plan)


def test_an_edited_help_text_reruns_nothing(edited):
    project, work, edit = edited
    edit("sanflow/cli/model.py", old="Checkpoint to write.", new="The checkpoint.")
    assert not planned(project, work)


def test_a_comment_reruns_nothing(edited):
    project, work, edit = edited
    edit("sanflow/methods/flow/losses.py", append="\n# A comment more.\n")
    assert not planned(project, work)


def test_a_changed_setting_reruns_exactly_its_experiment(finished):
    project, work, _, _ = finished
    original = (work / "small.yaml").read_text("utf-8")
    content = yaml.safe_load(original)
    content["experiments"]["tiny"]["learning_rate"] = 1e-3
    content["seeds"] = [0]
    try:
        (work / "small.yaml").write_text(yaml.safe_dump(content), "utf-8")
        plan = planned(project, work)
        assert {rule: plan[rule] for rule in plan if rule not in PICTURES} == {
            "train": 1,
            "score": 1,
            "evaluate": 1,
        }
    finally:
        (work / "small.yaml").write_text(original, "utf-8")


def test_where_it_runs_reruns_nothing(finished):
    """Another device, cache folder or tracking server changes no result."""
    project, work, _, _ = finished
    plan = planned(
        project, work, device="auto", cache={"folder": "elsewhere"}, tracking={"uri": "http://h:1"}, slots_per_gpu=2
    )
    assert plan == {}


def test_another_image_in_the_owners_folder_is_noticed(finished):
    project, work, _, _ = finished
    new = work / "parts/nut/train/good/100.png"
    shutil.copy(work / "parts/nut/train/good/000.png", new)
    try:
        assert planned(project, work)["index"] == 1
    finally:
        new.unlink()


@pytest.mark.slow
def test_a_bad_image_fails_its_own_category_alone(root, tmp_path):
    """The other one has numbers, tables and a report, which name what is missing."""
    path = write_benchmark(tmp_path, experiments=("maps",), categories=("good one", "bad one"))
    benchmark, results = path.name, tmp_path / "results/small"
    (tmp_path / "parts/bad one/test/good/001.png").write_bytes(b"not an image")
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    answer = snakemake(root, tmp_path, check=False, benchmark=benchmark, tracking=tracking)
    assert answer.returncode == 1
    assert "bad one/test/good/001.png" in answer.output
    assert "missing: parts/bad one (all)" in answer.output
    assert (results / "parts/good one/maps/seed0/metrics.json").exists()
    table = (results / "tables/image_auroc.md").read_text("utf-8")
    assert "good one" in table
    assert "Missing, and in no number here: parts/bad one (all)." in table
    assert (results / "figures/dots/aupro.png").exists()
    snakemake(root, tmp_path, "--report", results / "report.html", benchmark=benchmark)
    assert "good one" in (results / "report.html").read_text("utf-8")

    shutil.rmtree(tmp_path / "parts/bad one")
    draw_category(tmp_path / "parts/bad one", None)
    snakemake(root, tmp_path, benchmark=benchmark)
    assert len(list(results.glob("parts/*/maps/seed0/metrics.json"))) == 2
    assert "Missing" not in (results / "tables/image_auroc.md").read_text("utf-8")

    # What a rule after the evaluation stumbles over is in its log and on the console.
    (results / "parts/good one/maps/seed0/metrics.json").write_text('{"image_auroc": 1')
    (results / "tables/overview.csv").unlink()
    answer = snakemake(root, tmp_path, check=False, benchmark=benchmark)
    assert answer.returncode == 1
    for text in (answer.output, (results / "logs/tables.log").read_text("utf-8")):
        assert "parts/good one/maps/seed0/metrics.json, but it is damaged" in text.replace("\n", " ")


@pytest.mark.slow
def test_the_report_is_one_file_with_tables_and_figures(finished):
    project, work, _, _ = finished
    report = work / "results/small/report.html"
    snakemake(project, work, "--report", report)
    text = report.read_text("utf-8")
    assert "image_auroc" in text
    assert not re.search(r"<(?:script|link)[^>]+(?:src|href)=[\"']https?://", text)


def test_the_commands_are_found_beside_snakemake_without_an_activated_environment(root, tmp_path):
    clean = environment(root) | {"PATH": "/usr/bin:/bin"}
    code = "import os; print(os.environ['PATH'])"
    snakefile = tmp_path / "Snakefile"
    snakefile.write_text(
        f'configfile: "{root}/config/config.yaml"\nrule all:\n    output: "found"\n    shell: "which sanflow > found"\n'
        f'include: "{root}/workflow/rules/common.smk"\n'
    )
    (tmp_path / "config").symlink_to(root / "config")
    assert subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    subprocess.run([BIN / "snakemake", "--cores", "1", "--quiet"], cwd=tmp_path, env=clean, check=True)
    assert (tmp_path / "found").read_text().strip() == str(BIN / "sanflow")


def test_the_slurm_profile_replaces_the_default_one(root, tmp_path):
    plan = planned(root, tmp_path, "--workflow-profile", root / "profiles/slurm", benchmark="demo")
    assert plan == PLANS["demo"] | {"figures": 3, "dots": 1, "tables": 1, "explorer": 1}


@pytest.mark.slow
def test_a_run_is_served_as_an_mlflow_model_with_its_signature(root, finished, tmp_path, monkeypatch):
    from PIL import Image

    project, work, _, _ = finished
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    clean = environment(project) | {"SANFLOW_TRACKING_URI": uri}
    line = [BIN / "sanflow", "track", "publish", "small.yaml", "--models"]
    for _ in range(2):
        subprocess.run(line, cwd=work, env=clean, check=True)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("sanflow/small").experiment_id
    models = {
        client.get_run(model.source_run_id).info.run_name: model for model in client.search_logged_models([experiment])
    }
    assert sorted(models) == ["parts/nut/kept/seed0", "parts/nut/tiny/seed0"], "one model a run, though sent twice"
    mlflow.set_tracking_uri(uri)
    model_uri = f"models:/{models['parts/nut/tiny/seed0'].model_id}"
    model = mlflow.pyfunc.load_model(model_uri)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 64, 64, 3)
    images = pd.read_csv(work / "results/small/parts/nut/tiny/seed0/images.csv")
    pixels = np.stack([np.asarray(Image.open(work / "parts" / path).convert("RGB")) for path in images.image])
    answer = model.predict(pixels)
    assert answer["map"].shape == (len(images), 64, 64)
    np.testing.assert_allclose(answer["score"], images.score, rtol=1e-4, atol=1e-5)
    with pytest.raises(Exception, match="32"):
        model.predict(pixels[:, :32])
    # Where sanflow is not installed, the model's own copy answers.
    alone = f"""if True:
        import sys, mlflow, numpy
        from pathlib import Path
        sys.path = [one for one in sys.path if not Path(one, "sanflow/__init__.py").exists()]
        mlflow.set_tracking_uri({uri!r})
        mlflow.pyfunc.load_model({model_uri!r}).predict(numpy.zeros((1, 64, 64, 3), numpy.uint8))
        print(sys.modules["sanflow"].__file__)
    """
    line = [sys.executable, "-W", "ignore", "-c", alone]
    answered = subprocess.run(line, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert f"{tmp_path}/mlflow-artifacts/models/" in answered.stdout
    # As docs/tracking.md says it.
    snippet = re.search(r"```python\n(.*?)```", (root / "docs/tracking.md").read_text("utf-8"), re.DOTALL)[1]
    snippet = snippet.replace("sqlite:///results/mlflow.db", uri)
    snippet = snippet.replace("<id of the logged model>", models["parts/nut/tiny/seed0"].model_id)
    names = {}
    exec(snippet.replace("part.png", str(work / "parts" / images.image[0])), names)
    assert float(names["answer"]["score"][0]) == pytest.approx(images.score[0], rel=1e-4)
