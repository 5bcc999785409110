"""The image cache: the same pixels as decoding, shared by jobs, bounded, mended when damaged."""

import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import sanflow.data.cache as module
from sanflow.data.cache import cached, clear, entries
from sanflow.data.images import ImageCache, load_images, load_masks
from sanflow.data.index import build_index
from sanflow.errors import StorageError
from tests.helpers.miniatures import mvtec


@pytest.fixture
def index(tmp_path):
    mvtec(tmp_path / "data", "screw")
    return build_index("mine", "screw", tmp_path / "data", kind="folder")


def test_the_cache_gives_what_decoding_gives_and_decodes_once(index, tmp_path, monkeypatch):
    decoded = load_images(index, "train", (8, 6))
    first = load_images(index, "train", (8, 6), cache=ImageCache(tmp_path / "cache"))
    monkeypatch.setattr("sanflow.data.images.read_image", lambda *_: pytest.fail("decoded again"))
    second = load_images(index, "train", (8, 6), cache=ImageCache(tmp_path / "cache"))
    assert isinstance(second, np.memmap)
    assert np.array_equal(first, decoded)
    assert np.array_equal(second, decoded)
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 0


def test_split_size_resampling_and_content_have_entries_of_their_own(index, tmp_path):
    cache = tmp_path / "cache"
    for split, size, resampling in (
        ("train", (8, 6), None),
        ("train", (8, 6), "bilinear"),  # the default: the same entry
        ("train", (8, 6), "lanczos"),
        ("train", (6, 8), None),
        ("test", (8, 6), None),
    ):
        loaded = load_images(index, split, size, resampling, cache=ImageCache(cache))
        assert np.array_equal(loaded, load_images(index, split, size, resampling))
    assert sorted(entry.label for entry in entries(cache)) == [
        "mine/screw test 8x6 lanczos",
        "mine/screw train 6x8 bilinear",
        "mine/screw train 8x6 bilinear",
        "mine/screw train 8x6 lanczos",
    ]


def test_another_reading_code_or_pillow_decodes_again(index, tmp_path, monkeypatch):
    cache = ImageCache(tmp_path / "cache")
    load_images(index, "train", (8, 6), cache=cache)
    monkeypatch.setattr("sanflow.data.images.PIL.__version__", "0.0")
    load_images(index, "train", (8, 6), cache=cache)
    assert len(entries(cache.folder)) == 2
    monkeypatch.setattr("sanflow.data.images.modules_digest", lambda modules: f"edited {modules}")
    load_images(index, "train", (8, 6), cache=cache)
    assert len(entries(cache.folder)) == 3


def test_each_file_is_read_once(index, monkeypatch):
    opened = []
    honest = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or honest(path))
    load_images(index, "test", (8, 6))
    assert sorted(opened) == ["000.png", "000.png", "001.png", "001.png"]  # in good and in broken
    opened.clear()
    load_masks(index)
    assert opened == ["000_mask.png", "001_mask.png"]


def test_a_cache_that_is_only_readable_is_read(tmp_path, monkeypatch):
    cached(tmp_path, "key", "label", (4, 10), fill_with(1))

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("sanflow.data.cache.os.utime", refuse)
    monkeypatch.setattr("sanflow.data.cache.FileLock.acquire", refuse)
    assert (cached(tmp_path, "key", "label", (4, 10), fill_with(2)) == 1).all()
    with pytest.raises(StorageError, match="Make the folder writable or choose another one"):
        cached(tmp_path, "other", "label", (4, 10), fill_with(2))


def fill_with(value: int):
    def fill(array):
        array[...] = value

    return fill


def place_of(cache):
    return entries(cache)[0].folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_a_byte(folder / "images.npy"),
        lambda folder: os.truncate(folder / "images.npy", 150),
        lambda folder: (folder / "images.npy").write_bytes(b""),
        lambda folder: (folder / "images.npy").unlink(),
        lambda folder: (folder / "entry.json").unlink(),
        lambda folder: (folder / "entry.json").write_text("{"),
        lambda folder: (folder / "entry.json").write_text(json.dumps({"shape": [1]})),
    ],
)
def test_a_damaged_entry_is_made_anew(tmp_path, damage):
    cached(tmp_path, "key", "label", (4, 10), fill_with(1))
    damage(place_of(tmp_path))
    assert (cached(tmp_path, "key", "label", (4, 10), fill_with(2)) == 2).all()
    assert (cached(tmp_path, "key", "label", (4, 10), fill_with(3)) == 2).all()
    assert len(entries(tmp_path)) == 1


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_large_entry_is_checked_by_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKED_WHOLE", 10)
    cached(tmp_path, "key", "label", (300, 10), fill_with(1))
    assert (cached(tmp_path, "key", "label", (300, 10), fill_with(2)) == 1).all()
    flip_a_byte(place_of(tmp_path) / "images.npy")  # the last image is in every sample
    assert (cached(tmp_path, "key", "label", (300, 10), fill_with(2)) == 2).all()


