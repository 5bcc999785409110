"""The cache is at least 10 times faster than decoding, as `sanflow bench data` measures it."""

import json

from typer.testing import CliRunner

from sanflow.cli import app


def test_bench_data_prints_a_cache_that_is_ten_times_faster(tmp_path):
    arguments = ["bench", "data", "--images", "4", "--side", "512", "--size", "128", "--folder", str(tmp_path)]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, repr(answer.exception)
    found = json.loads(answer.stdout)
    assert found["cache_is_faster_by"] >= 10
    rates = found["images_per_second"]
    assert found["cache_is_faster_by"] == rates["cache"] / rates["cold_files_one_thread"]
    assert found["bytes"]["cache_file"] == 4 * 128 * 128 * 3 + 128
    assert list(tmp_path.iterdir()) == []


def test_bench_data_refuses_a_folder_that_is_not_there(tmp_path):
    answer = CliRunner().invoke(app, ["bench", "data", "--folder", str(tmp_path / "absent")])
    assert answer.exit_code == 2
    assert "--folder" in answer.stderr
