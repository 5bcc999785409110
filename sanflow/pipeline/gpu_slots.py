"""One GPU per job on one machine: a slot is a lock on a file, held by the job itself and freed with it.

Snakemake counts GPUs but does not hand them out. A command run through `run_on_gpu` takes the first free slot, sees
that GPU alone, and holds the lock until it ends however it ends: the lock belongs to an open file that the command
inherits. Where a scheduler has bound the devices already, nothing is claimed.
"""

import contextlib
import fcntl
import logging
import os
import random
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sanflow.errors import ConfigError, DeviceError, StorageError

logger = logging.getLogger(__name__)

# Variables of schedulers that bind GPUs to a job: Slurm, Kubernetes, PBS, LSF, HTCondor, Grid Engine.
SCHEDULERS = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", "PBS_JOBID", "LSB_JOBID", "_CONDOR_SLOT", "SGE_TASK_ID")
FOLDER_VARIABLE = "SANFLOW_GPU_LOCKS"
RETRY_SECONDS = (0.2, 1.0)
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Slot:
    """A claimed share of a GPU.

    Arguments:
        device: What CUDA_VISIBLE_DEVICES shall say.
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
    """Become `command`, with a GPU of its own; never returns.

    Arguments:
        command: Program and arguments.
        slots_per_gpu: How many jobs may share one GPU.
        device: "cpu" claims nothing; "cuda" demands a GPU; "auto" takes one if there is any.
        environment: Of the command; this process's own if None.

    Raises:
        ConfigError: If `device` is none of the three.
        DeviceError: If a GPU is demanded and there is none, or the command does not exist.
    """
    if device not in {"auto", "cuda", "cpu"}:
        raise ConfigError(f"Expected the device auto, cuda or cpu, but got {device!r}.")
    variables = dict(os.environ if environment is None else environment)
    pool = [] if device == "cpu" else gpu_pool(variables)
    if device == "cuda" and not pool:
        raise DeviceError(
            "Expected a GPU, because device is cuda, but this machine shows none (nvidia-smi finds no GPU, or "
            "CUDA_VISIBLE_DEVICES is empty). Set `device: auto` to run on the CPU."
        )
    if pool and not bound_by_scheduler(variables, pool):
        slot = claim_slot(pool, slots_per_gpu, lock_folder(variables))
        os.set_inheritable(slot.descriptor, True)
        variables["CUDA_VISIBLE_DEVICES"] = slot.device
        logger.info("Running on GPU %s, slot %d.", slot.device, slot.place)
    try:
        os.execvpe(command[0], list(command), variables)
    except FileNotFoundError as error:
        raise DeviceError(f"Expected a program to run on the GPU, but there is no {command[0]!r}.") from error


def gpu_pool(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, by UUID where the driver tells it, so that two workflows agree on them.

    Arguments:
        environment: Its CUDA_VISIBLE_DEVICES limits the pool.
    """
    known = _driver_gpus()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(known.values())
    pool = []
    for name in (part.strip() for part in visible.split(",")):
        if name in {"", "-1", "NoDevFiles"}:
            break  # as CUDA reads it: what follows an invalid entry is not visible
        pool.append(known.get(name, name))
    return pool


def bound_by_scheduler(environment: Mapping[str, str], pool: Sequence[str]) -> bool:
    """Whether a scheduler, or a container with a single GPU, has chosen the device already."""
    if any(environment.get(name) for name in SCHEDULERS):
        return True
    return len(pool) == 1 and (Path("/.dockerenv").exists() or Path("/run/.containerenv").exists())


def lock_folder(environment: Mapping[str, str]) -> Path:
    """Where the locks lie: on this machine, never on a file system that machines share, one for all workflows."""
    if FOLDER_VARIABLE in environment:
        return Path(environment[FOLDER_VARIABLE])
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "sanflow-gpu"
    return Path("/tmp") / f"sanflow-gpu-{os.getuid()}"


def claim_slot(pool: Sequence[str], slots_per_gpu: int, folder: Path, timeout: float | None = None) -> Slot:
    """Wait for a free slot and lock it.

    Arguments:
        pool: The GPUs.
        slots_per_gpu: Slots of each. All first slots are tried before any second one.
        folder: Of the lock files.
        timeout: Seconds after which to give up; None waits for ever.

    Raises:
        DeviceError: If no slot came free in time.
        StorageError: If the folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"Expected to be able to keep GPU locks in {folder}, but got: {error.strerror}. "
            f"Name another folder of this machine in ${FOLDER_VARIABLE}."
        ) from error
    _require_own(folder)
    start, told = time.monotonic(), False
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
        if waited > PATIENCE_SECONDS and not told:
            logger.warning("Waiting for a free GPU: all %d slots are taken.", len(pool) * slots_per_gpu)
            told = True
        time.sleep(random.uniform(*RETRY_SECONDS))


def _require_own(folder: Path) -> None:
    """Where every user may write, another one could have laid links in place of the locks."""
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise StorageError(
            f"Expected GPU locks in a folder that only this user can write, but got {folder}, which is a link, another "
            f"user's or writable by others. Remove it, or name another folder of this machine in ${FOLDER_VARIABLE}."
        )


def _try_slot(device: str, place: int, folder: Path) -> Slot | None:
    name = re.sub(r"[^\w-]", "_", device)
    descriptor = os.open(folder / f"{name}.{place}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    # For a person who looks: which process took it. The lock, not this number, is what counts.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return Slot(device, place, descriptor)


def _driver_gpus() -> dict[str, str]:
    """Index -> UUID of the machine's GPUs; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    try:
        answer = subprocess.run(
            [program, "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.split(",") for line in answer.stdout.splitlines() if "," in line)
    return {index.strip(): uuid.strip() for index, uuid in rows}
