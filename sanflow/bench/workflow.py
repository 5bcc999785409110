"""Measure what the workflow adds to its jobs: a whole small benchmark, and a dry run of many jobs."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from sanflow.config.settings import CHECKOUT
from sanflow.errors import DataError

BENCHMARK = CHECKOUT / "config" / "benchmarks" / "demo.yaml"
# Each job of a benchmark is trained, scored and evaluated.
RULES_PER_JOB = 3
WORK = ("train", "score")


def bench_workflow(*, run: bool = True, jobs: int = 1000) -> dict[str, Any]:
    """Time the workflow in a temporary folder.

    Arguments:
        run: Also run the demo, from its data to its report; takes minutes.
        jobs: At least so many jobs of Snakemake are planned in a dry run of the demo with more seeds.

    Returns:
        `demo`: its seconds, those of each rule, and `share_of_neither_training_nor_scoring` of the wall time (rules
        that run side by side can make it smaller than it feels). `dry_run`: the number of jobs and its seconds.

    Raises:
        DataError: If the workflow is not there, because sanflow is installed without its checkout.
    """
    if not BENCHMARK.is_file():
        raise DataError(
            f"Expected the workflow's benchmark at {BENCHMARK}, but it is not there: sanflow is installed without its "
            "checkout. Measure in a checkout."
        )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if run:
            seconds, _ = _snakemake(folder, BENCHMARK)
            rules = seconds_of_rules(folder / "results" / "demo" / "benchmarks")
            work = sum(rules.get(rule, 0.0) for rule in WORK)
            found["demo"] = {
                "seconds": seconds,
                "seconds_of_rules": rules,
                "share_of_neither_training_nor_scoring": 1 - work / seconds,
            }
        large = folder / "large.yaml"
        content = yaml.safe_load(BENCHMARK.read_text())
        # Three categories, so many experiments, three rules.
        per_seed = 3 * len(content["experiments"]) * RULES_PER_JOB
        large.write_text(yaml.safe_dump(content | {"seeds": list(range(-(-jobs // per_seed)))}))
        seconds, output = _snakemake(folder, large, "--dry-run", "--quiet", "rules")
        total = next(int(line.split()[1]) for line in output.splitlines() if line.startswith("total"))
        found["dry_run"] = {"jobs": total, "seconds": seconds}
    return found


def seconds_of_rules(folder: Path) -> dict[str, float]:
    """Sum the wall time of each rule's jobs, as Snakemake's benchmark files hold it."""
    rules: dict[str, float] = {}
    for path in folder.rglob("*.jsonl"):
        rule = path.relative_to(folder).parts[0].removesuffix(".jsonl")
        rules[rule] = rules.get(rule, 0.0) + sum(json.loads(line)["s"] for line in path.read_text().splitlines())
    return dict(sorted(rules.items()))


def _snakemake(folder: Path, benchmark: Path, *options: str) -> tuple[float, str]:
    start = time.perf_counter()
    command = ["snakemake", "--snakefile", str(CHECKOUT / "Snakefile"), "--directory", str(folder), *options]
    done = subprocess.run(
        [*command, "--config", f"benchmark={benchmark}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DataError(f"Expected the workflow to run, but it ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, done.stdout
