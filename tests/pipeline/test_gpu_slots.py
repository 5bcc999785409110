"""A GPU of its own for each job: locks and schedulers; eight jobs on two GPUs that do not exist."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sanflow.device import choose_device
from sanflow.errors import DeviceError, StorageError
from sanflow.pipeline import gpu_slots
from sanflow.pipeline.gpu_slots import bound_by_scheduler, claim_slot, lock_folder

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


def test_users_share_the_lock_folder_and_cannot_remove_each_other_s_locks(tmp_path):
    """Each with an umask of its own, as two users may have them."""
    before = os.umask(0o077)
    try:
        os.close(claim_slot(["GPU-aa"], 1, tmp_path / "locks").descriptor)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o1777
    lock = tmp_path / "locks/GPU-aa.0.lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666
    lock.chmod(0o444)  # to lock a file it is enough to read it
    os.close(claim_slot(["GPU-aa"], 1, tmp_path / "locks").descriptor)


def test_a_lock_folder_that_is_not_safe_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "safe").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "safe")
    (tmp_path / "file").write_text("")
    for name in ("open", "link", "file"):
        with pytest.raises(StorageError, match="where nobody can remove those of others, but"):
            claim_slot(["0"], 1, tmp_path / name)


def test_what_another_user_put_in_place_of_a_lock_is_neither_followed_nor_written(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "locks"
    folder.mkdir()
    (folder / "0.0.lock").symlink_to(victim)
    with pytest.raises(StorageError, match=r"keep GPU locks in .*0\.0\.lock, but got: .* symbolic links"):
        claim_slot(["0"], 1, folder)
    os.link(victim, folder / "1.0.lock")
    os.close(claim_slot(["1"], 1, folder).descriptor)
    os.mkfifo(folder / "2.0.lock")  # to open it for reading would wait for ever
    with pytest.raises(StorageError, match=r"Expected a lock file at .*2\.0\.lock, but it is no file"):
        claim_slot(["2"], 1, folder)
    assert victim.read_text() == "precious"


def test_a_lock_whose_file_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Cleaners remove old files of /tmp: a lock on a file without a name excludes nobody."""
    opened = gpu_slots._open_lock

    def open_and_lose(path: Path) -> int:
        descriptor = opened(path)
        if not removed:
            path.unlink()
            removed.append(path)
        return descriptor

    removed: list[Path] = []
    monkeypatch.setattr(gpu_slots, "_open_lock", open_and_lose)
    monkeypatch.setattr(gpu_slots, "RETRY_SECONDS", (0.0, 0.0))
    slot = claim_slot(["0"], 1, tmp_path, timeout=5)
    assert removed
    assert os.fstat(slot.descriptor).st_ino == (tmp_path / "0.0.lock").stat().st_ino
    os.close(slot.descriptor)


def test_a_claim_makes_its_file_young_again(tmp_path):
    os.close(claim_slot(["0"], 1, tmp_path).descriptor)
    os.utime(tmp_path / "0.0.lock", (1, 1))
    os.close(claim_slot(["0"], 1, tmp_path).descriptor)
    assert time.time() - (tmp_path / "0.0.lock").stat().st_mtime < 60


@pytest.mark.parametrize("variable", gpu_slots.SCHEDULERS)
def test_a_scheduler_binds_one_gpu_and_no_more(variable):
    assert bound_by_scheduler({variable: "1"}, ["0"])
    assert not bound_by_scheduler({variable: "1"}, ["0", "1"])
    assert not bound_by_scheduler({variable: "1"}, [])


def test_jobs_of_an_allocation_of_four_gpus_get_one_each(tmp_path, environment):
    """`salloc --gpus=4`, then `snakemake --resources gpu=4`."""
    allocation = environment | {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    outputs = [tmp_path / f"{i}.json" for i in range(4)]
    jobs = [start(allocation, output, 2) for output in outputs]
    assert [job.wait(timeout=120) for job in jobs] == [0] * 4
    assert sorted(json.loads(output.read_text())[2] for output in outputs) == ["0", "1", "2", "3"]


def test_the_one_gpu_of_an_allocation_is_left_as_it_is(tmp_path, environment):
    output = tmp_path / "job.json"
    assert start(environment | {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "3"}, output, 0).wait(timeout=60) == 0
    assert json.loads(output.read_text())[2] == "3"
    assert not (tmp_path / "locks").exists()


def test_locks_are_in_one_folder_for_a_login_and_for_cron():
    login = {"XDG_RUNTIME_DIR": "/run/user/1000", "USER": "ada", "HOME": "/home/ada", "TMPDIR": "/scratch/ada"}
    assert lock_folder(login) == lock_folder({"LOGNAME": "ada"}) == lock_folder({}) == Path("/tmp/sanflow-gpu")
    assert lock_folder(login | {"SANFLOW_GPU_LOCKS": "/x"}) == Path("/x")


def claimed(environment: dict[str, str], device: str = "auto") -> str:
    """What `gpu-exec` says to its command: the GPU that it has."""
    show = [sys.executable, "-c", "import os; print(os.environ.get('SANFLOW_CLAIMED_GPU'))"]
    code = f"from sanflow.pipeline.gpu_slots import run_on_gpu; run_on_gpu({show}, device={device!r})"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("variables", "device", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "3"}, "auto", "3"),
        ({"CUDA_VISIBLE_DEVICES": "3", "PBS_JOBID": "1"}, "auto", "3"),
        ({"CUDA_VISIBLE_DEVICES": "3", "SANFLOW_CLAIMED_GPU": "of an outer job"}, "cpu", "None"),
        ({"CUDA_VISIBLE_DEVICES": "", "SANFLOW_CLAIMED_GPU": "of an outer job"}, "auto", "None"),
    ],
)
def test_a_command_knows_that_it_has_a_gpu(environment, variables, device, expected):
    assert claimed(environment | variables, device) == expected


def test_a_claimed_gpu_that_torch_cannot_use_is_an_error_and_not_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    monkeypatch.setenv(gpu_slots.CLAIMED_VARIABLE, "GPU-aa")
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(DeviceError, match=r"Expected torch to use GPU GPU-aa, .* sees none\..*or set `device: cpu`"):
        choose_device("auto")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeviceError, match="It is built for CPUs only"):
        choose_device("auto")


def test_errors_of_the_command_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="Expected a GPU, because device is cuda"):
        gpu_slots.run_on_gpu(["true"], device="cuda")
    with pytest.raises(DeviceError, match="there is no 'no-such-program'"):
        gpu_slots.run_on_gpu(["no-such-program"], device="cpu")
