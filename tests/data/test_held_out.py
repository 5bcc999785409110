"""Held-out parts: chosen from the seed, whole groups, never on both sides."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from sanflow.data.held_out import split_training
from sanflow.data.index import Index
from sanflow.errors import ConfigError


def index_of(n_train=20, n_test=4, groups=None, validation=0):
    rows = [("train", f"t{i:02d}.png") for i in range(n_train)]
    rows += [("test", f"x{i}.png") for i in range(n_test)] + [("validation", f"v{i}.png") for i in range(validation)]
    table = pd.DataFrame(rows, columns=["split", "image"]).assign(
        label=0, defect_type="good", mask="", width=8, height=8, sha256="", mask_sha256="", defect_pixels=0
    )
    if groups is not None:
        table["group"] = [groups(name) for name in table.image]
    return Index("d", "c", Path("/d"), table)


def test_nothing_is_held_out_by_default():
    index = index_of()
    assert split_training(index, 0.0, 0) == (index, None)


def test_the_parts_are_split_and_nothing_is_lost():
    index = index_of()
    training, held_out = split_training(index, 0.25, seed=3)
    assert (len(training.train), len(held_out.test)) == (15, 5)
    assert set(training.train.image) | set(held_out.test.image) == set(index.train.image)
    assert not set(training.train.image) & set(held_out.test.image)
    assert list(training.test.image) == list(index.test.image)
    assert len(held_out.train) == 0


def test_the_choice_follows_from_the_seed():
    def chosen(seed):
        return set(split_training(index_of(), 0.25, seed)[1].test.image)

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_photographs_of_one_part_stay_together():
    index = index_of(groups=lambda name: name[1:2])
    training, held_out = split_training(index, 0.4, seed=0)
    groups = [set(part["group"]) for part in (training.train, held_out.test)]
    assert groups[0].isdisjoint(groups[1])


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_validation_split_of_the_data_set_is_used_instead(fraction):
    index = index_of(validation=6)
    training, held_out = split_training(index, fraction, seed=0)
    assert len(training.train) == 20
    assert [name[0] for name in held_out.test.image] == ["v"] * 6


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_fraction_that_leaves_a_side_empty_is_refused(fraction):
    index = dataclasses.replace(index_of(n_train=3))
    with pytest.raises(ConfigError, match="leave training images on both sides"):
        split_training(index, fraction, 0)
