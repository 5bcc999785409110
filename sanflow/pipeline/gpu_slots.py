"""Give each job of one machine a GPU of its own: a slot is a lock on a file, which the job itself holds.

Snakemake counts GPUs but does not assign them. A command run through `run_on_gpu` takes the first free slot, finds
only that GPU, and holds the lock until it exits, even if killed: the lock belongs to an open file that the command
inherits. If a scheduler has given this process a single device, nothing is claimed.
"""

import fcntl
import logging
import os
import random
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sanflow.errors import ConfigError, DeviceError, StorageError
from sanflow.pipeline.gpus import gpu_pool

logger = logging.getLogger(__name__)

# Variables of schedulers that give GPUs to a job: Slurm, Kubernetes, PBS, LSF, HTCondor, Grid Engine.
SCHEDULERS = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", "PBS_JOBID", "LSB_JOBID", "_CONDOR_SLOT", "SGE_TASK_ID")
FOLDER_VARIABLE = "SANFLOW_GPU_LOCKS"
# One folder for all users and sessions. XDG_RUNTIME_DIR differs between a login, cron and each user.
FOLDER = Path("/tmp/sanflow-gpu")
# Informs the command that it has a GPU, so that it does not run on the CPU without a message (sanflow/device.py).
CLAIMED_VARIABLE = "SANFLOW_CLAIMED_GPU"
RETRY_SECONDS = (0.2, 1.0)
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Slot:
    """A claimed share of a GPU.

    Arguments:
        device: Value for CUDA_VISIBLE_DEVICES.
        place: Which of the GPU's slots, from 0.
        descriptor: Of the locked file; whoever holds it open holds the slot.
    """

    device: str
    place: int
    descriptor: int


def run_on_gpu(
    command: Sequence[str],
    *,
    slots_per_gpu: int = 1,
    device: str = "auto",
    environment: Mapping[str, str] | None = None,
) -> None:
    """Replace this process by `command`, with a GPU of its own; never returns.

    The command finds its GPU in CUDA_VISIBLE_DEVICES, and in SANFLOW_CLAIMED_GPU that it has one.

    Arguments:
        command: Program and arguments.
        slots_per_gpu: How many jobs may share one GPU.
        device: "cpu" claims nothing; "cuda" requires a GPU; "auto" takes one if there is any.
        environment: Of the command; this process's own if None.

    Raises:
        ConfigError: If `device` is none of the three.
        DeviceError: If a GPU is required and there is none, if no GPU can be used, or if the command does not
            exist.
        StorageError: If the locks cannot be kept.
    """
    variables = dict(os.environ if environment is None else environment)
    variables.pop(CLAIMED_VARIABLE, None)
    pool = wanted_pool(device, variables)
    if bound_by_scheduler(variables, pool):
        variables[CLAIMED_VARIABLE] = pool[0]
    elif pool:
        slot = claim_slot(pool, slots_per_gpu, lock_folder(variables))
        os.set_inheritable(slot.descriptor, True)
        variables["CUDA_VISIBLE_DEVICES"] = variables[CLAIMED_VARIABLE] = slot.device
        logger.info("Running on GPU %s, slot %d.", slot.device, slot.place)
    try:
        os.execvpe(command[0], list(command), variables)
    except FileNotFoundError as error:
        raise DeviceError(f"Expected a program to run on the GPU, but there is no {command[0]!r}.") from error


def wanted_pool(device: str, environment: Mapping[str, str]) -> list[str]:
    """List the GPUs that a command may use; empty where it runs on the CPU.

    Arguments:
        device: `auto`, `cuda` or `cpu`.
        environment: See `gpu_pool`.

    Raises:
        ConfigError: If `device` is none of the three.
        DeviceError: If a GPU is demanded and there is none, or none that there is can be used.
    """
    if device not in {"auto", "cuda", "cpu"}:
        raise ConfigError(f"Expected the device auto, cuda or cpu, but got {device!r}.")
    pool = [] if device == "cpu" else gpu_pool(environment)
    if device == "cuda" and not pool:
        raise DeviceError(
            "Expected a GPU, because device is cuda, but this machine shows none (its driver finds no GPU, or "
            "CUDA_VISIBLE_DEVICES is empty). Set `device: auto` to run on the CPU."
        )
    return pool


