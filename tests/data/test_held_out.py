"""Held-out parts: chosen from the seed, with all their photographs, never on both sides."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from sanflow.data.held_out import halve, split_training
from sanflow.data.index import Index
from sanflow.errors import ConfigError


def index_of(n_train=20, n_test=4, validation=0, **named):
    rows = [("train", f"t{i:02d}.png") for i in range(n_train)]
    rows += [("test", f"x{i}.png") for i in range(n_test)] + [("validation", f"v{i}.png") for i in range(validation)]
    table = pd.DataFrame(rows, columns=["split", "image"]).assign(
        label=0, defect_type="good", mask="", width=8, height=8, sha256="", mask_sha256="", defect_pixels=0
    )
    for column, name_of in named.items():
        table[column] = [name_of(name) for name in table.image]
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
    def part(name):
        return "" if name == "t00.png" else f"part {int(name[1:3]) // 3}"

    index = index_of(n_train=60, n_test=0, part=part)
    for seed in range(20):
        training, held_out = split_training(index, 0.25, seed)
        parts = [set(side.part) - {""} for side in (training.train, held_out.test)]
        assert parts[0].isdisjoint(parts[1])
        assert len(parts[0] | parts[1]) == 20
        assert 15 <= len(held_out.test) <= 17  # 15 are wanted, and the last part is taken whole


def test_conditions_do_not_stay_together():
    """What is held out has to be like the rest, so a light or a day is on both sides."""
    index = index_of(group=lambda name: "night" if int(name[1]) else "day")
    training, held_out = split_training(index, 0.5, seed=0)
    assert set(training.train.group) == set(held_out.test.group) == {"day", "night"}
    assert list(held_out.test.image) == list(split_training(index_of(), 0.5, seed=0)[1].test.image)


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


def test_held_out_parts_are_halved_and_the_choice_of_the_first_half_does_not_change():
    held_out = split_training(index_of(), 0.5, seed=3)[1]
    chooses, calibrates = halve(held_out, seed=3)
    assert (len(chooses.test), len(calibrates.test)) == (5, 5)
    assert set(chooses.test.image) | set(calibrates.test.image) == set(held_out.test.image)
    assert not set(chooses.test.image) & set(calibrates.test.image)
    assert list(halve(held_out, seed=3)[0].test.image) == list(chooses.test.image)
    assert list(halve(held_out, seed=4)[0].test.image) != list(chooses.test.image)


def test_photographs_of_one_part_are_in_one_half():
    index = index_of(part=lambda name: name[1:2] + name[2:][:1] if name < "t15" else "z")
    held_out = split_training(index, 0.8, 0)[1]
    parts = [set(half.test["part"]) for half in halve(held_out, seed=0)]
    assert parts[0]
    assert parts[1]
    assert parts[0].isdisjoint(parts[1])


def test_one_held_out_part_cannot_be_halved():
    held_out = split_training(index_of(n_train=4), 0.25, seed=0)[1]
    with pytest.raises(ConfigError, match=r"for two halves, but 1 give 0 to one of them\. Set `calibration_fraction`"):
        halve(held_out, seed=0)
