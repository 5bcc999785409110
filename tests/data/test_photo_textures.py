"""The built-in data set: frozen pixels, disjoint splits."""

import hashlib

import numpy as np
import pytest
from numpy.random import RandomState
from PIL import Image

import sanflow.data.photo_textures as module
from sanflow.data.index import build_index, summary
from sanflow.data.painted_defects import KINDS
from sanflow.data.photo_textures import (
    PHOTOGRAPHS,
    TEST_COLUMNS,
    TRAIN_COLUMNS,
    make_photo_textures,
    write_grey_png,
)
from sanflow.errors import DataError

# SHA-256 over the decoded pixels of all files of a category, in the order of their names. Frozen: encoders were
# trained and tuned after these, so no defect may be made easier or harder.
PIXELS = {
    "brick": "0e8fb969fb6ee73af5f222e9d86926a5bda139850ab92ec5321abb06d9258e91",
    "grass": "e35ca694831f39cffc15042c1cc0a19adb5403df5ec7812fbc98e68b5f590f76",
    "gravel": "24c3c4d00d70d5d0cff81db3fbcb50ca71db5f35b696623abf3b1202508fc0ea",
}
INDEX = {
    "brick": "6d15458e188daa7ac1b2eb8eb7f5e9bcdbf3cf7c01f50ff1983663623fec3748",
    "grass": "b89cc17526d5071cbf9e4eafbed028407376c346f5560885f364d8844e877219",
    "gravel": "6a58155be1c49e6bbbab87024e88ba7a670dd3faec4182c19f73961565619965",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photo_textures")
    make_photo_textures(folder)
    return folder


@pytest.mark.parametrize("category", PHOTOGRAPHS)
def test_pixels_and_files_are_frozen(root, category):
    digest = hashlib.sha256()
    for path in sorted((root / category).rglob("*.png")):
        with Image.open(path) as image:
            digest.update(path.relative_to(root).as_posix().encode() + np.asarray(image).tobytes())
    assert digest.hexdigest() == PIXELS[category]
    index = build_index("photo_textures", category, root)
    assert index.digest == INDEX[category]  # over the files' bytes
    assert summary(index)["counts"]["defect_types"] == dict.fromkeys(KINDS, 10)
    assert set(zip(index.table.width, index.table.height, strict=True)) == {(128, 128)}
    assert index.table.sha256.is_unique


def test_training_and_test_crops_share_no_pixel():
    columns = np.zeros(512, int)
    for first, last in (TEST_COLUMNS, *TRAIN_COLUMNS):
        columns[first:last] += 1
    assert (columns == 1).all()
    photograph = np.tile(np.arange(512) // 2, (512, 1)).astype(np.uint8)  # a pixel's value tells its column
    random = RandomState(0)
    trained = np.unique(module._crops(photograph, TRAIN_COLUMNS, 80, random))
    tested = np.unique(module._crops(photograph, (TEST_COLUMNS,), 40, random))
    assert not set(trained) & set(tested)


def test_png_is_read_back_and_its_bytes_depend_on_pixels_alone(tmp_path):
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7)
    write_grey_png(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), pixels)
    assert (
        hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
        == "b6d60e100628744fa36e912c34ad74abe534cf61b6670d311c2e5542ce2e276b"
    )


def test_other_photographs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "brick", "0" * 64)
    with pytest.raises(
        DataError, match=r"Expected scikit-image's photograph 'brick' with sha256 0000.*Install a scikit"
    ):
        make_photo_textures(tmp_path)
