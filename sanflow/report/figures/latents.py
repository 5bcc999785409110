"""Draw a t-SNE of latent vectors: it shows whether the flow separates anomalous locations from normal ones."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from sanflow.data.index import Index
from sanflow.report.figures.inputs import first_seeds, read_extras
from sanflow.report.figures.style import (
    ANOMALOUS,
    NORMAL,
    add_notes,
    full_width,
    is_narrow,
    message_figure,
    new_figure,
    without_ticks,
)
from sanflow.report.runs import Run, notes_of

MOST = 500
SEED = 0


def draw(runs: Sequence[Run], index: Index) -> Figure:
    """Draw the latents of a category."""
    found = {}
    for label, run in first_seeds(runs).items():
        extras = read_extras(run)
        if extras is not None and extras.latents is not None and extras.latent_labels is not None:
            found[label] = (extras.latents, extras.latent_labels, str(extras.latent_scale))
    return latents_of_category(found, notes_of(runs))


def latents_of_category(latents: Mapping[str, tuple[np.ndarray, np.ndarray, str]], notes: Sequence[str] = ()) -> Figure:
    """Draw the latents of a category, a panel per experiment.

    Arguments:
        latents: Experiment -> (M, C) latents, (M,) labels, name of their scale.
        notes: Notes in small print at the end of the figure.
    """
    if not latents:
        return message_figure("No experiment has latent vectors here.")
    n_columns = min(2 if is_narrow() else 3, len(latents))
    n_rows = -(-len(latents) // n_columns)
    side = min(3.2, full_width() / n_columns)
    figure = new_figure(max(3.4, side * n_columns), side * n_rows + 0.3)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, (label, (latents_MC, labels_M, scale)) in zip(panels.flat, latents.items(), strict=False):
        points_M2, labels = embed(latents_MC, labels_M)
        for anomalous, colour, marker, name in ((False, NORMAL, "o", "normal"), (True, ANOMALOUS, "^", "anomalous")):
            own = points_M2[labels == anomalous]
            axes.scatter(
                own[:, 0],
                own[:, 1],
                s=7,
                c=colour,
                marker=marker,
                alpha=0.6,
                linewidths=0,
                label=f"{name} ({len(own)})",
            )
        axes.set_title(f"{label}, {scale}")
        axes.legend(loc="best", handletextpad=0.1, fontsize=6.5, frameon=True, framealpha=0.7, edgecolor="none")
        without_ticks(axes)
    for axes in panels.flat[len(latents) :]:
        axes.axis("off")
    add_notes(
        figure, ["t-SNE of a sample of latents from the test images; distances between groups mean little.", *notes]
    )
    return figure


def embed(latents_MC: np.ndarray, labels_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embed at most `MOST` latents in two dimensions by t-SNE with a fixed seed.

    Returns:
        (m, 2) points and (m,) labels.
    """
    from sklearn.manifold import TSNE  # loads slowly
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(SEED)
    chosen = rng.permutation(len(latents_MC))[:MOST]
    values = latents_MC[chosen].astype(np.float32)
    perplexity = float(np.clip(len(values) / 4, 1, 30))
    if len(values) < 3:
        return np.zeros((len(values), 2), np.float32), labels_M[chosen]
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=SEED, max_iter=500, n_jobs=1)
    # One thread: with so few points, more threads take longer, and much longer if other jobs use the processors.
    with threadpool_limits(1):
        return tsne.fit_transform(values), labels_M[chosen]
