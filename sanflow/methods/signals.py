"""Stop cleanly on a signal: finish the current batch, save the state and exit with the signal's code."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# Exit code of each signal. A scheduler sends USR1 before a preemption; it is handled like a termination.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class StopSignals:
    """A context that records SIGINT, SIGTERM and SIGUSR1; the process does not end.

    Attributes:
        exit_code: 130 or 143 once a signal has come, None before.

    Example:
        >>> with StopSignals() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.exit_code
        143
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; in other threads nothing changes.
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = EXIT_CODES[signal.Signals(number)]
