"""The learning rate of each batch: warm-up, then half a cosine by epoch."""

import math


def learning_rate(
    epoch: int,
    batch: int,
    *,
    epochs: int,
    batches_per_epoch: int,
    base_lr: float,
    warmup_epochs: float = 2.0,
    final_factor: float = 1e-3,
) -> float:
    r"""Compute the learning rate of one batch.

    After the warm-up the cosine eta + (base - eta) (1 + cos(pi epoch / epochs)) / 2, with eta = base * final_factor,
    is constant within an epoch. During the warm-up the rate rises linearly with every batch, from base / 10 to the
    cosine's value at `warmup_epochs`.

    Arguments:
        epoch: Current epoch, from 0.
        batch: Current batch within the epoch (all its passes together), from 0.
        epochs: Epochs of the training.
        batches_per_epoch: Batches of an epoch, all its passes together.
        base_lr: Largest rate of the cosine.
        warmup_epochs: Length of the warm-up; fractions allowed, 0 for none.
        final_factor: The cosine's end, as a fraction of `base_lr`.

    Returns:
        The learning rate, > 0.

    Raises:
        ValueError: If the warm-up would take more than half of the training: if all epochs were warm-up, the rate
            would always be low.

    Example:
        >>> settings = dict(epochs=20, batches_per_epoch=12, base_lr=5e-4)
        >>> [round(learning_rate(epoch, 0, **settings), 6) for epoch in (0, 1, 2, 10, 19)]
        [5e-05, 0.000269, 0.000488, 0.00025, 4e-06]
    """
    if not 0 <= warmup_epochs <= epochs / 2:
        raise ValueError(
            f"Expected a warm-up of at most half of the {epochs} epochs, but got {warmup_epochs}; "
            "set warmup_epochs lower (fractions are allowed)."
        )

    def cosine(at: float) -> float:
        final = base_lr * final_factor
        return final + (base_lr - final) * (1 + math.cos(math.pi * at / epochs)) / 2

    done = epoch + batch / batches_per_epoch
    if done < warmup_epochs:
        start = base_lr / 10
        return start + (cosine(warmup_epochs) - start) * done / warmup_epochs
    return cosine(epoch)
