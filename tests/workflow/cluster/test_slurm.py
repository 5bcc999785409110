"""A real Slurm on loopback: docs/cluster.md followed to the letter, outputs compared with a local run, jobs cancelled.

Printed at the end: how long the same benchmark took here and there.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.workflow import EXPERIMENTS, command, environment, snakemake, write_benchmark
from tests.workflow.cluster.slurm import Slurm, install

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
# This module's calls of snakemake.
STARTED: list[subprocess.Popen] = []
# So that a local run and one on a node with more cores add numbers in the same order.
THREADS = ("--set-threads", "train=1", "score=1")


@pytest.fixture(scope="module")
def cluster():
    problem = install()
    if problem:
        pytest.skip(problem)
    folder = Path(tempfile.mkdtemp(prefix="sanflow-slurm-", dir="/tmp"))
    slurm = Slurm(folder / "c")
    slurm.start()
    yield slurm
    slurm.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def profile(root, tmp_path_factory):
    """profiles/slurm with the lines changed that docs/cluster.md names, and no others."""
    folder = tmp_path_factory.mktemp("profiles") / "slurm"
    shutil.copytree(root / "profiles/slurm", folder)
    text = (folder / "config.yaml").read_text()
    page = (root / "docs/cluster.md").read_text()
    account = next(line for line in text.splitlines() if "slurm_account:" in line)
    assert "slurm_partition: main " in text, "the test cluster's partition is called as in the profile"
    # "A cluster without accounts", and "Short jobs".
    text = text.replace(account + "\n", "")
    for line in (
        "slurm-status-command: squeue",
        "slurm-init-seconds-before-status-checks: 3",
        "seconds-between-status-checks: 3",
    ):
        assert line in page, f"docs/cluster.md does not name {line}"
        text += f"\n{line}\n"
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def local(root, tmp_path_factory):
    """The benchmark run on this machine, and its seconds."""
    folder = tmp_path_factory.mktemp("local")
    write_benchmark(folder, experiments=("tiny", "maps"))
    started = time.monotonic()
    snakemake(root, folder, *THREADS, timeout=1200)
    return folder, time.monotonic() - started


@pytest.fixture(autouse=True)
def no_snakemake_left():
    """A failed test leaves no snakemake behind."""
    yield
    while STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(STARTED.pop().pid, signal.SIGKILL)


def wait_until(condition, timeout=300):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s"
        time.sleep(0.1)


def on_cluster(root, cluster, folder, profile):
    line = command(root, folder, "--workflow-profile", profile, *THREADS, save_state_every_seconds=1)
    # --cores is a limit of the local machine; the cluster's is `jobs` of the profile.
    position = line.index("--cores")
    del line[position : position + 2]
    with open(folder / "snakemake.out", "a") as output:
        running = subprocess.Popen(
            line,
            env=environment(root) | cluster.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A test run in the background ignores SIGINT, and what it starts would do so too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
    STARTED.append(running)
    return running


def finish(running, folder, code=0):
    assert running.wait(timeout=900) == code, (folder / "snakemake.out").read_text()[-6000:]


def wait_for_job(cluster, running, words, state="R"):
    for _ in range(1200):
        for identity, comment in cluster.jobs(state).items():
            if words in comment:
                return identity
        assert running.poll() is None, f"snakemake ended before a job of {words!r} was seen"
        time.sleep(0.2)
    raise AssertionError(f"no job of {words!r} in state {state}")


def metrics(folder):
    return {
        str(file.relative_to(folder)): {
            name: value for name, value in json.loads(file.read_text()).items() if isinstance(value, float)
        }
        for file in sorted(folder.glob("results/**/metrics.json"))
    }


def finished_files(folder):
    return {
        str(path): path.stat().st_mtime_ns
        for name in ("index.csv", "checkpoint.pt", "scores.npz", "metrics.json")
        for path in folder.glob(f"results/**/{name}")
    }


def test_the_cluster_gives_what_the_local_run_gave(root, cluster, profile, local, tmp_path, capsys):
    folder, seconds = local
    write_benchmark(tmp_path, experiments=("tiny", "maps"))
    started = time.monotonic()
    finish(on_cluster(root, cluster, tmp_path, profile), tmp_path)
    there = time.monotonic() - started
    assert len(metrics(tmp_path)) == 2
    assert metrics(tmp_path) == metrics(folder)
    names = {str(file.relative_to(folder)) for file in folder.glob("results/small/[tf]*/**/*") if file.is_file()}
    assert names == {
        str(file.relative_to(tmp_path)) for file in tmp_path.glob("results/small/[tf]*/**/*") if file.is_file()
    }
    with capsys.disabled():
        print(f"\nThe same benchmark: {seconds:.0f} s here, {there:.0f} s through Slurm.")


def test_a_gpu_rule_asks_for_a_gpu_and_two_run_at_once(root, cluster, profile, tmp_path):
    long = EXPERIMENTS["tiny"] | {"epochs": 60}
    path = write_benchmark(tmp_path, experiments=("tiny",), categories=("nut", "cap", "pin"))
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"experiments": {"tiny": long}}))
    running = on_cluster(root, cluster, tmp_path, profile)
    wait_for_job(cluster, running, "train", "R")
    time.sleep(8)
    trains = [job for job, comment in cluster.jobs("R").items() if "train" in comment]
    assert len(trains) == 2, "two GPUs, three trainings"
    shown = cluster.call("scontrol", "show", "job", trains[0])
    assert re.search(r"TresPerJob=\S*gpu:1|Gres=gpu:1|gres/gpu=1", shown), shown
    # Pre-empted: Slurm puts the job back into its queue, and it goes on from its saved state.
    category = re.search(r"(?<![a-z])(nut|cap|pin)(?![a-z])", cluster.jobs("R")[trains[0]])[1]
    wait_until(lambda: list(tmp_path.glob(f"results/small/state/parts/{category}/**/*.step*.pt")))
    cluster.call("scontrol", "requeue", trains[0])
    finish(running, tmp_path)
    assert len(metrics(tmp_path)) == 3
    run = tmp_path / f"results/small/parts/{category}/tiny/seed0"
    assert json.loads((run / "train.json").read_text())["attempts"] == 2
    log = (tmp_path / f"results/small/logs/train/parts/{category}/tiny/seed0.log").read_text()
    assert "Resuming from the state saved after step" in log


def test_a_cancelled_job_is_tried_again(root, cluster, profile, local, tmp_path):
    write_benchmark(tmp_path, experiments=("tiny", "maps"))
    running = on_cluster(root, cluster, tmp_path, profile)
    job = wait_for_job(cluster, running, "train")
    before = finished_files(tmp_path)
    cluster.call("scancel", job)
    finish(running, tmp_path)
    after = finished_files(tmp_path)
    assert {name: after[name] for name in before} == before, "something finished was done again"
    assert metrics(tmp_path) == metrics(local[0])


def test_after_a_drained_node_a_rerun_finishes_and_repeats_nothing(root, cluster, profile, local, tmp_path):
    write_benchmark(tmp_path, experiments=("tiny", "maps"))
    running = on_cluster(root, cluster, tmp_path, profile)
    job = wait_for_job(cluster, running, "train")
    cluster.call("scontrol", "update", f"nodename={cluster.name}", "state=drain", "reason=drill")
    try:
        cluster.call("scancel", job)
        wait_for_job(cluster, running, "train", "PD")
        running.send_signal(signal.SIGINT)
        finish(running, tmp_path, code=1)
        before = finished_files(tmp_path)
        assert any(name.endswith("index.csv") for name in before)
    finally:
        cluster.call("scontrol", "update", f"nodename={cluster.name}", "state=resume")
    finish(on_cluster(root, cluster, tmp_path, profile), tmp_path)
    after = finished_files(tmp_path)
    assert {name: after[name] for name in before} == before, "something finished was done again"
    assert metrics(tmp_path) == metrics(local[0])
