"""The variance that the statistics network predicts for normal features, beside the image.

extras.npz has it at the pixels that the score grids read. The network is trained at these pixels only; its predictions
elsewhere, such as at the right and lower border, have no meaning and are not shown.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from sanflow.data.index import Index
from sanflow.report.figures.inputs import first_seeds, load_samples, read_extras
from sanflow.report.figures.style import (
    TRUTH,
    VARIANCE_COLOURS,
    add_notes,
    full_width,
    message_figure,
    most_images,
    new_figure,
    without_ticks,
)
from sanflow.report.runs import Run, notes_of

POSITIONS_NOTE = "Variance: at the pixels that the score grids read; the statistics network is trained at no others."


def draw(runs: Sequence[Run], index: Index) -> Figure:
    """Draw the variance maps of a category."""
    shown = first_seeds(runs)
    extras = {label: read_extras(run) for label, run in shown.items()}
    variances = {label: own.variance for label, own in extras.items() if own is not None and own.variance is not None}
    samples = load_samples(shown, index, most_images())
    chosen = {label: variance_Nhw[samples.chosen] for label, variance_Nhw in variances.items()}
    return variance_maps(samples.images, samples.masks, samples.kinds, chosen, notes_of(runs))


def variance_maps(
    images: np.ndarray,
    masks: np.ndarray,
    kinds: Sequence[str],
    variances: Mapping[str, np.ndarray],
    notes: Sequence[str] = (),
) -> Figure:
    """Draw images above variance maps, a row per experiment.

    Arguments:
        images: (n, H, W, 3) uint8.
        masks: (n, H, W) bool, outlined on the images.
        kinds: Kind of defect of each image.
        variances: Experiment -> (n, h, w) variance.
        notes: Small print.
    """
    if not variances:
        return message_figure("No experiment has a statistics network here, so there is no variance to show.")
    n_images, n_rows = len(images), 1 + len(variances)
    cell = min(1.15, (full_width() - 0.9) / n_images)
    figure = new_figure(cell * n_images + 0.9, cell * images.shape[1] / images.shape[2] * n_rows + 0.5)
    panels = figure.subplots(n_rows, n_images, squeeze=False)
    for column, (image, mask) in enumerate(zip(images, masks, strict=True)):
        panels[0, column].imshow(image)
        panels[0, column].set_title(kinds[column].replace("_", " "), fontsize=7)
        if mask.any() and not mask.all():
            panels[0, column].contour(mask.astype(float), levels=[0.5], colors=[TRUTH], linewidths=1.0)
    panels[0, 0].set_ylabel("image", fontsize=7, rotation=0, ha="right", va="center", labelpad=4)
    for row, (label, maps) in enumerate(variances.items(), 1):
        low, high = np.percentile(maps.astype(np.float32), [0.5, 99.5])
        for column, map_hw in enumerate(maps.astype(np.float32)):
            # The same frame as the image, whatever the grid's own size.
            drawn = panels[row, column].imshow(
                map_hw,
                cmap=VARIANCE_COLOURS,
                vmin=low,
                vmax=high,
                extent=(-0.5, images.shape[2] - 0.5, images.shape[1] - 0.5, -0.5),
            )
        panels[row, 0].set_ylabel(f"{label}\nvariance", fontsize=7, rotation=0, ha="right", va="center", labelpad=4)
        bar = figure.colorbar(drawn, ax=list(panels[row]), fraction=0.02, pad=0.01, aspect=12)
        bar.ax.tick_params(labelsize=6, length=2)
        bar.outline.set_linewidth(0.4)
    for axes in panels.flat:
        without_ticks(axes)
    add_notes(figure, [POSITIONS_NOTE, *notes])
    return figure