def bound_by_scheduler(environment: Mapping[str, str], pool: Sequence[str]) -> bool:
    """Return whether a scheduler or a container has chosen the device already: then only one is visible.

    An allocation of several GPUs (`salloc --gpus=4`) is a pool like any other, whose jobs claim one each.
    """
    managed = any(environment.get(name) for name in SCHEDULERS)
    return len(pool) == 1 and (managed or Path("/.dockerenv").exists() or Path("/run/.containerenv").exists())


def lock_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder of the locks: one on this machine for all its users, logins, cron jobs and workflows."""
    return Path(environment.get(FOLDER_VARIABLE) or FOLDER)


def claim_slot(pool: Sequence[str], slots_per_gpu: int, folder: Path, timeout: float | None = None) -> Slot:
    """Wait for a free slot and lock it.

    Arguments:
        pool: The GPUs.
        slots_per_gpu: Slots of each. All first slots are tried before any second one.
        folder: Of the lock files.
        timeout: Seconds after which to give up; None waits for ever.

    Raises:
        DeviceError: If no slot came free in time.
        StorageError: If the locks cannot be kept in the folder, or it is not safe to do so.
    """
    _make_folder(folder)
    start, reported = time.monotonic(), False
    while True:
        for place in range(slots_per_gpu):
            for device in pool:
                slot = _try_slot(device, place, folder)
                if slot is not None:
                    return slot
        waited = time.monotonic() - start
        if timeout is not None and waited > timeout:
            raise DeviceError(
                f"Expected a free GPU within {timeout:g} s, but all {len(pool) * slots_per_gpu} slots in {folder} are "
                "taken. Give Snakemake `--resources gpu=<number>` so that it starts no more jobs than that."
            )
        if waited > PATIENCE_SECONDS and not reported:
            logger.warning(
                "Waiting for a free GPU: all %d slots are taken (`lslocks` lists who holds those in %s).",
                len(pool) * slots_per_gpu,
                folder,
            )
            reported = True
        time.sleep(random.uniform(*RETRY_SECONDS))


def _make_folder(folder: Path) -> None:
    """Make the folder of the locks: all users may put files there, and nobody can remove those of others."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _no_umask(), suppress(FileExistsError):
            folder.mkdir(mode=0o1777)
        mode = folder.lstat().st_mode
    except OSError as error:
        raise _cannot_lock(folder, error) from error
    if not stat.S_ISDIR(mode) or (mode & 0o022 and not mode & stat.S_ISVTX):
        raise StorageError(
            f"Expected GPU locks in a folder where nobody can remove those of others, but {folder} is a link, a file, "
            "or writable by others without the sticky bit (`chmod +t` sets it). Remove it, or name another folder of "
            f"this machine in ${FOLDER_VARIABLE}."
        )


def _try_slot(device: str, place: int, folder: Path) -> Slot | None:
    """Lock one slot; None if another process holds it."""
    name = re.sub(r"[^\w-]", "_", device)
    path = folder / f"{name}.{place}.lock"
    try:
        descriptor = _open_lock(path)
        if _lock(descriptor, path):
            return Slot(device, place, descriptor)
    except OSError as error:
        raise _cannot_lock(path, error) from error
    os.close(descriptor)
    return None


def _open_lock(path: Path) -> int:
    """Open a lock file, or make it. Others can put anything here: so it is never written, nor opened through a link."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with suppress(FileNotFoundError):
        # Without O_CREAT, with which Linux refuses files of other users in a folder with the sticky bit.
        return os.open(path, flags)
    with _no_umask(), suppress(FileExistsError):
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    return os.open(path, flags)


def _lock(descriptor: int, path: Path) -> bool:
    opened = os.fstat(descriptor)
    if not stat.S_ISREG(opened.st_mode):
        raise StorageError(f"Expected a lock file at {path}, but it is no file. Remove it.")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A cleaner of /tmp may have removed this file since it was opened; its lock then excludes nobody.
        if path.lstat().st_ino != opened.st_ino:
            return False
    except (BlockingIOError, FileNotFoundError):
        return False
    with suppress(PermissionError):
        os.utime(descriptor)  # so that no cleaner of /tmp takes it for old while it is held
    return True


@contextmanager
def _no_umask() -> Iterator[None]:
    """Make files with exactly the permissions that are asked for."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def _cannot_lock(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Expected to be able to keep GPU locks in {path}, but got: {error.strerror}. "
        f"Name another folder of this machine in ${FOLDER_VARIABLE}."
    )
