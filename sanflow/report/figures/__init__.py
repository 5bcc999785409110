"""Draw figures of runs as PDF and PNG. Each figure has a file here, which reads its data and draws it."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sanflow.data.index import Index, read_index
from sanflow.errors import not_among
from sanflow.report.figures import contact_sheet, curves, dots, histograms, latents, training, variance
from sanflow.report.figures.style import Width, save, styled
from sanflow.report.names import CATEGORY_FIGURES, FIGURE_FORMATS, FIGURES, figure_metrics_of
from sanflow.report.runs import Run, in_order, read_runs

# Name -> function that draws it; a test compares the names with those of `names`.
PER_CATEGORY: dict[str, Callable[[Sequence[Run], Index], Figure]] = {
    "contact_sheet": contact_sheet.draw,
    "variance": variance.draw,
    "histograms": histograms.draw,
    "curves": curves.draw,
    "latents": latents.draw,
    "training": training.draw,
}
PER_METRIC: dict[str, Callable[[Sequence[Run], str], Figure]] = {"dots": dots.draw}


@dataclasses.dataclass(frozen=True)
class PlannedFigure:
    """A figure to draw.

    Arguments:
        kind: One of `names.FIGURES`.
        name: The metric, or <data set>/<category>.
        runs: All runs it is made of; where one run is shown, that of the lowest seed.
        outputs: Files to write; their endings say the formats.
        index_path: index.csv of its category; None for a figure of a metric.
    """

    kind: str
    name: str
    runs: Sequence[Run]
    outputs: Sequence[Path]
    index_path: Path | None = None


def write_figure(figure: PlannedFigure, width: Width = "page") -> list[Path]:
    """Draw a figure and write its files.

    Arguments:
        figure: From `plan_figures`.
        width: Of a page, or of one of its two columns.

    Returns:
        The files.
    """
    with styled(width):
        if figure.index_path is None:
            drawn = PER_METRIC[figure.kind](figure.runs, figure.name)
        else:
            drawn = PER_CATEGORY[figure.kind](figure.runs, read_index(figure.index_path))
        return save(drawn, figure.outputs)


def plan_figures(
    results: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    kinds: Iterable[str] | None = None,
    runs: Sequence[Run] | None = None,
) -> list[PlannedFigure]:
    """Plan all figures of a benchmark: `folder`/<kind>/<metric> and `folder`/<kind>/<data set>/<category>, PNG and PDF.

    Arguments:
        results: Its folder, `results/<benchmark>`.
        folder: Where the figures are written.
        kinds: Which kinds; all if None.
        runs: The runs to show; all below `results` if None.

    Raises:
        ConfigError: If there is no such kind.
    """
    wanted = list(kinds or FIGURES)
    for kind in wanted:
        if kind not in FIGURES:
            raise not_among("a kind of figure, one of", FIGURES, kind)
    runs = read_runs(results) if runs is None else runs
    plan = []
    for kind in wanted:
        if kind in CATEGORY_FIGURES:
            for dataset, category in in_order((run.dataset, run.category) for run in runs):
                own = [run for run in runs if (run.dataset, run.category) == (dataset, category)]
                outputs = _files(Path(folder, kind, dataset, category))
                index_path = Path(results, dataset, category, "index.csv")
                plan.append(PlannedFigure(kind, f"{dataset}/{category}", own, outputs, index_path))
        else:
            for metric in figure_metrics_of(in_order(run.dataset for run in runs)):
                plan.append(PlannedFigure(kind, metric, runs, _files(Path(folder, kind, metric))))
    return plan


def _files(stem: Path) -> list[Path]:
    # Not with_suffix: a category's name may hold dots.
    return [stem.with_name(f"{stem.name}.{ending}") for ending in FIGURE_FORMATS]
