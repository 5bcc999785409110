"""The folder that `write_explorer` writes, and what its top says."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from sanflow.anomaly_maps.maps import anomaly_maps
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.cli import app
from sanflow.data.images import load_masks
from sanflow.data.index import read_index
from sanflow.errors import ConfigError, DataError, IntegrityError
from sanflow.files import read_json, write_json
from sanflow.report.explorer import write_explorer
from sanflow.report.explorer.facts import PLAN_UNKNOWN, facts_of, summary_html, warnings_of
from sanflow.report.runs import read_runs
from tests.helpers.results import imagine_benchmark, write_metrics


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return imagine_benchmark(tmp_path_factory.mktemp("benchmark"), quality=1.5)


@pytest.fixture(scope="module")
def explorer(results):
    return write_explorer(results).parent


def data_of(explorer, name):
    text = (explorer / "data" / f"{name}.js").read_text("utf-8")
    return json.loads(re.fullmatch(r'receive\("[^"]*", (.*)\);\n', text, re.DOTALL)[1])


def test_every_image_has_its_pictures(explorer):
    for number, category in enumerate(data_of(explorer, "benchmark")["categories"]):
        assert category["images"] == 11
        for i in range(11):
            assert Image.open(explorer / f"images/{number}/{i}.webp").size == (64, 64)
            assert Image.open(explorer / f"images/{number}/{i}-small.webp").size == (64, 64)
            for run in range(2):
                assert Image.open(explorer / f"maps/{number}/{run}/{i}.webp").size == (64, 64)
    assert (explorer / "index.html").is_file()
    assert (explorer / "assets/main.js").is_file()


def test_numbers_are_those_of_the_runs(results, explorer):
    benchmark = data_of(explorer, "benchmark")
    for number, category in enumerate(benchmark["categories"]):
        data = data_of(explorer, f"category-{number}")
        folder = results / category["dataset"] / category["name"]
        index = read_index(folder)
        assert data["files"] == list(index.test.image)
        masks = load_masks(index, (64, 64))
        for run, experiment in zip(data["runs"], ["cflow-matched", "sanflow"], strict=True):
            own = folder / experiment / "seed0"
            table = pd.read_csv(own / "images.csv", dtype={"score": str})
            assert run["scores"] == [float(score) for score in table.score]
            assert data["labels"] == list(table.label)
            assert data["kinds"] == list(table.defect_type)
            threshold = read_json(own / "metrics.json")["pixel_f1_threshold"]
            predicted = anomaly_maps(Scores.load(own / "scores.npz"), (64, 64)) >= threshold
            for overlap, found, mask in zip(run["overlaps"], predicted, masks, strict=True):
                if mask.any():
                    assert overlap == pytest.approx((found & mask).sum() / (found | mask).sum())
                else:
                    assert overlap is None


def test_maps_are_bright_where_the_defect_is(results, explorer):
    data = data_of(explorer, "category-0")
    folder = results / "my_parts" / data_of(explorer, "benchmark")["categories"][0]["name"]
    masks = load_masks(read_index(folder), (64, 64))
    levels = np.stack([np.asarray(Image.open(explorer / f"maps/0/1/{i}.webp").convert("L")) for i in range(len(masks))])
    assert levels[masks].mean() > levels[~masks].mean() + 40
    assert data["runs"][1]["experiment"] == 1


def test_an_explorer_is_replaced_and_nothing_else(results, tmp_path):
    folder = tmp_path / "explorer"
    write_explorer(results, folder)
    (folder / "left-over").touch()
    write_explorer(results, folder)
    assert not (folder / "left-over").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").touch()
    with pytest.raises(ConfigError, match="it holds something else"):
        write_explorer(results, other)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_failure_leaves_the_old_explorer(results, tmp_path):
    moved = tmp_path / "results"
    shutil.copytree(results, moved, ignore=shutil.ignore_patterns("explorer"))
    page = write_explorer(moved)
    images = moved / "my_parts/nut/sanflow/seed0/images.csv"
    images.write_text(images.read_text().replace("000.png", "999.png"))
    with pytest.raises(IntegrityError, match="Evaluate the run again"):
        write_explorer(moved)
    assert page.is_file()
    assert not list(moved.glob(".*"))


def test_a_missing_image_is_named(tmp_path):
    results = imagine_benchmark(tmp_path, categories=("nut",))
    (tmp_path / "data/my_parts/nut/test/good/001.png").unlink()
    with pytest.raises(DataError, match=r"001\.png"):
        write_explorer(results)


def test_the_command_names_the_page(results, tmp_path):
    answer = CliRunner().invoke(app, ["explore", str(results), "--output", str(tmp_path / "page"), "--workers", "1"])
    assert answer.exit_code == 0, answer.output
    assert answer.output.strip() == str(tmp_path / "page/index.html")


def test_top_says_what_was_run(results):
    runs = read_runs(results)
    facts = facts_of(results, runs)
    texts = dict(facts["facts"])
    assert texts["Data sets"] == ["my_parts (2 categories: cap, nut; 22 test images)"]
    assert texts["Experiments"][1] == "SANFlow‡ (encoder torchvision/resnet18, input 64 x 64 pixels)"
    for run in runs:
        run.settings["tile_size"] = 32
    label = dict(facts_of(results, runs)["facts"])["Experiments"][1]
    assert label == "SANFlow‡ (encoder torchvision/resnet18, input 64 x 64 pixels in tiles of 32)"
    assert texts["Seeds"] == ["0"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", texts["Finished"][0])
    assert texts["Training time"] == ["6 minutes, all runs together"]  # four times 90 seconds
    assert [row[0]["text"] for row in facts["table"]["sections"][0]["rows"]] == ["cflow-matched‡", "SANFlow‡"]
    assert facts["missing"] == [PLAN_UNKNOWN]  # the made-up benchmark has no benchmark.json


def test_missing_runs_are_named(tmp_path):
    for run in ("a/x/one/seed0", "a/x/two/seed0", "a/y/one/seed0"):
        write_metrics(tmp_path, run)
    assert facts_of(tmp_path, read_runs(tmp_path))["missing"] == [PLAN_UNKNOWN]
    outline = {"datasets": {"a": ["x", "y"]}, "experiments": ["one", "two"], "seeds": [0]}
    outline["runs_on"] = {"one": ["a"], "two": ["a"]}
    write_json(tmp_path / "benchmark.json", {"name": "n", "title": "t", **outline})
    assert facts_of(tmp_path, read_runs(tmp_path))["missing"] == ["Missing, and in no number here: a/y (two)."]


def test_warnings_are_listed_once_with_their_runs(tmp_path):
    for seed in range(5):
        write_metrics(tmp_path, f"a/x/one/seed{seed}", warnings=["Coarse."] if seed else [])
    assert warnings_of(read_runs(tmp_path)) == ["Coarse. (a/x/one/seed1, a/x/one/seed2, a/x/one/seed3 and 1 more runs)"]


def test_the_summary_for_the_report_escapes_names(tmp_path):
    write_metrics(tmp_path, "a/x/one/seed0", {"label": "<script>alert(1)</script>"})
    runs = read_runs(tmp_path)
    text = summary_html(facts_of(tmp_path, runs), runs)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "explorer/index.html" in text
