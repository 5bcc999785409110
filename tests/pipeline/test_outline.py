"""benchmark.json as it is written from a benchmark file."""

import pytest
import yaml

from sanflow.benchmark_json import read_outline
from sanflow.pipeline.outline import write_benchmark_outline

MAPS = {"method": "external", "maps": "maps/{dataset}/{category}", "input_size": 64}


@pytest.mark.parametrize(("folders", "categories"), [(["screw", "nut"], ["nut", "screw"]), (None, [])])
def test_it_lists_what_the_file_says_and_the_categories_that_are_there(tmp_path, folders, categories):
    """Without the data set's folder its categories are unknown; the rest is written."""
    for name in folders or []:
        (tmp_path / "parts" / name / "train/good").mkdir(parents=True)
    file = tmp_path / "mine.yaml"
    datasets = {
        "parts": {"kind": "folder", "root": str(tmp_path / "parts"), "categories": "all"},
        "photo_textures": {"categories": ["grass", "brick"]},
    }
    experiments = {"theirs": MAPS, "one": MAPS | {"datasets": ["parts"]}}
    file.write_text(
        yaml.safe_dump({"title": "A title", "datasets": datasets, "experiments": experiments, "seeds": [3]})
    )
    write_benchmark_outline(file, tmp_path / "results")
    outline = read_outline(tmp_path / "results")
    assert outline["name"] == "mine"
    assert outline["title"] == "A title"
    assert outline["key"] == f"mine/{outline['digest'][:12]}"
    assert outline["datasets"] == {"parts": categories, "photo_textures": ["grass", "brick"]}
    assert outline["experiments"] == ["one", "theirs"]
    assert outline["runs_on"] == {"one": ["parts"], "theirs": ["parts", "photo_textures"]}
    assert outline["seeds"] == [3]
