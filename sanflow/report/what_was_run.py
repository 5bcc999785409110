"""Say what was run, from the provenance of each run: data, experiments, seeds, commit, machine and time."""

import math
from collections.abc import Sequence
from typing import Any

from sanflow.report.runs import Run, in_order, labels_of

STEPS = ("fit", "score", "evaluate")


def what_was_run(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """List the facts of a benchmark's runs, pairs of a name and lines of text; what no run knows is left out.

    Arguments:
        runs: Those of the last epoch.
    """
    labels = labels_of(runs)
    versions = [step.get("versions") or {} for run in runs for step in _steps(run)]
    facts = [
        ("Data sets", [_dataset(name, runs) for name in in_order(run.dataset for run in runs)]),
        ("Experiments", [_experiment(name, runs, label) for name, label in labels.items()]),
        ("Seeds", [", ".join(str(seed) for seed in sorted({run.seed for run in runs}))]),
        ("Commit", in_order(_commit(version) for version in versions)),
        ("Device", in_order(_device(run) for run in runs)),
        ("Machine", in_order(_machine(version) for version in versions)),
        ("Software", in_order(_software(version) for version in versions)),
        ("Training time", [_training_time(runs)]),
    ]
    known = [(name, [line for line in lines if line]) for name, lines in facts]
    return [(name, lines) for name, lines in known if lines]


def _steps(run: Run) -> list[dict[str, Any]]:
    steps = (run.metrics.get("provenance") or {}).get("steps") or {}
    return [steps[name] for name in STEPS if name in steps]


def _dataset(name: str, runs: Sequence[Run]) -> str:
    counts = {
        run.category: run.metrics["counts"]["test_images"]
        for run in runs
        if run.dataset == name and "counts" in run.metrics
    }
    categories = in_order(run.category for run in runs if run.dataset == name)
    words = "category" if len(categories) == 1 else "categories"
    listed = f": {', '.join(categories)}" if len(categories) <= 6 else ""
    return f"{name} ({len(categories)} {words}{listed}; {sum(counts.values()):,} test images)"


def _experiment(name: str, runs: Sequence[Run], label: str) -> str:
    own = [run for run in runs if run.experiment == name]
    identity = (own[0].metrics.get("provenance") or {}).get("encoder") or {}
    encoder = own[0].settings.get("encoder") or identity.get("name")
    sizes = in_order(" x ".join(map(str, run.metrics["input_size"])) for run in own if "input_size" in run.metrics)
    details = [f"encoder {encoder}"] if encoder else []
    tile = own[0].settings.get("tile_size")
    in_tiles = f" in tiles of {tile}" if tile else ""
    details += [f"input {', '.join(sizes)} pixels{in_tiles}"] if sizes else []
    return label + (f" ({', '.join(details)})" if details else "")


def _commit(versions: dict[str, Any]) -> str:
    commit = str(versions.get("git_commit") or "")[:12]
    return f"{commit} with changes" if commit and versions.get("git_dirty") else commit


def _device(run: Run) -> str:
    cost, provenance = run.metrics.get("cost") or {}, run.metrics.get("provenance") or {}
    return str(cost.get("device") or provenance.get("device") or "")


def _machine(versions: dict[str, Any]) -> str:
    if not versions.get("processor"):
        return ""
    return f"{versions['processor']}, {versions.get('cpu_count')} processors, {versions.get('platform')}"


def _software(versions: dict[str, Any]) -> str:
    if not versions.get("sanflow"):
        return ""
    packages = versions.get("packages") or {}
    named = {"sanflow": versions["sanflow"], "Python": versions.get("python")}
    named |= {name: packages[name] for name in ("torch", "torchvision", "timm", "numpy") if name in packages}
    return ", ".join(f"{name} {version}" for name, version in named.items())


def _training_time(runs: Sequence[Run]) -> str:
    """Return the time of all trainings together; nothing if none is known."""
    seconds = [(run.metrics.get("cost") or {}).get("training_seconds") for run in runs]
    known = [float(value) for value in seconds if value is not None and not math.isnan(float(value))]
    if not known:
        return ""
    lacking = f", not known of {len(seconds) - len(known)} runs" if len(known) < len(seconds) else ""
    hours = sum(known) / 3600
    total = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return f"{total}, all runs together{lacking}"
