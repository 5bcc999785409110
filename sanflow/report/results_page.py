"""Write a benchmark's results as one Markdown page, from the copies of `copies.py` and the authors' findings alone."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sanflow.benchmark_json import read_outline
from sanflow.data.registry import load_registry
from sanflow.errors import ConfigError, IntegrityError
from sanflow.evaluation.metric_table import HEADLINE, METRICS
from sanflow.files import atomic_path
from sanflow.report.copies import DIGESTS, check_copies
from sanflow.report.missing import missing_runs
from sanflow.report.names import TABLES
from sanflow.report.runs import read_runs
from sanflow.report.summary import Summary
from sanflow.report.tables import build_table
from sanflow.report.tables.cells import points
from sanflow.report.tables.paired import paired_table
from sanflow.report.tables.render import escape_markdown, to_markdown
from sanflow.report.what_was_run import what_was_run

FINDINGS = "findings.md"
# Tables of single metrics would make the page long; `intervals` has their numbers.
NOT_SHOWN = {*METRICS, *(f"published_{metric}" for metric in HEADLINE), "paired"}
# With fewer categories even a sign test of differences that all agree stays above 5 %: 2 ** (1 - 5) = 0.0625.
FEWEST_CATEGORIES = 6


def copies_of(page: Path) -> Path:
    """Return the folder of the copies from which a page is made: docs/results for docs/results.md.

    Raises:
        ConfigError: If the page's name does not end with .md.
    """
    if page.suffix != ".md":
        raise ConfigError(f"Expected a page whose name ends with .md, but got {page}.")
    return page.with_suffix("")


def write_page(page: Path) -> None:
    """Write the page from its copies.

    Raises:
        IntegrityError: If the copies are not those that their digests list.
    """
    text = results_page(page)
    with atomic_path(page) as temporary:
        temporary.write_text(text, "utf-8")


def check_page(page: Path) -> None:
    """Check the copies, and that the page is what they give.

    Raises:
        IntegrityError: If either is not so; names the first line of the page that differs.
    """
    expected = results_page(page).splitlines()
    if not page.exists():
        raise IntegrityError(f"Expected a page at {page}, but there is none. Write it: `sanflow record`.")
    found = page.read_text("utf-8").splitlines()
    if found != expected:
        number = next(
            (number for number, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
            min(len(found), len(expected)),
        )
        raise IntegrityError(
            f"Expected {page} as `sanflow record` writes it, but line {number + 1} is {_line(found, number)} instead "
            f"of {_line(expected, number)}. Write text of your own into {copies_of(page) / FINDINGS}, and the page "
            "again with `sanflow record`."
        )


def results_page(page: Path) -> str:
    """Return the text of the page at a path, from its copies.

    Raises:
        IntegrityError: If the copies are not those that their digests list.
    """
    folder = copies_of(page)
    check_copies(folder)
    runs, outline = read_runs(folder), read_outline(folder) or {}
    summary = Summary(runs)
    tables = [build_table(name, runs) for name in TABLES if name not in NOT_SHOWN]
    paired = paired_table(summary, fewest_pairs=2)
    parts = [f"# {escape_markdown(outline.get('title') or outline['name'])}", _introduction(folder.name)]
    if (folder / FINDINGS).exists():
        parts += ["## Findings", (folder / FINDINGS).read_text("utf-8").strip()]
    parts += ["## What was run", _facts(what_was_run(summary.runs))]
    parts += [to_markdown(table, level=2).strip() for table in [*tables, paired] if table.sections]
    parts += ["## What is decided", *_decided(summary, paired.data)]
    parts += ["## What was not run", *_not_run(outline, summary, missing_runs(folder, runs))]
    return "\n\n".join(parts) + "\n"


def _line(lines: Sequence[str], number: int) -> str:
    return repr(lines[number]) if number < len(lines) else "missing"


def _introduction(folder: str) -> str:
    return (
        f"*Written by `sanflow record` from the files in [{folder}/]({folder}/) alone. `sanflow record --check` "
        f"compares them with their digests in [{DIGESTS}]({folder}/{DIGESTS}), and this page with them. Do not edit "
        f"it: findings of the authors are in {folder}/{FINDINGS}.*"
    )


def _facts(facts: Sequence[tuple[str, list[str]]]) -> str:
    lines = []
    for name, texts in facts:
        several = len(texts) > 1
        lines.append(f"- **{name}**:" + ("" if several else f" {escape_markdown(texts[0])}"))
        lines += [f"  - {escape_markdown(text)}" for text in texts if several]
    return "\n".join(lines)


def _decided(summary: Summary, paired: Any) -> list[str]:
    """Say what the paired differences show, and what no number of this page can show."""
    rule = (
        "A difference between two experiments is decided here if the 95 % interval of its paired comparison excludes "
        "zero. An interval needs two seeds or two categories. The intervals of single runs decide nothing about a "
        "difference: they are over test images, and other trainings are not in them."
    )
    shares = "\n".join(f"- {_share(summary, dataset)}" for dataset in summary.datasets)
    records = paired.to_dict("records")
    found = [record for record in records if record["low"] > 0 or record["high"] < 0]
    count = (
        f"Compared with intervals: {len(records)}. Decided: {len(found)}. Not decided: {len(records) - len(found)}. "
        "Where nothing differs, one interval in twenty excludes zero by chance."
    )
    lines = "\n".join(f"- {_difference(summary, record)}" for record in found)
    return [rule, shares, *([count] if records else []), *([lines] if lines else [])]


def _share(summary: Summary, dataset: str) -> str:
    """Say how much of a data set was run, and what that can decide."""
    categories = summary.categories(dataset)
    seeds = {run.seed for run in summary.runs if run.dataset == dataset}
    entry = load_registry().get(dataset)
    all_of_them = f" of {len(entry.categories)}" if entry else ""
    known = f"{_count(len(categories), 'category', 'categories')}{all_of_them}, {_count(len(seeds), 'seed', 'seeds')}"
    if len(categories) == 1 and len(seeds) == 1:
        verdict = "No difference has an interval: nothing is decided."
    elif len(categories) == 1:
        verdict = "Differences are over seeds, and one category decides nothing about other categories."
    elif len(categories) < FEWEST_CATEGORIES:
        verdict = f"Differences are over categories, and {len(categories)} decide nothing about other categories."
    else:
        verdict = "Differences are over categories."
    return f"{escape_markdown(dataset)}: {known}. {verdict}"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _difference(summary: Summary, record: dict[str, Any]) -> str:
    names = f"{summary.labels[record['second']]} − {summary.labels[record['first']]}"
    mean, low, high = (points(record[name]) for name in ("mean_difference", "low", "high"))
    return escape_markdown(
        f"{record['dataset']}, {METRICS[record['metric']].title}: {names} is {mean} points "
        f"({low} … {high}; {record['n']} {record['pairs']})"
    )


def _not_run(outline: dict[str, Any], summary: Summary, missing: Sequence[str]) -> list[str]:
    """Name what is missing, what the benchmark can run beyond its plan, and the commands."""
    name, every = outline["name"], f"snakemake --config benchmark={outline['name']}"
    parts = []
    if missing:
        lines = "\n".join(f"- {escape_markdown(line)}" for line in missing)
        parts.append(f"Planned and not finished:\n\n{lines}\n\n`{every}` runs all of it and repeats nothing.")
    else:
        parts.append(f"All planned runs are finished: `{every}`.")
    known = set(summary.experiments())
    optional = [key for key, datasets in outline.get("runs_on", {}).items() if not datasets and key not in known]
    first = summary.datasets[0]
    if optional:
        command = _targets(name, first, summary.categories(first)[:1], optional, 0)
        parts.append(f"Experiments of the benchmark that run only by name:\n\n```sh\n{command}\n```")
    for dataset in summary.datasets:
        categories, experiments = summary.categories(dataset), summary.experiments(dataset)
        seeds = {run.seed for run in summary.runs if run.dataset == dataset}
        if len(seeds) == 1:
            command = _targets(name, dataset, categories, experiments, max(seeds) + 1)
            parts.append(f"A second seed on {escape_markdown(dataset)}:\n\n```sh\n{command}\n```")
        entry = load_registry().get(dataset)
        others = [category for category in entry.categories if category not in categories] if entry else []
        if others:
            command = _targets(name, dataset, others, experiments, min(seeds))
            parts.append(f"Other categories of {escape_markdown(dataset)}:\n\n```sh\n{command}\n```")
    return parts


def _targets(name: str, dataset: str, categories: Sequence[str], experiments: Sequence[str], seed: int) -> str:
    """Return the command that makes metrics.json of these runs."""
    places = "/".join(_braces(list(map(shlex.quote, names))) for names in (categories, experiments))
    return f"snakemake results/{name}/{dataset}/{places}/seed{seed}/metrics.json --config benchmark={name}"


def _braces(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
