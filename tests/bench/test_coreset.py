"""The measurement of the coreset: the plain loop is the plain algorithm, and every number is there."""

import json

import torch
from typer.testing import CliRunner

from sanflow.bench.coreset import bench_coreset, random_patches
from sanflow.cli import app


def test_patches_are_repeatable_and_alike_at_one_cell():
    patches_ND = random_patches(3000, 16)
    assert patches_ND.shape == (3000, 16)
    assert torch.equal(patches_ND, random_patches(3000, 16))
    same_cell = (patches_ND[:1024] - patches_ND[1024:2048]).norm(dim=1).mean()
    other_cell = (patches_ND[:1023] - patches_ND[1:1024]).norm(dim=1).mean()
    assert same_cell < 0.6 * other_cell


def test_bench_says_what_is_extrapolated():
    found = bench_coreset(points=3000, dimensions=8, fraction=0.1, plain_picks=6)
    assert found["picks"] == 300
    assert found["plain"]["seconds_are"] == "extrapolated: 299 x median of 6 picks"
    assert found["times_faster"] == found["plain"]["seconds"] / found["seconds"]
    assert 2 <= found["passes_over_all_points"] <= 300


def test_bench_coreset_prints_json():
    done = CliRunner().invoke(app, ["bench", "coreset", "--points", "500", "--dimensions", "4", "--noise"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["data"] == "noise"
