"""Choose device and precision; make torch deterministic."""

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from sanflow.errors import ConfigError, DeviceError

logger = logging.getLogger(__name__)

# The layout in which convolutions are fastest (but for fp32 on a GPU); networks and images are brought into it.
MEMORY_FORMAT = torch.channels_last

Precision = Literal["fp32", "tf32", "bf16"]
Network = TypeVar("Network", bound=nn.Module)


def choose_device(wish: str) -> torch.device:
    """Choose the device that `auto`, `cuda` or `cpu` means here.

    Raises:
        ConfigError: If it is none of the three.
        DeviceError: If torch finds no GPU although one is required, or `sanflow gpu-exec` gave one to this job.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if wish not in {"auto", "cuda", "cpu"}:
        raise ConfigError(f"Expected the device auto, cuda or cpu, but got {wish!r}. CUDA_VISIBLE_DEVICES picks a GPU.")
    if wish == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if wish == "cuda":
        raise DeviceError(
            "Expected a GPU, because device is cuda, but torch sees none (is the driver loaded, and is "
            "CUDA_VISIBLE_DEVICES empty?). Set `device: auto` to run on the CPU."
        )
    if claimed := os.environ.get("SANFLOW_CLAIMED_GPU"):  # set by sanflow/pipeline/gpu_slots.py
        raise DeviceError(
            f"Expected torch to use GPU {claimed}, which this job has, but torch {torch.__version__} sees none. It is "
            f"built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPUs only'}; `nvidia-smi` shows the "
            "newest CUDA of the driver. Update the driver, install another build of torch, or set `device: cpu`."
        )
    logger.info("No GPU: running on the CPU.")
    return torch.device("cpu")


def placed(network: Network, device: torch.device) -> Network:
    """Move a network to the device, its convolutions into `MEMORY_FORMAT`; return it."""
    network.to(device)
    # Module.to(memory_format=...) stops at weights of other than four dimensions.
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=MEMORY_FORMAT)
    return network


def unit_images(images_BHW3: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move bytes to the device as (B, 3, H, W) in [0, 1]; nothing waits where the memory is page-locked."""
    moved_B3HW = images_BHW3.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return moved_B3HW.to(dtype).div_(255)


def device_name(device: torch.device) -> str:
    """Name the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def usable_precision(wish: Precision, device: torch.device) -> Precision:
    """Choose the precision that was asked for where the device multiplies it in hardware, else fp32, with a message.

    A processor without such instructions computes bf16 several times slower than fp32, and TF32 not at all; the result
    of fp32 is the one that both approximate.
    """
    if wish == "fp32" or (multiplies_tf32 if wish == "tf32" else multiplies_bf16)(device):
        return wish
    logger.warning(
        "This %s has no %s matrix instructions, so `precision: %s` is computed in fp32 here.", device.type, wish, wish
    )
    return "fp32"


def multiplies_tf32(device: torch.device) -> bool:
    """Return whether the device has matrix instructions for TF32: NVIDIA's GPUs since Ampere."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device has matrix instructions for bf16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(_cpu_has(name) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))


def _cpu_has(name: str) -> bool:
    # Names of torch that are not public: a version without them counts as a processor without them.
    ask = getattr(torch.cpu, name, None)
    return bool(ask()) if ask is not None else False


@contextlib.contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the matrix products and convolutions inside in that precision; `fp32` inside `bf16` or `tf32` is fp32."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"), tf32(precision == "tf32"):
        yield


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let products and convolutions of a GPU round their inputs to TF32's 10 bits, or not; also in a backward pass."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32)
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@contextlib.contextmanager
def repeatable(seconds_matter: bool = True) -> Iterator[None]:
    """Make the same inputs give the same bits, on one machine with one number of threads.

    fp32 has full precision: no TF32 in products or convolutions, except where `autocast("tf32", ...)` asks for it.

    Arguments:
        seconds_matter: Also keep freed memory of the CPU for the next step, which saves page faults of new mappings.
    """
    # cuBLAS reads it when its first handle is created.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    cudnn.deterministic, cudnn.benchmark = True, False
    if seconds_matter:
        keep_freed_memory()
    try:
        with tf32(False):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def keep_freed_memory() -> None:
    """Make glibc keep freed memory; otherwise each large tensor is mapped again, with a page fault per 4 KiB."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):  # another C library
        logger.debug("No glibc: freed memory is returned to the system as its allocator decides.")
