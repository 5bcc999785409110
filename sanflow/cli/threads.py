"""Set how long a waiting thread of OpenMP keeps its processor core busy."""

import os

# What a user may have chosen already; each of them decides how threads wait.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Turns of the waiting loop before a thread sleeps: some tens of microseconds. GNU's own 300,000 are several
# milliseconds, as long as a time slice: on a loaded machine they use the cores that the awaited thread needs.
SPIN_COUNT = "1000"


def let_waiting_threads_sleep() -> None:
    """Set the wait policy of GNU's OpenMP, which torch brings along, unless the user has set one.

    Only before torch is imported: the library reads the environment when it is loaded.
    """
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
