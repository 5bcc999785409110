"""Drills: a full disk, read-only results, results and checkouts that move."""

import shutil
import subprocess

import pytest

from tests.helpers.workflow import copy_project, snakemake, write_benchmark

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1500)]
RUN = "results/small/parts/nut/tiny/seed0"


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of a given size (and mode) at `results`; needs root."""
    folder = tmp_path / "results"
    folder.mkdir()
    mounted = False

    def mount(options):
        nonlocal mounted
        if mounted:
            subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
            return
        answer = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {answer.stderr.strip()}")
        mounted = True

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(
    ("size", "fits"),
    # A state or checkpoint of this training has some 900 kB: the second disk is full when it is written.
    [("96k", ""), ("700k", "index.csv")],
    ids=["at the first step", "while the training saves"],
)
def test_a_full_disk_says_so_and_nothing_finished_is_lost(root, tmp_path, small_disk, size, fits):
    write_benchmark(tmp_path, experiments=("tiny",))
    small_disk(f"size={size}")
    answer = snakemake(root, tmp_path, check=False)
    assert answer.returncode == 1
    assert "No space left on" in answer.output
    finished = tmp_path / "results/small/parts/nut" / fits
    written = finished.stat().st_mtime_ns
    assert not (tmp_path / RUN / "checkpoint.pt").exists()
    small_disk("size=200m")
    snakemake(root, tmp_path)
    assert (tmp_path / RUN / "metrics.json").exists()
    if fits:
        assert finished.stat().st_mtime_ns == written


def test_read_only_results_say_so_and_a_writable_folder_mends_it(root, tmp_path, small_disk):
    write_benchmark(tmp_path, experiments=("tiny",))
    small_disk("size=200m,ro")
    answer = snakemake(root, tmp_path, check=False)
    assert answer.returncode == 1
    assert "Read-only file system" in answer.output
    assert "results" in answer.output
    small_disk("size=200m,rw")
    snakemake(root, tmp_path)
    assert (tmp_path / RUN / "metrics.json").exists()


def test_results_and_checkout_may_move(root, tmp_path):
    """Another folder for the project, the data and the results: nothing runs again, and what must, can."""
    here, there = tmp_path / "here", tmp_path / "über all" / "there"
    project = copy_project(here / "project")
    work = here / "work"
    work.mkdir()
    write_benchmark(work, experiments=("tiny",))
    snakemake(project, work)
    there.parent.mkdir()
    shutil.move(here, there)
    project, work = there / "project", there / "work"
    assert "Nothing to be done" in snakemake(project, work).output
    # Scores and metrics are made again from the moved index and checkpoint.
    (work / RUN / "scores.npz").unlink()
    before = (work / RUN / "metrics.json").read_text()
    snakemake(project, work)
    assert [line for line in before.splitlines() if "auroc" in line] == [
        line for line in (work / RUN / "metrics.json").read_text().splitlines() if "auroc" in line
    ]
