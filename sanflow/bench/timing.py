"""Time calls in turn, phases of a call, and what a call takes of the machine's peaks."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sanflow.bench.bare import CountProducts, matmul_peak, memory_peak

# The memory of a CPU process settles in the first steps: until then most of it is touched for the first time.
WARM_UP_STEPS = 3


@contextlib.contextmanager
def stopwatches(
    parts: Mapping[str, Sequence[nn.Module]],
    synchronize: Callable[[], None],
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[dict[str, float]]:
    """Time modules by the name of their part, and an optimizer, while open.

    Arguments:
        parts: Name -> modules whose forward passes are added up.
        synchronize: Waits for the device.
        optimizer: Timed as `optimizer`; None for none.
    """
    spent = dict.fromkeys([*parts, *(["optimizer"] if optimizer else [])], 0.0)
    starts: dict[str, float] = {}

    def begin(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronize()
            starts[name] = time.perf_counter()

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronize()
            spent[name] += time.perf_counter() - starts[name]

        return hook

    handles: list[Any] = []
    for name, modules in parts.items():
        for module in modules:
            handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end(name))]
    if optimizer is not None:
        handles += [
            optimizer.register_step_pre_hook(begin("optimizer")),
            optimizer.register_step_post_hook(end("optimizer")),
        ]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def interleaved(
    ours: Callable[[], None],
    other: Callable[[], None] | None,
    windows: int,
    steps: int,
    synchronize: Callable[[], None],
) -> tuple[list[float], list[float] | None]:
    """Measure the seconds per step of both, window by window in turn, after warm-up steps of each."""
    both = [call for call in (ours, other) if call is not None]
    for call in both:
        for _ in range(WARM_UP_STEPS):
            call()
    seconds: list[list[float]] = [[] for _ in both]
    for _ in range(windows):
        for call, own in zip(both, seconds, strict=True):
            synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                call()
            synchronize()
            own.append((time.perf_counter() - start) / steps)
    return seconds[0], seconds[1] if other is not None else None


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Return a function that waits for the device; on a CPU it does nothing."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def write_profile(call: Callable[[], None], path: Path, device: torch.device) -> None:
    """Write a trace of one call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        call()
    profiler.export_chrome_trace(str(path))


def ratio(seconds: Sequence[float], other_seconds: Sequence[float] | None) -> float | None:
    """Compute how many times as fast as the other one it is; the median over pairs of windows with the same load.

    Example:
        >>> ratio([1.0, 1.0, 2.0], [3.0, 2.0, 8.0])
        3.0
    """
    if other_seconds is None:
        return None
    return statistics.median(theirs / ours for ours, theirs in zip(seconds, other_seconds, strict=True))


def against_peaks(
    counted: CountProducts, images: int, seconds: float, precision: str, device: torch.device
) -> tuple[dict[str, Any], float]:
    """Compare a call with the machine's peaks.

    Arguments:
        counted: Its products and convolutions.
        images: How many images it took.
        seconds: How long it took.
        precision: In which it computed.
        device: Where.

    Returns:
        What is reported of it, and the peak of the memory in bytes per second.
    """
    synchronize = synchronizer(device)
    peak = matmul_peak(torch.bfloat16 if precision == "bf16" else torch.float32, device, synchronize)
    bandwidth = memory_peak(device, synchronize)
    found = {
        "gmac_per_image": counted.macs / images / 1e9,
        "gflops": 2 * counted.macs / seconds / 1e9,
        "matmul_peak_gflops": peak / 1e9,
        "fraction_of_matmul_peak": 2 * counted.macs / seconds / peak,
        "memory_peak_gbytes_per_second": bandwidth / 1e9,
    }
    return found, bandwidth
