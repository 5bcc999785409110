"""Measure the cost of a training: seconds by phase, peak memory, energy; summed over all attempts."""

import contextlib
import importlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch


class Cost:
    """Adds up the cost of one training over its attempts.

    Attributes:
        seconds: Seconds by phase, over all attempts.
        attempts: How often it was started.
        energy_joules: Energy of the GPU during it, over all attempts; None if the driver does not report it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.attempts = 1
        self.energy_joules: float | None = None
        self.peak_memory_bytes = 0
        self._start = time.perf_counter()
        self._total_before = 0.0
        self._energy_before: float | None = None
        self._energy_start = _energy_joules(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def state(self) -> dict[str, Any]:
        """Return what a saved state holds of it; all attempts up to now."""
        return {
            "seconds": dict(self.seconds),
            "total": self.total,
            "attempts": self.attempts,
            "energy_joules": self.energy(),
            "peak_memory_bytes": self.peak(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; this counts as one more attempt."""
        for name, seconds in state["seconds"].items():
            self.add(name, seconds)
        self._total_before = state["total"]
        self.attempts = state["attempts"] + 1
        self._energy_before = state["energy_joules"]
        self.peak_memory_bytes = state["peak_memory_bytes"]

    @property
    def total(self) -> float:
        """Return the seconds of wall time of all attempts that saved a state, and of this one."""
        return self._total_before + time.perf_counter() - self._start

    def energy(self) -> float | None:
        """Return the joules of the GPU, other users of it included; None if the driver does not report it."""
        now = _energy_joules(self.device)
        if now is None or self._energy_start is None:
            return self._energy_before
        return (self._energy_before or 0.0) + now - self._energy_start

    def peak(self) -> int:
        """Return the most memory in use: of the GPU by torch, or of the process on a CPU; in bytes."""
        return max(self.peak_memory_bytes, _peak_memory(self.device))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Kilobytes, but for macOS, which counts bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _energy_joules(device: torch.device) -> float | None:
    """Read the energy that the GPU has used since its driver was loaded, if NVML is installed and reports it."""
    if device.type != "cuda":
        return None
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except Exception:  # no error of NVML may stop a training
        return None
