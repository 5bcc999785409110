"""Copies of a benchmark's small files: what is copied, that digests are sha256sum's, and what is refused."""

import hashlib
import json
import subprocess

import numpy as np
import pytest

from sanflow.benchmark_json import write_outline
from sanflow.errors import ConfigError, DataError, IntegrityError
from sanflow.report.copies import check_copies, copy_results
from tests.helpers.results import write_metrics


@pytest.fixture
def results(tmp_path):
    root = tmp_path / "results" / "mine"
    for run in ("nut/flow/seed0", "nut/flow/seed0/epoch02", "nut/padim/seed0", "nut/old/seed0"):
        write_metrics(root, f"parts/{run}")
    outline = {"datasets": {"parts": ["nut"]}, "experiments": ["flow", "padim"], "seeds": [0]}
    write_outline(root, name="mine", title="Mine", digest="0" * 64, **outline)
    return root


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "docs" / "results"


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_small_files_of_the_benchmarks_runs_are_copied(results, folder):
    (results / "parts/nut/flow/seed0/checkpoint.pt").write_bytes(bytes(10))
    assert copy_results(results, folder) == ["parts/nut/old/seed0"]
    copies = files_of(folder)
    runs = ["parts/nut/flow/seed0", "parts/nut/flow/seed0/epoch02", "parts/nut/padim/seed0"]
    assert set(copies) == {"sha256.txt", "benchmark.json", *(f"{run}/metrics.json" for run in runs)}
    for run in runs:
        assert copies[f"{run}/metrics.json"] == (results / run / "metrics.json").read_bytes()
    original = json.loads((results / "benchmark.json").read_text())
    # Who ran it, on which host and in which folder, is nobody's business.
    assert original.pop("owner")["folder"] == str(results)
    assert json.loads(copies["benchmark.json"]) == original
    check_copies(folder)


def test_digests_are_those_of_sha256sum(results, folder):
    copy_results(results, folder)
    lines = (folder / "sha256.txt").read_text().splitlines()
    digest, name = lines[0].split("  ")
    assert name == "benchmark.json"
    assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    subprocess.run(["sha256sum", "--check", "--strict", "sha256.txt"], cwd=folder, check=True, capture_output=True)


def test_a_second_call_gives_the_same_bytes_and_removes_what_is_no_longer_there(results, folder):
    copy_results(results, folder)
    (folder / "findings.md").write_text("Ours.")
    before = files_of(folder)
    copy_results(results, folder)
    assert files_of(folder) == before
    (results / "parts/nut/padim/seed0/metrics.json").unlink()
    copy_results(results, folder)
    assert {path.name for path in (folder / "parts/nut").iterdir()} == {"flow"}
    assert (folder / "findings.md").read_text() == "Ours."
    check_copies(folder)


def test_resampled_metrics_of_runs_with_kept_epochs_are_copied_alone(results, folder):
    values_B = np.linspace(0, 1, 5, dtype=np.float32)
    for run in ("flow/seed0", "flow/seed0/epoch02", "padim/seed0"):
        np.savez(results / "parts/nut" / run / "curves.npz", image_roc_x=values_B, resampled_aupro=values_B)
    copy_results(results, folder)
    assert sorted(name for name in files_of(folder) if name.endswith(".npz")) == [
        "parts/nut/flow/seed0/curves.npz",
        "parts/nut/flow/seed0/epoch02/curves.npz",
    ]
    with np.load(folder / "parts/nut/flow/seed0/curves.npz") as archive:
        assert archive.files == ["resampled_aupro"]
        np.testing.assert_array_equal(archive["resampled_aupro"], values_B)
    before = files_of(folder)
    copy_results(results, folder)
    assert files_of(folder) == before
    check_copies(folder)
    (results / "parts/nut/flow/seed0/curves.npz").write_bytes(b"PK half")
    with pytest.raises(IntegrityError, match=r"Expected curves in .*flow/seed0/curves\.npz, but got.*Evaluate the run"):
        copy_results(results, folder)


def test_damaged_missing_and_foreign_files_are_named_together(results, folder):
    copy_results(results, folder)
    (folder / "parts/nut/flow/seed0/metrics.json").unlink()
    (folder / "parts/nut/padim/seed0/metrics.json").write_text("{}")
    write_metrics(folder, "parts/nut/padim/seed1")
    with pytest.raises(IntegrityError) as caught:
        check_copies(folder)
    message = str(caught.value)
    assert "parts/nut/flow/seed0/metrics.json is missing; parts/nut/padim/seed0/metrics.json has another" in message
    assert "parts/nut/padim/seed1/metrics.json is not listed" in message
    assert "Restore the folder from version control" in message


@pytest.mark.parametrize("line", ["abc  benchmark.json", "0" * 64 + " x", "0" * 64 + "  ../x", "0" * 64 + "  /x", ""])
def test_a_damaged_list_of_digests(results, folder, line):
    """Nothing outside the folder is read or removed by its lines."""
    copy_results(results, folder)
    (folder / "sha256.txt").write_text(line + "\n")
    for call in (lambda: check_copies(folder), lambda: copy_results(results, folder)):
        with pytest.raises(IntegrityError, match=r"two spaces and a path in line 1 of .*sha256\.txt, but got"):
            call()
    assert (folder / "benchmark.json").exists()


def test_what_cannot_be_copied(results, folder, tmp_path):
    with pytest.raises(IntegrityError, match=r"copies of results in .* but there is no such file"):
        check_copies(folder)
    for inside in (results, results / "copies", results.parent):
        with pytest.raises(ConfigError, match="Expected copies outside of the results"):
            copy_results(results, inside)
    with pytest.raises(DataError, match=r"Expected .*empty/benchmark\.json, which says what should have run"):
        copy_results(tmp_path / "empty", folder)
    copy_results(results, folder)
    for path in [*(results / "parts/nut/flow").rglob("*.json"), *(results / "parts/nut/padim").rglob("*.json")]:
        path.unlink()
    with pytest.raises(DataError, match=r"Expected a finished run of the benchmark mine in .*, but there is none"):
        copy_results(results, folder)
    check_copies(folder)  # the copies of before are untouched
