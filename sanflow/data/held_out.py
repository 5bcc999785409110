"""Hold out good training images, from a seed, so that a fit does not see them."""

import dataclasses

import numpy as np
import pandas as pd

from sanflow.data.index import Index
from sanflow.data.parts import parts_of
from sanflow.errors import ConfigError

# Of the random numbers that hold images out, and of those that halve them.
STREAM, HALVES_STREAM = 5, 6


def split_training(index: Index, fraction: float, seed: int) -> tuple[Index, Index | None]:
    """Split the good training images of a category.

    A data set with a validation split of its own gives that instead, whatever the fraction. Photographs of one part
    stay together.

    Arguments:
        index: The category.
        fraction: Share of the training images to hold out, in [0, 1); 0 holds out none.
        seed: Seed of the run.

    Returns:
        The category without the held-out training images, and the category with these as its only test images; None
        where none are held out.

    Raises:
        ConfigError: If the fraction leaves no image on one of the two sides.
    """
    table = index.table
    validation = table.split == "validation"
    if validation.any():
        return index, _as_test(index, table[validation])
    if fraction == 0:
        return index, None
    trained = table.index[table.split == "train"]
    chosen = trained[_chosen(table.loc[trained], fraction, seed, STREAM)]
    if not 0 < len(chosen) < len(trained):
        raise ConfigError(
            f"Expected `calibration_fraction` to leave training images on both sides, but {fraction} of the "
            f"{len(trained)} of {index.dataset}/{index.category} are {len(chosen)}. Choose another fraction."
        )
    return dataclasses.replace(index, table=table.drop(chosen)), _as_test(index, table.loc[chosen])


def halve(held_out: Index, seed: int) -> tuple[Index, Index]:
    """Split held-out images in two: one half chooses an epoch or a setting, the other calibrates.

    Images that chose would make the calibration too favourable: the chosen epoch is one that scores them low.

    Arguments:
        held_out: From `split_training`.
        seed: Seed of the run.

    Returns:
        The half that chooses and the half that calibrates; photographs of one part are in one half.

    Raises:
        ConfigError: If one half is empty.
    """
    rows = held_out.test
    chooses = _chosen(rows, 0.5, seed, HALVES_STREAM)
    if not 0 < chooses.sum() < len(rows):
        raise ConfigError(
            f"Expected held-out images of {held_out.dataset}/{held_out.category} for two halves, but {len(rows)} give "
            f"{chooses.sum()} to one of them. Set `calibration_fraction` higher."
        )
    return _as_test(held_out, rows[chooses]), _as_test(held_out, rows[~chooses])


def _chosen(rows: pd.DataFrame, fraction: float, seed: int, stream: int) -> np.ndarray:
    """Return True for the held-out rows: whole parts, in a seeded order, until the fraction is reached."""
    parts = parts_of(rows)
    names = sorted(set(parts))
    # RandomState, not Generator: only the former's stream is frozen across numpy versions.
    random = np.random.RandomState(np.random.SeedSequence([seed, stream]).generate_state(8))
    sizes = parts.value_counts()
    wanted, n_held, held = round(fraction * len(rows)), 0, set()
    for place in random.permutation(len(names)):
        if n_held >= wanted:
            break
        held.add(names[place])
        n_held += int(sizes[names[place]])
    return parts.isin(held).to_numpy()


def _as_test(index: Index, rows: pd.DataFrame) -> Index:
    """Return the category with these images as its test images, so that they are read as test images are."""
    return dataclasses.replace(index, table=rows.assign(split="test").reset_index(drop=True))
