"""Drills: snakemake or a job killed with SIGKILL at every stage, and two snakemakes started at once."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from tests.helpers.workflow import EXPERIMENTS, command, environment, snakemake, write_benchmark

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1500)]

# Rule -> what the command line of its process holds.
STAGES = {
    "index": "sanflow index",
    "train": "sanflow train",
    "score": "sanflow score ",
    "score_external": "sanflow score-external",
    "evaluate": "sanflow evaluate",
    "tables": "sanflow tables",
    "dots": "--only dots",
    "figures": "sanflow figures results/small --category",
}
RUN = "results/small/parts/nut/tiny/seed0"


@pytest.fixture(scope="module")
def reference(root, tmp_path_factory):
    """metrics.json of the same benchmark, run without disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_benchmark(folder, experiments=("tiny", "maps"))
    snakemake(root, folder)
    return headline(folder)


def headline(folder: Path, experiment: str = "tiny") -> dict[str, float]:
    metrics = json.loads((folder / RUN.replace("tiny", experiment) / "metrics.json").read_text())
    return {name: metrics[name] for name in ("image_auroc", "pixel_auroc", "aupro", "image_ap")}


def start(root: Path, folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(root, folder, *arguments),
        env=environment(root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def processes_of(running: subprocess.Popen, words: str) -> list[psutil.Process]:
    """Descendants whose command line holds these words."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(running.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if words in " ".join(process.cmdline()) and process.name() not in {"bash", "sh"}:
                    found.append(process)
    return found


def wait_for(running: subprocess.Popen, words: str, timeout: float = 400) -> list[psutil.Process]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := processes_of(running, words):
            return found
        assert running.poll() is None, f"snakemake ended before a process of {words!r} was seen"
        time.sleep(0.02)
    raise AssertionError(f"no process of {words!r} within {timeout} s")


def wait_until(condition: Callable[[], bool], timeout: float = 400) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s"
        time.sleep(0.05)


def finished_files(folder: Path) -> dict[str, int]:
    """Complete outputs and when they were written."""
    names = ("index.csv", "checkpoint.pt", "scores.npz", "metrics.json")
    return {str(path): path.stat().st_mtime_ns for name in names for path in folder.glob(f"results/**/{name}")}


def kill_tree(running: subprocess.Popen) -> None:
    """SIGKILL to snakemake and to everything it started, as a power cut would do."""
    tree = psutil.Process(running.pid).children(recursive=True)
    os.kill(running.pid, signal.SIGKILL)
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    running.wait()
    psutil.wait_procs(tree, timeout=30)


def test_snakemake_and_its_jobs_killed_at_every_stage(root, tmp_path, reference):
    write_benchmark(tmp_path, experiments=("tiny", "maps"))
    for stage, words in STAGES.items():
        # Without the limit, a fast machine may finish jobs beside this stage that a later stage waits for.
        running = start(root, tmp_path, "--until", stage)
        wait_for(running, words)
        # Some of the job's work is done, and some is not.
        time.sleep(0.5)
        before = finished_files(tmp_path)
        kill_tree(running)
        locked = snakemake(root, tmp_path, check=False)
        if locked.returncode != 0:
            assert "--unlock" in locked.output, f"{stage}: {locked.output[-2000:]}"
            snakemake(root, tmp_path, "--unlock")
        else:
            pytest.fail(f"{stage}: a SIGKILL left no lock, so this drill killed nothing")
        after = finished_files(tmp_path)
        assert {name: after.get(name) for name in before} == before, f"{stage}: something finished was lost"
    snakemake(root, tmp_path)
    assert headline(tmp_path) == reference
    assert "Nothing to be done" in snakemake(root, tmp_path).output


@pytest.mark.parametrize(
    ("experiment", "stages"),
    [("tiny", ("index", "train", "score", "evaluate", "figures")), ("maps", ("score_external", "tables"))],
)
def test_a_job_killed_at_every_stage_fails_alone_and_is_done_again(root, tmp_path, reference, experiment, stages):
    write_benchmark(tmp_path, experiments=(experiment,))
    for stage in stages:
        # Jobs that run side by side with a killed one go on and are done; so only those up to its rule are run.
        running = start(root, tmp_path, "--until", stage)
        victims = wait_for(running, STAGES[stage])
        time.sleep(0.5)
        before = finished_files(tmp_path)
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert running.wait(timeout=300) == 1, f"{stage}: a killed job must be seen"
        after = finished_files(tmp_path)
        assert {name: after.get(name) for name in before} == before, f"{stage}: something finished was lost"
    snakemake(root, tmp_path)
    found = headline(tmp_path, experiment)
    assert found == (reference if experiment == "tiny" else dict.fromkeys(found, 1.0))


def test_a_sigterm_through_snakemake_saves_the_state_and_the_rerun_gives_the_same_weights(root, tmp_path):
    """As a scheduler or a shutdown sends it, to snakemake, the shell and the job at once, far from any save by time."""
    long = EXPERIMENTS["tiny"] | {"epochs": 24}
    # Two threads would wait for each other where other tests share the cores.
    one_thread = ("--set-threads", "train=1")
    trained = {}
    for name in ("undisturbed", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        path = write_benchmark(folder, experiments=("tiny",))
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"experiments": {"tiny": long}}))
        state = folder / "results/small/state/parts/nut/tiny/seed0"
        target = f"{RUN}/checkpoint.pt"
        if name == "stopped":
            running = start(root, folder, target, *one_thread)
            (job,) = wait_for(running, STAGES["train"])
            log = folder / "results/small/logs/train/parts/nut/tiny/seed0.log"
            wait_until(lambda log=log: log.exists() and "Epoch 2 of" in log.read_text())
            os.killpg(running.pid, signal.SIGTERM)
            assert running.wait(timeout=120) == 1
            assert not job.is_running(), "snakemake ended before its job had saved"
            assert len(list(state.glob("*.step*.pt"))) == 1
        snakemake(root, folder, target, *one_thread)
        trained[name] = torch.load(folder / target, weights_only=True)["state"]
    record = json.loads((tmp_path / "stopped" / RUN / "train.json").read_text())
    assert record["attempts"] == 2
    for name, value in trained["undisturbed"].items():
        assert torch.equal(trained["stopped"][name], value), name


def test_a_second_snakemake_is_refused_and_the_first_finishes(root, tmp_path, reference):
    write_benchmark(tmp_path, experiments=("tiny", "maps"))
    running = start(root, tmp_path)
    wait_for(running, STAGES["train"])
    second = snakemake(root, tmp_path, check=False)
    assert second.returncode == 1
    assert "cannot be locked" in second.output
    assert running.wait(timeout=600) == 0
    assert headline(tmp_path) == reference
