"""A GPU of its own for each job: locks, pools, schedulers; eight jobs on two GPUs that do not exist."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sanflow.errors import DeviceError, StorageError
from sanflow.pipeline import gpu_slots
from sanflow.pipeline.gpu_slots import bound_by_scheduler, claim_slot, gpu_pool, lock_folder

EXEC = (
    "import os, sys; from sanflow.pipeline.gpu_slots import run_on_gpu; "
    "run_on_gpu(sys.argv[2:], slots_per_gpu=int(sys.argv[1]))"
)
# Writes when it began and ended and which GPU it saw.
JOB = (
    "import json, os, sys, time; start = time.time(); time.sleep(float(sys.argv[2])); "
    "json.dump([start, time.time(), os.environ.get('CUDA_VISIBLE_DEVICES')], open(sys.argv[1], 'w'))"
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Two GPUs in name, and a lock folder of the test's own."""
    kept = {key: value for key, value in os.environ.items() if key not in gpu_slots.SCHEDULERS}
    return kept | {"CUDA_VISIBLE_DEVICES": "0,1", "SANFLOW_GPU_LOCKS": str(tmp_path / "locks")}


def start(environment: dict[str, str], output: Path, seconds: float, slots_per_gpu: int = 1) -> subprocess.Popen:
    job = [sys.executable, "-c", JOB, str(output), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", EXEC, str(slots_per_gpu), *job], env=environment)


def most_at_once(spans: list[list], device: str | None = None) -> int:
    own = [span for span in spans if device is None or span[2] == device]
    return max(sum(other[0] <= span[0] < other[1] for other in own) for span in own)


def test_eight_jobs_share_two_gpus_without_a_clash(tmp_path, environment):
    outputs = [tmp_path / f"{i}.json" for i in range(8)]
    jobs = [start(environment, output, 0.3) for output in outputs]
    assert [job.wait(timeout=120) for job in jobs] == [0] * 8
    spans = [json.loads(output.read_text()) for output in outputs]
    assert {span[2] for span in spans} == {"0", "1"}
    assert max(most_at_once(spans, device) for device in ("0", "1")) == 1


def test_a_killed_job_frees_its_gpu_and_no_clash_follows(tmp_path, environment):
    outputs = [tmp_path / f"{i}.json" for i in range(8)]
    victims = [start(environment, tmp_path / f"victim{i}.json", 60) for i in range(2)]
    folder = tmp_path / "locks"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.lock"))) < 2 or not all(map(_held, folder.glob("*.lock"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    jobs = [start(environment, output, 0.2) for output in outputs]
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert [job.wait(timeout=120) for job in jobs] == [0] * 8
    spans = [json.loads(output.read_text()) for output in outputs]
    assert max(most_at_once(spans, device) for device in ("0", "1")) == 1


def _held(path: Path) -> bool:
    import fcntl

    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_wrapper_that_dies_leaves_the_slot_with_its_child(tmp_path):
    """The lock goes with the open file: whoever inherited it holds the slot."""
    slot = claim_slot(["0"], 1, tmp_path)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[slot.descriptor])
    os.close(slot.descriptor)  # the wrapper is gone
    try:
        with pytest.raises(DeviceError, match="Expected a free GPU within"):
            claim_slot(["0"], 1, tmp_path, timeout=0.1)
    finally:
        child.kill()
        child.wait()
    assert claim_slot(["0"], 1, tmp_path, timeout=5).device == "0"


def test_first_slots_of_all_gpus_before_second_ones(tmp_path):
    slots = [claim_slot(["a", "b"], 2, tmp_path) for _ in range(4)]
    assert [(slot.device, slot.place) for slot in slots] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    for slot in slots:
        os.close(slot.descriptor)


def test_a_lock_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Expected to be able to keep GPU locks"):
        claim_slot(["0"], 1, tmp_path / "file" / "locks")


def test_a_lock_folder_of_others_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("open", "link"):
        with pytest.raises(StorageError, match="a folder that only this user can write, but got"):
            claim_slot(["0"], 1, tmp_path / name)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "mine/0.0.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        claim_slot(["0"], 1, tmp_path / "mine")
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa", "GPU-bb"]),
        ("1", ["GPU-bb"]),
        ("1,0", ["GPU-bb", "GPU-aa"]),
        ("GPU-bb", ["GPU-bb"]),
        ("MIG-cc", ["MIG-cc"]),
        ("", []),
        ("0,-1,1", ["GPU-aa"]),
    ],
)
def test_the_pool_is_what_cuda_would_see(monkeypatch, visible, expected):
    monkeypatch.setattr(gpu_slots, "_driver_gpus", lambda: {"0": "GPU-aa", "1": "GPU-bb"})
    assert gpu_pool({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_the_driver_is_asked_and_may_be_missing(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aa'\necho '1, GPU-bb'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu_pool({}) == ["GPU-aa", "GPU-bb"]
    program.write_text("#!/bin/sh\necho 'no devices were found' >&2\nexit 6\n")
    assert gpu_pool({}) == []


@pytest.mark.parametrize("variable", gpu_slots.SCHEDULERS)
def test_schedulers_bind_their_devices_themselves(variable):
    assert bound_by_scheduler({variable: "1"}, ["0", "1"])
    assert not bound_by_scheduler({}, ["0", "1"])


def test_a_scheduler_s_choice_is_left_alone(tmp_path, environment):
    output = tmp_path / "job.json"
    assert start(environment | {"SLURM_JOB_ID": "7"}, output, 0).wait(timeout=60) == 0
    assert json.loads(output.read_text())[2] == "0,1"
    assert not (tmp_path / "locks").exists()


def test_where_locks_lie(tmp_path):
    assert lock_folder({"SANFLOW_GPU_LOCKS": "/x"}) == Path("/x")
    assert lock_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "sanflow-gpu"
    assert lock_folder({}) == Path(f"/tmp/sanflow-gpu-{os.getuid()}")


def test_errors_of_the_command_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="Expected a GPU, because device is cuda"):
        gpu_slots.run_on_gpu(["true"], device="cuda")
    with pytest.raises(DeviceError, match="there is no 'no-such-program'"):
        gpu_slots.run_on_gpu(["no-such-program"], device="cpu")
