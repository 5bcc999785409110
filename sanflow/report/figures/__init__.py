"""Figures: the files of runs in, PDF and PNG out.

Role: show what the runs of a benchmark found. Represents: one function per kind of figure, and how they look.
Layer: uses (4). Depends on: runs, maps, scores, published, data, files. No torch, no window.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sanflow.data.index import read_index
from sanflow.errors import not_among
from sanflow.evaluation.metric_table import HEADLINE
from sanflow.report.figures import gather
from sanflow.report.figures.style import save, styled
from sanflow.report.runs import Run, in_order, read_runs

# Kind -> what draws it, for one category.
PER_CATEGORY: dict[str, gather.DrawCategory] = {
    "contact_sheet": gather.contact,
    "variance": gather.variance,
    "histograms": gather.histograms,
    "curves": gather.curves,
    "latents": gather.latents,
    "training": gather.training,
}
KINDS = (*PER_CATEGORY, "bars")
ENDINGS = (".png", ".pdf")

__all__ = ["ENDINGS", "KINDS", "PER_CATEGORY", "draw_bars", "draw_category", "plan_figures", "write_figure"]


def draw_category(
    kind: str,
    runs: Sequence[Run],
    index_path: str | os.PathLike[str],
    outputs: Iterable[str | os.PathLike[str]],
) -> list[Path]:
    """Draw a figure of one category.

    Arguments:
        kind: A key of `PER_CATEGORY`.
        runs: All runs of this category; those of the lowest seed are shown.
        index_path: index.csv of the category.
        outputs: Files to write; their endings say the formats.

    Returns:
        The files.
    """
    with styled():
        return save(PER_CATEGORY[kind](runs, read_index(Path(index_path))), outputs)


def draw_bars(metric: str, runs: Sequence[Run], outputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Draw the bars of one metric over all categories.

    Arguments:
        metric: A key of metrics.json.
        runs: All runs of the benchmark.
        outputs: Files to write.

    Returns:
        The files.
    """
    with styled():
        return save(gather.bars(runs, metric), outputs)


@dataclasses.dataclass(frozen=True)
class PlannedFigure:
    """A figure to draw: `name` is a metric for bars, else the category's folder."""

    kind: str
    name: str
    runs: Sequence[Run]
    index_path: Path
    outputs: list[Path]


def plan_figures(
    results: str | os.PathLike[str], folder: str | os.PathLike[str], kinds: Iterable[str] | None = None
) -> list[PlannedFigure]:
    """All figures of a benchmark: `folder`/bars/<metric> and `folder`/<kind>/<data set>/<category>, PNG and PDF.

    Arguments:
        results: Its folder, `results/<benchmark>`.
        folder: Where they shall stand.
        kinds: Which kinds; all if None.

    Raises:
        ConfigError: If there is no such kind.
    """
    wanted = list(kinds or KINDS)
    for kind in wanted:
        if kind not in KINDS:
            raise not_among("a kind of figure, one of", KINDS, kind)
    runs = read_runs(results)
    plan = []
    for kind in wanted:
        if kind == "bars":
            for metric in HEADLINE:
                plan.append(PlannedFigure(kind, metric, runs, Path(), _files(Path(folder, kind, metric))))
            continue
        for dataset, category in in_order((run.dataset, run.category) for run in runs):
            own = [run for run in runs if (run.dataset, run.category) == (dataset, category)]
            index_path = Path(results, dataset, category, "index.csv")
            name = f"{dataset}/{category}"
            plan.append(PlannedFigure(kind, name, own, index_path, _files(Path(folder, kind, dataset, category))))
    return plan


def write_figure(figure: PlannedFigure) -> list[Path]:
    """Draw a planned figure and write its files."""
    if figure.kind == "bars":
        return draw_bars(figure.name, figure.runs, figure.outputs)
    return draw_category(figure.kind, figure.runs, figure.index_path, figure.outputs)


def _files(stem: Path) -> list[Path]:
    # Not with_suffix: a category's name may hold dots.
    return [stem.with_name(stem.name + ending) for ending in ENDINGS]