def test_a_failed_filling_leaves_nothing(tmp_path):
    def fail(array):
        array[0] = 1
        raise RuntimeError("broken image")

    with pytest.raises(RuntimeError, match="broken image"):
        cached(tmp_path, "key", "label", (4, 10), fail)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_threads_that_want_the_same_entry_make_it_once(tmp_path):
    calls, results = [], []

    def fill(array):
        calls.append(1)
        array[...] = 7

    jobs = [
        threading.Thread(target=lambda: results.append(cached(tmp_path, "key", "label", (50, 100), fill)))
        for _ in range(6)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert calls == [1]
    assert all((result == 7).all() for result in results)


def _work(cache, start, answers, number):
    start.wait()
    for round_ in range(8):
        array = cached(cache, f"key{round_ % 2}", "label", (20, 500), fill_with(round_ % 2), limit_bytes=12_000)
        if not (array == round_ % 2).all():
            answers.put(f"process {number} read {np.unique(array)} in round {round_}")
            return
    answers.put("ok")


def test_processes_that_push_each_other_out_never_read_wrong_pixels(tmp_path):
    context = multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    jobs = [context.Process(target=_work, args=(tmp_path, start, answers, i)) for i in range(4)]
    for job in jobs:
        job.start()
    start.set()
    assert [answers.get(timeout=60) for _ in jobs] == ["ok"] * 4
    for job in jobs:
        job.join()


def test_an_entry_that_is_evicted_as_soon_as_it_is_made_still_serves_its_maker(tmp_path, monkeypatch):
    honest = os.replace

    def replace(source, target):
        honest(source, target)
        if not Path(target).name.startswith("."):
            monkeypatch.setattr("sanflow.data.cache.os.replace", honest)
            clear(tmp_path)

    monkeypatch.setattr("sanflow.data.cache.os.replace", replace)
    array = cached(tmp_path, "key", "label", (4, 10), fill_with(3))
    assert entries(tmp_path) == []
    assert (array == 3).all()


def test_the_least_recently_used_go_beyond_the_limit(tmp_path):
    for number, key in enumerate("abc"):
        cached(tmp_path, key, key, (10, 100), fill_with(number))
        os.utime(place_with(tmp_path, key) / "entry.json", (number, number))
    mapped = cached(tmp_path, "a", "a", (10, 100), fill_with(9))  # used just now, so b is the oldest
    cached(tmp_path, "d", "d", (10, 100), fill_with(3), limit_bytes=4000)
    assert sorted(entry.label for entry in entries(tmp_path)) == ["a", "c", "d"]
    cached(tmp_path, "e", "e", (10, 100), fill_with(4), limit_bytes=1)
    assert [entry.label for entry in entries(tmp_path)] == ["e"]  # what is asked for is always kept
    assert (mapped == 0).all()  # a running job goes on with what it has mapped


def place_with(cache, label):
    return next(entry.folder for entry in entries(cache) if entry.label == label)


def test_clear_removes_entries_and_leftovers_and_nothing_else(tmp_path):
    cached(tmp_path, "a", "a", (10, 100), fill_with(1))
    (tmp_path / ".x.123.tmp").mkdir()
    (tmp_path / ".x.123.tmp" / "images.npy").write_bytes(b"12345")
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "folder").mkdir()
    size = sum(file.stat().st_size for file in place_of(tmp_path).iterdir())
    assert clear(tmp_path) == size + 5
    assert entries(tmp_path) == []
    assert {"mine.txt", "folder"} <= {path.name for path in tmp_path.iterdir()}
    assert clear(tmp_path / "nowhere") == 0


def test_no_space_is_told_before_decoding(tmp_path, monkeypatch):
    def full(folder, n_bytes, purpose):
        raise StorageError(f"{n_bytes} {purpose}")

    monkeypatch.setattr(module, "require_free_space", full)
    with pytest.raises(StorageError, match="1000 the image cache of mine"):
        cached(tmp_path, "key", "mine", (10, 100), fill_with(1))
