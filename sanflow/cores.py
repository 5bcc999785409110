"""Give each thread of OpenMP a processor core of its own.

The threads of a parallel operation wait for each other, and some libraries wait in a loop that never sleeps. While
another process has one core, two threads can be on the other one; then each uses up its time slice before the one that
it waits for can go on. Numbers are in docs/performance.md.
"""

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What a user may have chosen already: how threads wait, and where they run.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
PLACE_VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
# Turns of the waiting loop before a thread sleeps, about a millisecond. GNU's own 300,000 are several milliseconds,
# which two jobs on the same cores would take from each other.
TURNS = "16000"
# Nanoseconds for which a thread runs at once while another process wants its core; Linux has 1 to 3 ms, for which the
# other threads wait. It is the shortest that Linux takes.
SLICE = 100_000
# The number of the system call, which neither Python nor most C libraries have a function for.
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


# The core of the main thread while it computes, by number; empty if threads are not bound.
_own_core: set[int] = set()


def load_torch() -> None:
    """Import torch, whose OpenMP reads only then how threads wait and that each stays on a core.

    Threads on cores of their own also get short time slices, if Linux has them (6.12 and newer).

    Nothing is changed that the user has set; the number of threads never is. The environment is as before afterwards,
    so that neither other copies of OpenMP nor other programs read it.
    """
    if "torch" in sys.modules:
        return
    # torch imports it too, but its OpenBLAS takes as many threads as this thread may use cores at that moment.
    import numpy  # noqa: F401

    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    variables = openmp_variables(usable)
    binds = "OMP_PROC_BIND" in variables
    if binds:
        _ask_for_short_slices()
    os.environ |= variables
    try:
        import torch
    finally:
        for name in variables:
            del os.environ[name]
    # GNU's OpenMP has bound this thread. What is started from it, such as threads that read images, would stay on its
    # core too, so it goes there only to compute.
    if binds and (own := os.sched_getaffinity(0)) != usable:
        os.sched_setaffinity(0, usable)
        # torch may take fewer threads than OpenMP, by another variable of a user's.
        if torch.get_num_threads() * len(own) >= len(usable):
            _own_core.update(own)


def openmp_variables(cores: set[int]) -> dict[str, str]:
    """Choose what OpenMP is to read, beside the variables that the user has set.

    Arguments:
        cores: Those that this process may use; none where they cannot be chosen.
    """
    variables = {}
    if not any(name in os.environ for name in WAIT_VARIABLES):
        variables["GOMP_SPINCOUNT"] = TURNS
    # Fewer threads than cores stay free: bound to the same first cores, two jobs would leave the others idle.
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    fill = len(cores) > 1 and (not asked.isdecimal() or int(asked) >= len(cores))
    if fill and not any(name in os.environ for name in PLACE_VARIABLES):
        variables |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    return variables


def _ask_for_short_slices() -> None:
    """Ask for them for this thread and those that it starts; they get no more time by it, but get it sooner."""
    number = SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    # Linux's struct sched_attr: size, policy, flags, niceness, priority, runtime (the slice), deadline, period.
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, niceness, 0, SLICE, 0, 0)
    # An older Linux ignores the slice; where the call is not allowed, nothing changes.
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)


@contextlib.contextmanager
def on_own_core(device: "torch.device") -> Iterator[None]:
    """Keep this thread, the main one, on a core that no other thread of OpenMP is bound to, if it computes on a CPU."""
    if not _own_core or device.type != "cpu":
        yield
        return
    before = os.sched_getaffinity(0)
    # Someone may have chosen other cores for a running process.
    os.sched_setaffinity(0, _own_core & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
