"""The digest of a user's files: what changes it, and how often a file is hashed."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

import sanflow.data.content as module
from sanflow.data.content import category_digest, content_digest
from sanflow.errors import StorageError
from tests.helpers.miniatures import image, mask, mvtec


@pytest.fixture
def root(tmp_path):
    mvtec(tmp_path / "data", "screw")
    mvtec(tmp_path / "data", "nut")
    return tmp_path / "data"


@pytest.fixture
def memo(tmp_path):
    return tmp_path / "state/content.json"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed; the files count as settled."""
    names = []
    honest = module.sha256_of_file
    monkeypatch.setattr(module, "sha256_of_file", lambda path: names.append(path.name) or honest(path))
    later = time.time_ns() + 10 * module.SETTLED_NS
    monkeypatch.setattr(module.time, "time_ns", lambda: later)
    return names


def test_a_repainted_mask_of_the_same_size_is_noticed_and_a_touched_one_is_not(root, memo):
    path = root / "screw/ground_truth/broken/000_mask.bmp"
    (root / "screw/ground_truth/broken/000_mask.png").unlink()
    mask(path)
    before, size = category_digest(root, "screw", memo), path.stat().st_size
    os.utime(path)
    assert category_digest(root, "screw", memo) == before
    Image.fromarray(np.roll(np.asarray(Image.open(path)), 3, axis=1)).save(path)
    assert path.stat().st_size == size
    assert category_digest(root, "screw", memo) != before


def test_one_category_does_not_change_another(root, memo):
    before = category_digest(root, "nut", memo)
    image(root / "screw/train/good/009.png", seed=9)
    (root / "nut/raw").mkdir()
    (root / "nut/raw/large.bin").write_bytes(b"not in train, test or ground_truth")
    (root / "nut/train/good/Thumbs.db").write_bytes(b"litter")
    assert category_digest(root, "nut", memo) == before
    image(root / "nut/train/good/009.png", seed=9)
    assert category_digest(root, "nut", memo) != before


def test_files_are_hashed_once(root, memo, hashed):
    first = category_digest(root, "screw", memo)
    assert len(hashed) == 3 + 2 + 2 + 2
    hashed.clear()
    assert category_digest(root, "screw", memo) == first
    assert hashed == []
    image(root / "screw/train/good/001.png", seed=99)
    assert category_digest(root, "screw", memo) != first
    assert hashed == ["001.png"]


def test_a_file_that_changed_just_now_is_hashed_again(root, memo, monkeypatch):
    """It could change once more within the resolution of its times."""
    category_digest(root, "screw", memo)
    assert not memo.exists()
    later = time.time_ns() + 2 * module.SETTLED_NS
    monkeypatch.setattr(module.time, "time_ns", lambda: later)
    category_digest(root, "screw", memo)
    assert len(json.loads(memo.read_text())) == 9


def test_a_damaged_memo_or_one_that_cannot_be_written_costs_only_time(root, memo, hashed, monkeypatch):
    first = category_digest(root, "screw", memo)
    memo.write_text("{")
    assert category_digest(root, "screw", memo) == first

    def full(*_):
        raise StorageError("read-only")

    monkeypatch.setattr(module, "atomic_path", full)
    memo.unlink()
    assert category_digest(root, "screw", memo) == first


def test_symlinked_folders_are_followed_once(root, memo, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(root / "screw/train/good", elsewhere)
    (root / "screw/train/good").symlink_to(elsewhere)
    before = category_digest(root, "screw", memo)
    image(elsewhere / "007.png", seed=7)
    after = category_digest(root, "screw", memo)
    assert after != before
    (elsewhere / "loop").symlink_to(elsewhere)
    assert category_digest(root, "screw", memo) == after  # a loop ends
    (elsewhere / "008.png").symlink_to("/nowhere")
    assert category_digest(root, "screw", memo) != after  # a link to nothing is noticed


def test_a_data_set_without_folders_of_categories_is_digested_whole(root, memo):
    before = category_digest(root, "candle", memo)
    image(root / "screw/train/good/009.png", seed=9)
    assert category_digest(root, "candle", memo) != before


def test_names_that_are_not_utf8_and_missing_folders(root, memo, hashed):
    os.rename(root / "screw/train/good/000.png", os.fsencode(root / "screw/train/good") + b"/\xb0.png")
    assert category_digest(root, "screw", memo) == category_digest(root, "screw", memo)
    assert len(json.loads(memo.read_text())) == 9
    assert content_digest([root / "missing"], memo) == content_digest([], memo)
