"""What is told before any work: categories, files and encoders that cannot be."""

import pytest
import yaml
from typer.testing import CliRunner

from sanflow.cli import app
from sanflow.errors import ConfigError, DataError
from sanflow.pipeline.benchmark import load_benchmark
from sanflow.pipeline.preflight import check_benchmark
from tests.helpers.miniatures import mvtec

BUNDLED = {"method": "sanflow", "encoder": "timm/tf_efficientnet_lite0.in1k", "weights": "bundled", "input_size": 64}
CAIT = {"encoder": "timm/cait_xxs24_224.fb_dist_in1k", "weights": "random", "taps": ["blocks.1"]}
MAPS = {"method": "external", "maps": "maps/{dataset}/{category}"}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Write a benchmark of experiments on two categories of one's own, and check it."""
    monkeypatch.chdir(tmp_path)
    for category in ("nut", "screw"):
        mvtec(tmp_path / "mine", category)

    def written(datasets=None, results=None, **experiments):
        datasets = datasets or {"parts": {"kind": "folder", "root": "mine"}}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump({"datasets": datasets, "experiments": experiments}))
        return check_benchmark(load_benchmark("small.yaml"), results)

    return written


def test_a_benchmark_that_can_run(check):
    assert check(a=BUNDLED) == {"parts": ["nut", "screw"]}
    result = CliRunner().invoke(app, ["check", "small.yaml"], catch_exceptions=False)
    assert "data set    parts: nut, screw" in result.output
    assert not CliRunner().invoke(app, ["check", "small.yaml", "--quiet"], catch_exceptions=False).output


@pytest.mark.parametrize(
    ("datasets", "error", "message"),
    [
        ({"photo_textures": {"categories": ["brik"]}}, ConfigError, "Did you mean 'brick'"),
        ({"photo_texture": {}}, ConfigError, "Did you mean 'photo_textures'"),
        ({"parts": {"kind": "folder", "root": "nowhere"}}, DataError, "there is no such folder"),
    ],
)
def test_unknown_data(check, datasets, error, message):
    with pytest.raises(error, match=message):
        check(datasets, a=BUNDLED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "timm/resnet18"}, "got the name timm/resnet18 without a tag"),
        ({"encoder": "timm/resnet81.tv_in1k"}, "Near names: .*resnet18"),
        ({"encoder": "timm/resnet18.tv_in1k"}, "`weights: bundled`, but got timm/resnet18.tv_in1k"),
        ({"taps": ["blocks.7"]}, r"has none called 'blocks\.7'"),
        ({"weights": "absent.safetensors"}, "absent.safetensors"),
        (CAIT, "224 x 224.*takes no other size"),
        ({"tile_size": 96, "tile_overlap": 32}, r"at least `tile_size` \(96\) pixels a side, but got 64 x 64"),
        ({"tile_size": 40, "tile_overlap": 32}, "`tile_size` and `tile_overlap` divisible by 32"),
        ({"tile_size": 64, "input_size": 100, "tile_overlap": 32}, "width divisible by 32, .* but got 100 x 100"),
    ],
)
def test_encoders_that_cannot_be_built(check, change, message):
    with pytest.raises(ConfigError, match=f"(?s)all that the benchmark names.*- a: .*{message}.*Nothing was started"):
        check(a=BUNDLED | change)


def test_only_the_part_that_is_encoded_counts(check):
    vit = {"method": "padim", "encoder": "timm/vit_tiny_patch16_224.augreg_in21k", "weights": "random"}
    check(a=vit | {"taps": ["blocks.1"], "input_size": 250, "crop": 224})
    with pytest.raises(ConfigError, match=r"divisible by 16, the patch size of .*, but got 200 x 200"):
        check(a=vit | {"taps": ["blocks.1"], "input_size": 256, "crop": 200})


def test_all_faults_are_told_together_and_finished_jobs_need_nothing(check, tmp_path):
    official = BUNDLED | {"method": "official", "official_weights": "their/{category}.pt"}
    wrong = {"maps": MAPS, "theirs": official, "a": BUNDLED | {"taps": ["x"]}}
    with pytest.raises(ConfigError) as caught:
        check(**wrong)
    told = str(caught.value)
    assert "maps: `maps` points to nothing for nut (maps/parts/nut), screw (maps/parts/screw)" in told
    assert "theirs: `official_weights` points to nothing for nut (their/nut.pt), screw (their/screw.pt)" in told
    assert "a: Expected `taps` to be layers" in told
    for category in ("nut", "screw"):
        for file in ("maps/seed0/scores.npz", "theirs/seed0/checkpoint.pt", "a/seed0/checkpoint.pt"):
            path = tmp_path / "results" / "parts" / category / file
            path.parent.mkdir(parents=True)
            path.touch()
    assert check(results=tmp_path / "results", **wrong) == {"parts": ["nut", "screw"]}
