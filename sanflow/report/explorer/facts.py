"""Collect the top of the explorer: what was run, the headline table, missing runs, how to cite."""

import datetime
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sanflow.benchmark_json import read_outline
from sanflow.report.missing import missing_notes, missing_runs
from sanflow.report.runs import Run, in_order
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import Table
from sanflow.report.tables.overview import overview_table
from sanflow.report.tables.render import html_section

CITATIONS = (
    "The sanflow contributors: sanflow, a reproducible benchmark for visual anomaly detection. Software, version "
    "and commit as above.",
    "D. Kim, S. Baik, T. H. Kim: SANFlow: Semantic-Aware Normalizing Flow for Anomaly Detection. Advances in Neural "
    "Information Processing Systems 36, 2023.",
)
PLAN_UNKNOWN = "benchmark.json does not list which runs were planned, so it is not known whether any is missing."


def facts_of(results: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Collect the top of the page.

    Arguments:
        results: Folder of the benchmark.
        runs: Its runs of the last epoch.

    Returns:
        JSON values: `title`, `name`, `facts` (pairs of a name and lines of text), `table`, `missing`, `warnings` and
        `cite`.
    """
    outline = read_outline(results) or {}
    summary = Summary(runs)
    return {
        "name": outline.get("name") or results.resolve().name,
        "title": outline.get("title") or outline.get("name") or results.resolve().name,
        "facts": _what_was_run(runs, summary),
        "table": _table_of(overview_table(summary)),
        "missing": missing_notes(missing_runs(results, runs)) if outline.get("runs_on") else [PLAN_UNKNOWN],
        "warnings": warnings_of(runs),
        "cite": list(CITATIONS),
    }


def summary_html(facts: dict[str, Any], runs: Sequence[Run]) -> str:
    """Return the same as a piece of HTML, for Snakemake's report; the explorer is linked beside the report's file."""
    table = overview_table(Summary(runs))
    escape = html.escape
    parts = [f"<style>.best {{ font-weight: 700; }}</style><p><strong>{escape(facts['title'])}</strong></p>"]
    parts.append("<p>Every test image with its maps: <a href='explorer/index.html' target='_blank'>the explorer</a>, ")
    parts.append("explorer/index.html beside this report's file.</p>")
    parts.append(f"<p><strong>{escape(table.title)}</strong></p><p>{escape(table.caption)}</p>")
    for number, section in enumerate(table.sections):
        parts.append(f"<p>{escape(section.heading)}</p>{html_section(section, f'overview{number}')}")
    parts += [f"<p>{escape(text)}</p>" for text in (*table.notes, *facts["missing"], *facts["warnings"])]
    parts += [f"<p>{escape(name)}: {'; '.join(map(escape, lines))}</p>" for name, lines in facts["facts"]]
    return "\n".join(parts) + "\n"


def warnings_of(runs: Iterable[Run]) -> list[str]:
    """List the warnings of all runs, each text once with the runs that it is of."""
    places: dict[str, list[str]] = {}
    for run in runs:
        for text in run.metrics.get("warnings") or []:
            places.setdefault(text, []).append(f"{run.dataset}/{run.category}/{run.experiment}/seed{run.seed}")
    return [
        f"{text} ({', '.join(names[:3])}{f' and {len(names) - 3} more runs' if len(names) > 3 else ''})"
        for text, names in places.items()
    ]


def _what_was_run(runs: Sequence[Run], summary: Summary) -> list[tuple[str, list[str]]]:
    provenances = [run.metrics.get("provenance") or {} for run in runs]
    commits = in_order(_commit(provenance.get("evaluation") or {}) for provenance in provenances)
    devices = in_order(_device(run) for run in runs)
    finished = max((run.folder / "metrics.json").stat().st_mtime for run in runs)
    facts = [
        ("Data sets", [_dataset(name, runs) for name in summary.datasets]),
        ("Experiments", [_experiment(name, runs, summary) for name in summary.experiments()]),
        ("Seeds", [", ".join(str(seed) for seed in sorted({run.seed for run in runs}))]),
        ("Commit", [commit for commit in commits if commit]),
        ("Finished", [datetime.datetime.fromtimestamp(finished, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")]),
        ("Device", [device for device in devices if device]),
        ("Training time", _training_time(runs)),
    ]
    return [(name, lines) for name, lines in facts if lines]


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


def _experiment(name: str, runs: Sequence[Run], summary: Summary) -> str:
    own = [run for run in runs if run.experiment == name]
    identity = (own[0].metrics.get("provenance") or {}).get("encoder") or {}
    encoder = own[0].settings.get("encoder") or identity.get("name")
    sizes = in_order(" x ".join(map(str, run.metrics["input_size"])) for run in own if "input_size" in run.metrics)
    details = [f"encoder {encoder}"] if encoder else []
    tile = own[0].settings.get("tile_size")
    in_tiles = f" in tiles of {tile}" if tile else ""
    details += [f"input {', '.join(sizes)} pixels{in_tiles}"] if sizes else []
    return summary.labels[name] + (f" ({', '.join(details)})" if details else "")


def _commit(evaluation: dict[str, Any]) -> str:
    commit = str(evaluation.get("git_commit") or "")[:12]
    return f"{commit} with changes" if commit and evaluation.get("git_dirty") else commit


def _device(run: Run) -> str:
    cost, provenance = run.metrics.get("cost") or {}, run.metrics.get("provenance") or {}
    return str(cost.get("device") or provenance.get("device") or "")


def _training_time(runs: Sequence[Run]) -> list[str]:
    """Return the time of all trainings together, if any is known."""
    seconds = [(run.metrics.get("cost") or {}).get("training_seconds") for run in runs]
    known = [float(value) for value in seconds if value is not None and not math.isnan(float(value))]
    if not known:
        return []
    lacking = f", not known of {len(seconds) - len(known)} runs" if len(known) < len(seconds) else ""
    hours = sum(known) / 3600
    total = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return [f"{total}, all runs together{lacking}"]


def _table_of(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "caption": table.caption,
        "notes": list(table.notes),
        "sections": [
            {
                "heading": section.heading,
                "header": list(section.header),
                "textColumns": section.text_columns,
                "rows": [[{"text": cell.text, "best": cell.best} for cell in row] for row in section.rows],
            }
            for section in table.sections
        ],
    }
