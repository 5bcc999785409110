"""What the statistics network says: the variance it predicts for normal features, beside the image."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from sanflow.report.figures.style import (
    PAGE_WIDTH,
    TRUTH,
    VARIANCE_COLOURS,
    add_notes,
    message_figure,
    new_figure,
    without_ticks,
)


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
    cell = min(1.15, (PAGE_WIDTH - 0.9) / n_images)
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
    add_notes(figure, notes)
    return figure
