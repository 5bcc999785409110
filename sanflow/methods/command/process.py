"""Run a command: pass its output on, measure its time and memory, and end it with all its children."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from threading import Thread
from typing import IO

import psutil

from sanflow.errors import ToolError
from sanflow.methods.signals import StopSignals

FIRST_LOOK_SECONDS, LOOK_SECONDS = 0.01, 0.2
GRACE_SECONDS = 10.0
SHOWN_LINES = 15
KEPT_CHARACTERS = 8000


def run(arguments: Sequence[str], timeout: float | None = None) -> tuple[float, int]:
    """Run a command to its end; its output goes to stderr.

    The command runs in a process group of its own. This function always ends that group before it returns or raises:
    after a signal, after `timeout`, and also if the command has ended but left children behind. The command does not
    get the environment variables SANFLOW_*, because they name the data set.

    Arguments:
        arguments: Program and arguments.
        timeout: Seconds after which the command is ended; None for no limit.

    Returns:
        Seconds of wall time, and peak memory in bytes: the largest sum of the resident memory of the command's
        processes, measured five times a second, in the first more often. GPU memory is not counted. A page that
        processes share is counted once for each of them.

    Raises:
        ToolError: If there is no such program, it exits with a code other than 0, or it does not end in time.
        SystemExit: With 130 or 143 after SIGINT, SIGTERM or SIGUSR1.
    """
    start, peak, last = time.monotonic(), 0, _Tail()
    with StopSignals() as stop:
        process = _started(arguments)
        assert process.stdout is not None
        copying = Thread(target=_copy, args=(process.stdout, last), daemon=True)
        copying.start()
        try:
            while process.poll() is None and stop.exit_code is None:
                if timeout is not None and time.monotonic() - start > timeout:
                    raise ToolError(
                        f"Expected the command to end within {timeout / 60:g} minutes, but it did not and was ended. "
                        f"Raise `timeout` or make it faster. {last.shown()}"
                    )
                peak = max(peak, _memory(process.pid))
                # Soon after the start, or a short command would be measured before it has done anything.
                pause = min(LOOK_SECONDS, FIRST_LOOK_SECONDS + (time.monotonic() - start) / 4)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(pause)
        finally:
            _end(process)
            copying.join(GRACE_SECONDS)
        if stop.exit_code is not None:
            raise SystemExit(stop.exit_code)
    if process.returncode != 0:
        raise ToolError(f"Expected the command to succeed, but it {_ended(process.returncode)}. {last.shown()}")
    return time.monotonic() - start, peak


class _Tail:
    """Keep the last characters of a command's output."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, text: str) -> None:
        self.text = (self.text + text)[-KEPT_CHARACTERS:]

    def shown(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()][-SHOWN_LINES:]
        return "Its last lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else "It wrote nothing."


def _started(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SANFLOW_")}
    try:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ToolError(
            f"Expected a program that can be run, but {arguments[0]!r} cannot: {error}. A name is looked for in PATH, "
            "and a path counts from the folder in which snakemake was started. Install it or correct `command`."
        ) from error


def _copy(output: IO[bytes], last: _Tail) -> None:
    """Copy a command's output to stderr as it arrives, until all of its processes have closed their end."""
    # Not line by line, because a progress bar writes no line ends.
    while data := os.read(output.fileno(), 65536):
        text = data.decode("utf-8", "replace")
        sys.stderr.write(text)
        sys.stderr.flush()
        last.add(text)


def _memory(pid: int) -> int:
    """Measure the resident bytes of a process and its descendants together; 0 if it has just ended."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the rest of a command's process group: at once if the command has ended, otherwise after a grace period."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _ended(code: int) -> str:
    return f"exited with code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
