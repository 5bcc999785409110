"""Hold out good training images, from a seed, so that a fit does not see them."""

import dataclasses

import numpy as np
import pandas as pd

from sanflow.data.index import Index
from sanflow.errors import ConfigError

STREAM = 5


def split_training(index: Index, fraction: float, seed: int) -> tuple[Index, Index | None]:
    """Split the good training images of a category.

    A data set with a validation split of its own gives that instead, whatever the fraction. Images of one group
    (several photographs of one part) stay together, where the index has groups.

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
    chosen = trained[_chosen(table.loc[trained], fraction, seed)]
    if not 0 < len(chosen) < len(trained):
        raise ConfigError(
            f"Expected `calibration_fraction` to leave training images on both sides, but {fraction} of the "
            f"{len(trained)} of {index.dataset}/{index.category} are {len(chosen)}. Choose another fraction."
        )
    return dataclasses.replace(index, table=table.drop(chosen)), _as_test(index, table.loc[chosen])


def _chosen(rows: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """Return True for the held-out rows: whole groups, in a seeded order, until the fraction is reached."""
    groups = rows["group"].where(rows["group"] != "", rows["image"]) if "group" in rows else rows["image"]
    names = sorted(set(groups))
    # RandomState, not Generator: only the former's stream is frozen across numpy versions.
    random = np.random.RandomState(np.random.SeedSequence([seed, STREAM]).generate_state(8))
    sizes = groups.value_counts()
    wanted, n_held, held = round(fraction * len(rows)), 0, set()
    for place in random.permutation(len(names)):
        if n_held >= wanted:
            break
        held.add(names[place])
        n_held += int(sizes[names[place]])
    return groups.isin(held).to_numpy()


def _as_test(index: Index, rows: pd.DataFrame) -> Index:
    """Return the category with these images as its test images, so that they are read as test images are."""
    return dataclasses.replace(index, table=rows.assign(split="test").reset_index(drop=True))
