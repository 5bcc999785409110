"""Training curves of a category: loss and learning rate by epoch; a line per experiment and seed."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from sanflow.data.index import Index
from sanflow.files import read_json
from sanflow.report.figures.style import add_notes, full_width, is_narrow, looks, message_figure, new_figure, plain
from sanflow.report.runs import Run, labels_of, notes_of

History = Sequence[Mapping[str, Any]]


def draw(runs: Sequence[Run], index: Index) -> Figure:
    """Draw the training curves of a category."""
    labels = {name: plain(label) for name, label in labels_of(runs).items()}
    histories: dict[str, list] = {label: [] for label in labels.values()}
    for run in runs:
        file = run.folder / "train.json"
        if run.epoch is None and file.exists():
            histories[labels[run.experiment]].append(read_json(file).get("history") or [])
    return training_curves(histories, notes_of(runs))


def training_curves(histories: Mapping[str, Sequence[History]], notes: Sequence[str] = ()) -> Figure:
    """Draw the training curves of a category.

    Arguments:
        histories: Experiment -> for each seed the `history` of train.json; experiments that did not train are left out.
        notes: Small print.
    """
    trained = {label: [own for own in seeds if own] for label, seeds in histories.items()}
    trained = {label: seeds for label, seeds in trained.items() if seeds}
    if not trained:
        return message_figure("No experiment was trained here.")
    styles = looks(histories)
    figure = new_figure(full_width(), 4.4 if is_narrow() else 2.6)
    loss, rate = figure.subplots(2, 1) if is_narrow() else figure.subplots(1, 2)
    for label, seeds in trained.items():
        for number, history in enumerate(seeds):
            epochs = [one["epoch"] for one in history]
            style = {key: styles[label][key] for key in ("color", "linestyle", "marker")}
            style |= {"markersize": 3.5, "label": label if number == 0 else None, "alpha": 1.0 if number == 0 else 0.5}
            loss.plot(epochs, [one["loss"] for one in history], **style)
            rate.plot(epochs, [one["learning_rate"] for one in history], **style)
    loss.set(title="Loss", xlabel="epoch", ylabel="mean training loss")
    rate.set(title="Learning rate", xlabel="epoch", ylabel="at the end of the epoch", yscale="log")
    last = max(one["epoch"] for seeds in trained.values() for history in seeds for one in history)
    for axes in (loss, rate):
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(FixedLocator(range(1, last + 1)) if last < 10 else MaxNLocator(integer=True))
    loss.legend(handlelength=3)
    add_notes(figure, notes)
    return figure
