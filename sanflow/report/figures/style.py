"""The style of figures: legible in print and for colour-blind readers, the same for one experiment in all figures.

Colours are those of Okabe and Ito (2008). Experiments differ in line style and marker too, so that they can be
distinguished in grey print. Figures are made without pyplot: nothing global is set, and no window is opened.
"""

import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sanflow.files import atomic_path
from sanflow.report.figures.fonts import OWN, use_fonts_that_have_the_letters

NORMAL, ANOMALOUS = "#0072B2", "#D55E00"
TRUTH, PREDICTED = "#56B4E9", "#E69F00"
EXPERIMENT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7F00")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
NOTE_SIZE = 6.5
MAP_COLOURS = "inferno"
VARIANCE_COLOURS = "cividis"
Width = Literal["page", "column"]
WIDTHS: dict[Width, float] = {"page": 7.2, "column": 3.5}  # inches: the text width of a page, and of one of two columns
RC: Any = {
    **seaborn.axes_style("ticks"),
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "hatch.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
    "font.sans-serif": [OWN],
    "pdf.fonttype": 42,  # text stays text in PDF
    "savefig.dpi": 200,
}


def styled(width: Width = "page") -> Any:
    """Set the style in which figures are drawn and saved, for a width in print."""
    return matplotlib.rc_context({**RC, "figure.figsize": (WIDTHS[width], WIDTHS[width])})


def full_width() -> float:
    """Return the width in inches that a figure may fill."""
    return float(matplotlib.rcParams["figure.figsize"][0])


def is_narrow() -> bool:
    """Return whether figures are drawn for one column of a page."""
    return full_width() < 0.75 * WIDTHS["page"]


def most_images() -> int:
    """Return how many images fit side by side."""
    return 4 if is_narrow() else 8


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of a size in inches, its panels spaced by content."""
    return Figure(figsize=(width, height), layout="constrained")


def looks(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Choose colour, line style and marker of each experiment, by its place in the order."""
    return {
        label: {
            "color": EXPERIMENT_COLOURS[number % len(EXPERIMENT_COLOURS)],
            "linestyle": LINES[number % len(LINES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        for number, label in enumerate(labels)
    }


def plain(text: str) -> str:
    r"""Escape text so that matplotlib prints it unchanged; it would read text between two dollars as a formula.

    Example:
        >>> print(plain("5$ to 9$"))
        5\$ to 9\$
    """
    return text.replace("$", r"\$")


def message_figure(text: str) -> Figure:
    """Make a figure that only says why there is nothing to show."""
    figure = new_figure(min(4.8, full_width()), 0.8)
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True, color="#424a53")
    return figure


def without_ticks(axes: Axes) -> None:
    """Prepare a panel for an image: no ticks, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.4)
        spine.set_color("#8c959f")


def add_notes(figure: Figure, notes: Sequence[str]) -> None:
    """Print notes below a figure that explain its marks."""
    if notes:
        columns = int(figure.get_figwidth() * 72 / (0.52 * NOTE_SIZE))  # a letter is about 0.52 of its size wide
        lines = [line for note in notes for line in textwrap.wrap(note, columns)]
        figure.supxlabel("\n".join(lines), fontsize=NOTE_SIZE, color="#424a53")


def save(figure: Figure, outputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Write a figure to each path, in the format of its ending, whole or not at all.

    Raises:
        StorageError: If the disk is full or the folder cannot be written.
    """
    files = [Path(output) for output in outputs]
    use_fonts_that_have_the_letters(figure)
    # The layout is computed once, not once per format.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for file in files:
        # No date inside: the same figure gives the same bytes.
        metadata = {"CreationDate": None} if file.suffix == ".pdf" else {"Software": "sanflow"}
        with atomic_path(file) as temporary:
            figure.savefig(temporary, metadata=metadata)
    return files
