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
from dataclasses import dataclass, field
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


@dataclass
class _Cores:
    """Cores by number.

    Attributes:
        own: Those of the main thread while it computes; None if threads are not bound.
        usable: All that this process may use.
    """

    own: set[int] | None = None
    usable: set[int] = field(default_factory=set)


_cores = _Cores()


def load_torch() -> None:
    """Import torch, whose OpenMP reads only then how threads wait and that each stays on a core.

    Threads on cores of their own also get short time slices, if Linux has them (6.12 and newer).

    Nothing is changed that the user has set; the number of threads never is. The environment is as before afterwards,
    so that neither other copies of OpenMP nor other programs read it.
    """
    if "torch" in sys.modules:
        return
    variables = {}
    if not any(name in os.environ for name in WAIT_VARIABLES):
        variables["GOMP_SPINCOUNT"] = TURNS
    if binds := threads_fill_cores() and not any(name in os.environ for name in PLACE_VARIABLES):
        variables |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
        _cores.usable = os.sched_getaffinity(0)
        _ask_for_short_slices()
    os.environ |= variables
    try:
        import torch
    finally:
        for name in variables:
            del os.environ[name]
    # GNU's OpenMP has bound this thread. What is started from it, such as threads that read images, would stay on its
    # core too, so it goes there only to compute.
    if binds and (own := os.sched_getaffinity(0)) != _cores.usable:
        _move_to(_cores.usable)
        # torch may take fewer threads than OpenMP, by another variable of a user's.
        if torch.get_num_threads() * len(own) >= len(_cores.usable):
            _cores.own = own


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


def threads_fill_cores() -> bool:
    """Return whether OpenMP will have a thread for each of several cores; fewer threads may share a machine's cores.

    Bound to the same first cores, two jobs with few threads would leave the others idle.
    """
    if not hasattr(os, "sched_getaffinity"):  # no Linux
        return False
    usable = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return usable > 1 and (not asked.isdecimal() or int(asked) >= usable)


@contextlib.contextmanager
def on_own_core(device: "torch.device") -> Iterator[None]:
    """Keep this thread, the main one, on a core that no other thread of OpenMP is bound to, if it computes on a CPU."""
    if _cores.own is None or device.type != "cpu":
        yield
        return
    _move_to(_cores.own)
    try:
        yield
    finally:
        _move_to(_cores.usable)


def _move_to(cores: set[int]) -> None:
    # It fails if the cores of this process were changed from outside; then the thread stays where it is.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)
