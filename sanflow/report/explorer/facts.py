"""Collect the top of the explorer: what was run, the headline table, missing runs, how to cite."""

import datetime
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sanflow.benchmark_json import read_outline
from sanflow.report.missing import missing_notes, missing_runs
from sanflow.report.runs import Run
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import Table
from sanflow.report.tables.overview import overview_table
from sanflow.report.tables.render import html_section
from sanflow.report.what_was_run import what_was_run

CITATIONS = (
    "The sanflow contributors: sanflow, a reproducible benchmark for visual anomaly detection. Software, version "
    "and commit as above.",
    "D. Kim, S. Baik, T. H. Kim: SANFlow: Semantic-Aware Normalizing Flow for Anomaly Detection. Advances in Neural "
    "Information Processing Systems 36, 2023.",
)
# Snakemake centres the text in the window; the top of a taller text is cut off unless the alignment is `safe`.
REPORT_STYLE = ".best { font-weight: 700; } .h-screen.items-center { align-items: safe center; }"
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
    finished = max((run.folder / "metrics.json").stat().st_mtime for run in runs)
    finished_at = datetime.datetime.fromtimestamp(finished, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "name": outline.get("name") or results.resolve().name,
        "title": outline.get("title") or outline.get("name") or results.resolve().name,
        "facts": [*what_was_run(runs), ("Finished", [finished_at])],
        "table": _table_of(overview_table(Summary(runs))),
        "missing": missing_notes(missing_runs(results, runs)) if outline.get("runs_on") else [PLAN_UNKNOWN],
        "warnings": warnings_of(runs),
        "cite": list(CITATIONS),
    }


def summary_html(facts: dict[str, Any], runs: Sequence[Run]) -> str:
    """Return the same as a piece of HTML, for Snakemake's report; the explorer is linked beside the report's file."""
    table = overview_table(Summary(runs))
    escape = html.escape
    parts = [f"<style>{REPORT_STYLE}</style><p><strong>{escape(facts['title'])}</strong></p>"]
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
