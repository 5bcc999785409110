"""Measure how long commands take to start: what every job of a benchmark pays before its work."""

import os
import re
import statistics
import subprocess
import sys
import time
from typing import Any

# What a command imports before its work begins.
COMMANDS = {
    "sanflow --help": "import sys; sys.argv = ['sanflow', '--help']; from sanflow.cli import main; main()",
    "sanflow train": "import sanflow.cli, sanflow.methods.flow.training.loop",
    "sanflow score": "import sanflow.cli, sanflow.scoring, sanflow.methods.flow.detector",
    "sanflow evaluate": "import sanflow.cli, sanflow.evaluation.evaluate",
}
IMPORT_LINE = re.compile(r"import time:\s+(?P<own>\d+) \|\s+\d+ \|\s+(?P<module>[\w.]+)")
SLOWEST = 8


def bench_startup(repeats: int = 3) -> dict[str, Any]:
    """Time the start of commands, each in processes of its own.

    Arguments:
        repeats: Starts of each command; medians are returned.

    Returns:
        For each command `seconds`, wall time from process to process; `processor_seconds`, which a loaded machine
        changes less; and `slowest`, the packages whose imports take longest, in seconds.
    """
    found: dict[str, Any] = {"python": [*_median(["pass"] * repeats)]}
    for command, code in COMMANDS.items():
        seconds, processor = _median([code] * repeats)
        found[command] = {"seconds": seconds, "processor_seconds": processor, "slowest": slowest_imports(code)}
    found["python"] = {"seconds": found["python"][0], "processor_seconds": found["python"][1]}
    return found


def _median(codes: list[str]) -> tuple[float, float]:
    """Measure the median wall and processor time of processes that run Python code."""
    wall, processor = [], []
    for code in codes:
        start, before = time.perf_counter(), os.times()
        _run(["-c", code])
        after = os.times()
        wall.append(time.perf_counter() - start)
        processor.append(after.children_user - before.children_user + after.children_system - before.children_system)
    return statistics.median(wall), statistics.median(processor)


def slowest_imports(code: str) -> dict[str, float]:
    """Time the imports of a piece of code, in a process of its own, summed by package.

    Returns:
        The slowest packages and the seconds that their own modules take, the slowest first.
    """
    packages: dict[str, float] = {}
    for line in _run(["-X", "importtime", "-c", code]).splitlines():
        if match := IMPORT_LINE.search(line):
            package = match["module"].split(".")[0]
            packages[package] = packages.get(package, 0.0) + int(match["own"]) / 1e6
    return dict(sorted(packages.items(), key=lambda item: -item[1])[:SLOWEST])


def _run(arguments: list[str]) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stderr
