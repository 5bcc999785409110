"""Find the runs of a benchmark that benchmark.json lists and that are missing; tables are made of the others."""

import os
from collections.abc import Sequence

from sanflow.benchmark_json import read_outline
from sanflow.report.runs import Run, in_order

MOST_NAMED = 12


def missing_runs(results: str | os.PathLike[str], runs: Sequence[Run]) -> list[str]:
    """List what a benchmark should have run and has not: experiments without any run, then a line per category.

    Arguments:
        results: The benchmark's folder.
        runs: Those that were found.

    Returns:
        Lines such as "experiment theirs (all)", "mvtec_ad/cable (all)" and "mvtec_ad/screw (ours seed 1)"; none where
        the folder has no benchmark.json. Where that names no categories, those of the runs count.

    Raises:
        IntegrityError: If benchmark.json is damaged.
    """
    outline = read_outline(results) or {}
    last = [run for run in runs if run.epoch is None]
    found = {(run.dataset, run.category, run.experiment, run.seed) for run in last}
    seeds, runs_on = outline.get("seeds", []), outline.get("runs_on", {})
    known = {run.experiment for run in last}
    lines = [f"experiment {name} (all)" for name, datasets in runs_on.items() if datasets and name not in known]
    for dataset, listed in outline.get("datasets", {}).items():
        experiments = [name for name in known.intersection(runs_on) if dataset in runs_on[name]]
        experiments.sort(key=list(runs_on).index)
        categories = listed or in_order(run.category for run in last if run.dataset == dataset)
        if experiments and not categories:
            lines.append(f"{dataset} (all)")
        for category in categories:
            absent = {
                name: [seed for seed in seeds if (dataset, category, name, seed) not in found] for name in experiments
            }
            parts = [_with_seeds(name, own, seeds) for name, own in absent.items() if own]
            if experiments and all(len(own) == len(seeds) for own in absent.values()):
                parts = ["all"]
            if parts:
                lines.append(f"{dataset}/{category} ({', '.join(parts)})")
    return lines


def missing_notes(missing: Sequence[str]) -> list[str]:
    """Name the missing runs in one sentence; nothing if none is missing.

    Example:
        >>> missing_notes(["parts/nut (all)"])
        ['Missing, and in no number here: parts/nut (all).']
    """
    if not missing:
        return []
    more = [f"and {len(missing) - MOST_NAMED} more"] if len(missing) > MOST_NAMED else []
    return [f"Missing, and in no number here: {'; '.join([*missing[:MOST_NAMED], *more])}."]


def _with_seeds(experiment: str, absent: Sequence[int], seeds: Sequence[int]) -> str:
    if len(absent) == len(seeds):
        return experiment
    return f"{experiment} seed {', '.join(map(str, absent))}"
