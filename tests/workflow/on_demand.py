"""A training whose results go to an object store is killed and resumes; on demand, as it takes minutes:

pytest tests/workflow/on_demand.py
"""

import json
import subprocess

import pytest
import torch
import yaml

from tests.helpers.object_store import object_store
from tests.helpers.workflow import EXPERIMENTS, command, environment, snakemake, write_benchmark
from tests.workflow.drills.test_kills import RUN, kill_tree, wait_until

pytestmark = pytest.mark.timeout(1500)
LONG = EXPERIMENTS["tiny"] | {"epochs": 24}


def test_a_killed_run_resumes_and_its_result_in_the_store_is_the_same(root, tmp_path, monkeypatch):
    trained, records = {}, {}
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        path = write_benchmark(folder, experiments=("tiny",))
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"experiments": {"tiny": LONG}}))
        with object_store() as store:
            arguments = (*store.options, "--set-threads", "train=1")
            for variable, value in store.environment.items():
                monkeypatch.setenv(variable, value)
            if name == "killed":
                words = command(root, folder, *arguments, save_state_every_seconds=1)
                running = subprocess.Popen(words, env=environment(root), start_new_session=True)
                state = folder / "results/small/state/parts/nut/tiny/seed0"
                wait_until(lambda state=state: any(state.glob("*.step*.pt")))
                kill_tree(running)
                assert not any(file.endswith("checkpoint.pt") for file in store.files())
                assert any(file.endswith("index.csv") for file in store.files())
                snakemake(root, folder, *store.options, "--unlock")
            snakemake(root, folder, *arguments)
            store.copy_to(folder / "copied")
        trained[name] = torch.load(folder / "copied" / RUN / "checkpoint.pt", weights_only=True)["state"]
        records[name] = json.loads((folder / "copied" / RUN / "train.json").read_text("utf-8"))
    assert [records[name]["attempts"] for name in ("undisturbed", "killed")] == [1, 2]
    for name, value in trained["undisturbed"].items():
        assert torch.equal(trained["killed"][name], value), name
