"""Reading: what each image type becomes, the resampling of each split, masks at two resolutions."""

import numpy as np
import pytest
from PIL import Image

from sanflow.data.decode import decode_image, read_image
from sanflow.data.images import load_images, load_masks
from sanflow.data.index import Index, build_index
from sanflow.data.masks import read_mask
from sanflow.errors import DataError
from tests.helpers.miniatures import image, mvtec


@pytest.fixture
def index(tmp_path) -> Index:
    mvtec(tmp_path, "screw")
    return build_index("mine", "screw", tmp_path, kind="folder")


@pytest.mark.parametrize(
    ("name", "stored", "expected"),
    [
        ("grey.png", np.full((2, 2), 77, np.uint8), (77, 77, 77)),
        ("grey16.png", np.full((2, 2), 257 * 77, np.uint16), (77, 77, 77)),
        ("grey16.tif", np.full((2, 2), 257 * 77 + 128, np.uint16), (77, 77, 77)),
        ("grey16up.tif", np.full((2, 2), 257 * 77 + 129, np.uint16), (78, 78, 78)),
        ("grey16.pgm", np.full((2, 2), 257 * 77, np.uint16), (77, 77, 77)),
        ("dark16.pgm", np.full((2, 2), 200, np.uint16), (1, 1, 1)),  # one scale for all, however dark
        ("unit.tif", np.full((2, 2), 0.2, np.float32), (51, 51, 51)),
        ("rgba.png", np.full((2, 2, 4), (9, 8, 7, 0), np.uint8), (9, 8, 7)),
        ("grey_alpha.png", np.full((2, 2, 2), (9, 0), np.uint8), (9, 9, 9)),
        ("bilevel.png", np.full((2, 2), True), (255, 255, 255)),
    ],
)
def test_every_image_type_becomes_8_bit_rgb(tmp_path, name, stored, expected):
    Image.fromarray(stored).save(tmp_path / name)
    decoded = np.asarray(decode_image(tmp_path / name))
    assert decoded.shape == (2, 2, 3)
    assert tuple(decoded[0, 0]) == expected
    assert np.array_equal(decoded, np.asarray(decode_image((tmp_path / name).read_bytes())))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.full((2, 2), 77, np.int32), "32-bit integers, whose white is not known; save it with 8 or 16 bits"),
        (np.full((2, 2), 77.4, np.float32), "floats from 77.4 to 77.4, where 0 to 1 is expected"),
        (np.full((2, 2), np.nan, np.float32), "floats from nan to nan"),
    ],
)
def test_values_of_unknown_scale_are_refused(tmp_path, stored, message):
    Image.fromarray(stored).save(tmp_path / "image.tif")
    with pytest.raises(DataError, match=f"Expected a readable image at .*image.tif, but got: {message}"):
        decode_image(tmp_path / "image.tif")


def test_files_that_changed_since_they_were_indexed_are_refused(index):
    row = index.test[index.test["mask"] != ""].iloc[0]
    for column, load in (("image", lambda: load_images(index, "test", (8, 8))), ("mask", lambda: load_masks(index))):
        path = index.root / row[column]
        before = path.read_bytes()
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0] = 255 - pixels[0, 0]
        Image.fromarray(pixels).save(path)
        with pytest.raises(DataError, match=r"as it was indexed .* has changed since .* snakemake --forcerun index"):
            load()
        path.write_bytes(before)
        load()


def test_palette_images_show_their_colours(tmp_path):
    Image.new("RGB", (2, 2), (10, 200, 30)).quantize(4).save(tmp_path / "p.png")
    assert tuple(np.asarray(decode_image(tmp_path / "p.png"))[0, 0]) == (10, 200, 30)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"Expected an image at .*nowhere\.png, but there is none"):
        decode_image(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"Expected a mask at .*nowhere\.png, but there is none"):
        read_mask(tmp_path, "nowhere.png")
    image(tmp_path / "cut.png", seed=0)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    with pytest.raises(DataError, match=r"Expected a readable image at .*cut\.png"):
        decode_image(tmp_path / "cut.png")
    with pytest.raises(DataError, match=r"Expected a readable mask at .*cut\.png"):
        read_mask(tmp_path, "cut.png")


def test_an_absurdly_large_image_is_refused(tmp_path, monkeypatch):
    image(tmp_path / "large.png", seed=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="exceeds limit of 200 pixels"):
        decode_image(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("split", "default"), [("train", Image.Resampling.BILINEAR), ("test", Image.Resampling.LANCZOS)]
)
def test_resampling_of_each_split(index, split, default):
    loaded = load_images(index, split, (9, 7))
    assert loaded.dtype == np.uint8
    assert loaded.shape == (len(index.rows(split)), 9, 7, 3)
    for name, found in zip(index.rows(split).image, loaded, strict=True):
        with Image.open(index.root / name) as file:
            assert np.array_equal(found, np.asarray(file.convert("RGB").resize((7, 9), default)))


def test_resampling_can_be_chosen_and_own_size_is_untouched(index):
    name = index.root / index.train.image[0]
    assert np.array_equal(load_images(index, "train", (9, 7), "lanczos")[0], read_image(name, (9, 7), "lanczos"))
    with Image.open(name) as file:
        assert np.array_equal(load_images(index, "train", (20, 20))[0], np.asarray(file))


def test_masks_at_both_resolutions(index):
    native = load_masks(index)
    assert [m.shape for m in native] == [(20, 20)] * 4
    assert [int(m.sum()) for m in native] == [0, 0, 30, 30]
    assert native[2][3:9, 2:7].all()
    halved = load_masks(index, (10, 10))
    assert halved.dtype == bool
    # Nearest to the centre: pixel i of 10 is pixel 2 i + 1 of 20; rows 3 5 7 and columns 3 5 of the box remain.
    assert [int(m.sum()) for m in halved] == [0, 0, 6, 6]
    assert halved[2][1:4, 1:3].all()
