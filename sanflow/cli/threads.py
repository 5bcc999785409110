"""Set how long a waiting thread of OpenMP keeps its processor core busy."""

import os

# What a user may have chosen already; each of them decides how threads wait.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Commands that compute with torch. Others, such as `gpu-exec`, hand their environment on to a command of these.
COMPUTING = ("bench", "calibrate", "export", "predict", "score", "submission", "train", "validate")
# Turns of the waiting loop before a thread sleeps. GNU's own 300,000 are several milliseconds, as long as a time
# slice: on a loaded machine they use the cores that the awaited thread needs. Measured in docs/performance.md.
TURNS_WHERE_QUIET = "16000"  # about a millisecond
TURNS_WHERE_LOADED = "100"  # some microseconds
SAMPLE_SECONDS = 0.1
HOUSEKEEPING = 0.25  # cores that even an idle machine uses


def let_waiting_threads_sleep(command: str) -> None:
    """Set the wait policy of GNU's OpenMP, which torch brings along, unless the user has set one.

    Only before torch is imported: the library reads the environment when it is loaded.

    Arguments:
        command: The command of `sanflow` that runs; for one that does not compute nothing is set.
    """
    if command in COMPUTING and not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = TURNS_WHERE_QUIET if threads_have_cores() else TURNS_WHERE_LOADED


def threads_have_cores() -> bool:
    """Return whether other processes leave a core for each thread of OpenMP, during a tenth of a second."""
    import psutil  # not needed by most commands, which would start later

    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    busy = psutil.cpu_percent(SAMPLE_SECONDS, percpu=True)
    free = sum(1 - percent / 100 for core, percent in enumerate(busy) if core in usable)
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = int(asked) if asked.isdecimal() else len(usable)
    return free >= threads - HOUSEKEEPING
