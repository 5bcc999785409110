"""The commands `download`, `index`, `cache` and `datasets` as a user types them."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from sanflow.cli import app
from sanflow.data.cache import cached
from sanflow.data.index import read_index
from sanflow.errors import ConfigError, DataError
from tests.helpers.miniatures import mvtec


def run(*arguments: object):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def benchmark(tmp_path):
    mvtec(tmp_path / "mine", "screw")
    mvtec(tmp_path / "mpdd", "bracket_black")
    path = tmp_path / "small.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "datasets": {
                    "parts": {"kind": "folder", "root": str(tmp_path / "mine")},
                    "mpdd": {"mirrors": [str(tmp_path / "mpdd")]},
                },
                "experiments": {"a": {"method": "sanflow", "encoder": "timm/resnet18.tv_in1k"}},
            }
        )
    )
    return path


def test_index_of_a_folder_that_the_benchmark_names(benchmark, tmp_path):
    output = tmp_path / "out/index.csv"
    result = run("index", "parts", "screw", "--benchmark", benchmark, "--output", output)
    assert "parts/screw: 3 training images, 2 good and 2 defective test images" in result.output
    assert read_index(output).dataset == "parts"
    assert json.loads((tmp_path / "out/index.json").read_text())["root"] == str(tmp_path / "mine")
    assert "nothing to download" in run("download", "parts", "--benchmark", benchmark).output


def test_download_from_the_mirror_that_the_benchmark_names(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("SANFLOW_OFFLINE", "1")
    data_root = tmp_path / "data"
    result = run("download", "mpdd", "--benchmark", benchmark, "--data-root", data_root)
    assert f"mpdd is complete in {data_root / 'mpdd'}" in result.output
    assert json.loads((data_root / "mpdd/.sanflow.json").read_text())["root"] == str(tmp_path / "mpdd")
    with pytest.raises(DataError, match="expected 289 training images, but found 3"):
        run("index", "mpdd", "bracket_black", "--data-root", data_root, "--output", tmp_path / "index.csv")


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_by_environment(tmp_path, monkeypatch, value):
    monkeypatch.setenv("SANFLOW_OFFLINE", value)
    with pytest.raises(DataError, match="offline, so nothing is fetched"):
        run("download", "mvtec_ad", "--data-root", tmp_path)


def test_a_data_set_that_the_benchmark_has_not(benchmark):
    with pytest.raises(ConfigError, match="among mpdd, parts, but got 'part'"):
        run("download", "part", "--benchmark", benchmark)


def test_index_of_a_folder_named_on_the_command_line(tmp_path):
    mvtec(tmp_path / "mine", "screw")
    run("index", "mine", "screw", "--root", tmp_path / "mine", "--output", tmp_path / "index.csv")
    assert len(read_index(tmp_path).train) == 3


def test_datasets_lists_the_registry():
    output = run("datasets").output
    assert "mvtec_ad: MVTec AD, 15 categories, downloaded; licence: CC BY-NC-SA 4.0" in output
    assert "shanghaitech_campus: ShanghaiTech Campus (STC), 12 categories, fetched by hand" in output


def test_cache_size_and_clear(tmp_path):
    cached(tmp_path, "key", "mine/screw train", (10, 100), lambda array: None)
    output = run("cache", "size", "--cache", tmp_path).output
    assert "mine/screw train" in output
    assert f"in 1 entries of {tmp_path}" in output
    assert "0.0 MB freed" in run("cache", "clear", "--cache", tmp_path).output
    assert "in 0 entries" in run("cache", "size", "--cache", tmp_path).output


def test_data_lies_where_the_settings_say(tmp_path, monkeypatch):
    """By hand the commands find what the workflow fetched and cached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SANFLOW_DATA_ROOT", raising=False)
    monkeypatch.delenv("SANFLOW_CACHE", raising=False)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("data_root: elsewhere\noffline: true\n")
    assert "entries of elsewhere/.cache" in run("cache", "size").output
    assert "freed in elsewhere/.cache" in run("cache", "clear").output
    with pytest.raises(DataError, match="offline, so nothing is fetched"):
        run("download", "mvtec_ad")
    mvtec(tmp_path / "mpdd", "bracket_black")
    assert "complete in elsewhere/mpdd" in run("download", "mpdd", "--mirror", tmp_path / "mpdd").output


def test_a_benchmark_by_name():
    with pytest.raises(ConfigError, match=r"of demo among photo_textures, but got 'photo_texture'\. Did you mean"):
        run("download", "photo_texture", "--benchmark", "demo")


def test_a_misspelt_category_is_told_with_the_nearest(tmp_path):
    mvtec(tmp_path / "mine", "screw")
    with pytest.raises(ConfigError, match=r"but got 'scerw'\. Did you mean 'screw'\?"):
        run("index", "mine", "scerw", "--root", tmp_path / "mine", "--output", tmp_path / "index.csv")
