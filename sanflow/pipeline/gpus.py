"""List the GPUs of this machine that a process may use, by UUID, so that all workflows use the same names.

NVML lists them: it needs neither nvidia-smi nor a CUDA context, and it works where one of several GPUs is dead. A GPU
in MIG mode counts as its slices, because CUDA can use a slice but not the whole. CUDA itself is asked only what NVML
cannot answer: in a container without NVML, and for the order in which CUDA counts, which is not that of NVML.
"""

import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sanflow.errors import DeviceError

logger = logging.getLogger(__name__)

# Entries of CUDA_VISIBLE_DEVICES that mean "no GPU".
NO_GPU = {"", "-1", "NoDevFiles"}
# NVML_ERROR_LIB_RM_VERSION_MISMATCH
VERSION_MISMATCH = 18
USE_CPU = "Set `device: cpu` to run on the CPU."

# Run in a process of its own: CUDA reads its variables once, and a broken driver may end or block the process.
ASK_CUDA = """
import ctypes
cuda, count, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
    raise SystemExit(1)
for number in range(count.value):
    name = (ctypes.c_ubyte * 16)()
    if cuda.cuDeviceGet(ctypes.byref(device), number) or cuda.cuDeviceGetUuid(name, device):
        raise SystemExit(1)
    print(bytes(name).hex())
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU of the machine.

    Arguments:
        uuid: As NVML and CUDA write it, GPU-...
        devices: What CUDA_VISIBLE_DEVICES may say to use it: its UUID, or those of its MIG slices; empty if it cannot
            be used.
    """

    uuid: str
    devices: tuple[str, ...]


def gpu_pool(environment: Mapping[str, str]) -> list[str]:
    """List the GPUs that a process may use, each as CUDA_VISIBLE_DEVICES names it.

    Arguments:
        environment: CUDA_VISIBLE_DEVICES limits the pool; its indices count in the order that CUDA_DEVICE_ORDER says.

    Returns:
        UUIDs of GPUs and MIG slices; empty where there is no GPU or none is wanted. Without any driver the entries of
        CUDA_VISIBLE_DEVICES as they are.

    Raises:
        DeviceError: If there are GPUs, or CUDA_VISIBLE_DEVICES names some, but none of them can be used.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else _entries(visible)
    if wanted == []:
        return []
    gpus = _nvml_gpus()
    if gpus is None:
        gpus = [Gpu(name, (name,)) for name in cuda_order(environment)]
    if wanted is None:
        pool = [device for gpu in gpus for device in gpu.devices]
        if gpus and not pool:
            raise DeviceError(
                f"Expected a GPU that works, but none of this machine's {len(gpus)} does (see the warnings above). "
                f"Reset or replace it (nvidia-smi, dmesg). {USE_CPU}"
            )
        return pool
    return _named(wanted, gpus, environment) if gpus else wanted


def _entries(visible: str) -> list[str]:
    """Return the entries of CUDA_VISIBLE_DEVICES up to the first that means "no GPU": CUDA ignores later ones."""
    entries: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry in NO_GPU:
            break
        entries.append(entry)
    return entries


def _named(wanted: list[str], gpus: list[Gpu], environment: Mapping[str, str]) -> list[str]:
    """Find the devices that entries of CUDA_VISIBLE_DEVICES mean."""
    ordered = _in_order(gpus, environment) if any(entry.isdecimal() for entry in wanted) else gpus
    pool: list[str] = []
    for entry in wanted:
        if entry.startswith("MIG-"):
            pool.append(entry)
            continue
        if entry.isdecimal():
            meant = ordered[int(entry)] if int(entry) < len(ordered) else None
        else:  # CUDA takes the beginning of a UUID too, if it is that of one GPU only
            fitting = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
            meant = fitting[0] if len(fitting) == 1 else None
        if meant is None:
            logger.warning(
                "CUDA_VISIBLE_DEVICES names %r, which is no GPU of this machine; CUDA ignores it and what follows.",
                entry,
            )
            break
        pool.extend(meant.devices)
    if not pool:
        raise DeviceError(
            f"Expected CUDA_VISIBLE_DEVICES to name a GPU that works, but got {','.join(wanted)}; this machine has "
            f"{', '.join(gpu.uuid or 'a dead GPU' for gpu in gpus)}. Correct or unset it. {USE_CPU}"
        )
    return list(dict.fromkeys(pool))


def _in_order(gpus: list[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """Sort GPUs as CUDA_VISIBLE_DEVICES counts them: by PCI address, or the fastest first (the default)."""
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(gpus) == 1:
        return gpus
    everything = {key: value for key, value in environment.items() if key != "CUDA_VISIBLE_DEVICES"}
    place = {name: number for number, name in enumerate(cuda_order(everything))}
    if not place:
        logger.warning(
            "CUDA does not report in which order it counts this machine's GPUs, so the indices of CUDA_VISIBLE_DEVICES "
            "are taken in the order of nvidia-smi. Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID."
        )
        return gpus
    return sorted(gpus, key=lambda gpu: place.get(gpu.uuid, len(gpus)))


def cuda_order(environment: Mapping[str, str]) -> list[str]:
    """Ask CUDA for the UUIDs of the GPUs it sees, in its order; empty where CUDA sees none or is missing."""
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-S", "-c", ASK_CUDA],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"GPU-{uuid.UUID(hex=line)}" for line in answer.stdout.split()]


def _nvml_gpus() -> list[Gpu] | None:
    """List all GPUs that NVML counts, in PCI order, dead ones without devices; None if there is no NVML."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        if getattr(error, "value", None) == VERSION_MISMATCH:
            raise DeviceError(
                f"Expected a working NVIDIA driver, but NVML reports: {error}. The driver was updated while it was in "
                f"use: restart the machine. {USE_CPU}"
            ) from error
        logger.debug("NVML cannot be used: %s", error)
        return None
    return [_gpu(nvml, number) for number in range(count)]


def _gpu(nvml: Any, number: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        name = nvml.nvmlDeviceGetUUID(handle)
    except nvml.NVMLError as error:
        logger.warning("GPU %d of this machine is left out, because NVML reports: %s", number, error)
        return Gpu("", ())
    try:
        divided, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # a model without MIG
        divided = 0
    if not divided:
        return Gpu(name, (name,))
    slices = tuple(_slices(nvml, handle))
    if not slices:
        logger.warning("GPU %d of this machine is left out, because it is in MIG mode and has no slices.", number)
    return Gpu(name, slices)


def _slices(nvml: Any, handle: Any) -> Iterator[str]:
    """List the UUIDs of a GPU's MIG slices."""
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
        except nvml.NVMLError:  # numbers of slices need not follow each other
            continue
