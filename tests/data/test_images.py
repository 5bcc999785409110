"""Reading: what each image type becomes, the resampling of each split, masks at two resolutions."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from sanflow.data.decode import Reading, decode, decode_image, read_image
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
        ("rgb16.tif", np.full((2, 2, 3), 257 * 77 + 129, np.uint16), (78, 78, 78)),
        ("rgba.png", np.full((2, 2, 4), (9, 8, 7, 0), np.uint8), (9, 8, 7)),
        ("grey_alpha.png", np.full((2, 2, 2), (9, 0), np.uint8), (9, 9, 9)),
        ("bilevel.png", np.full((2, 2), True), (255, 255, 255)),
    ],
)
def test_every_image_type_becomes_8_bit_rgb(tmp_path, name, stored, expected):
    if name == "rgb16.tif":
        tifffile.imwrite(tmp_path / name, stored)
    else:
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
    with pytest.raises(DataError, match=r"20 x 20 pixels, which are 0\.0004 megapixels where at most 0\.0003"):
        decode_image(tmp_path / "large.png", reading=Reading(max_megapixels=0.0003))
    # Pillow's own limit neither applies nor is changed.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(tmp_path / "large.png").size == (20, 20)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_images_are_upright_as_people_see_them(tmp_path, orientation, suffix):
    """The corner marked A is at the top left when the picture is looked at; stored, it is elsewhere."""
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0], upright[0, 5], upright[3, 0], upright[3, 5] = (10,) * 3, (20,) * 3, (30,) * 3, (40,) * 3
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(
        path, exif=exif, **({"lossless": True} if suffix == "webp" else {})
    )
    assert np.array_equal(np.asarray(decode_image(path)), upright)


def test_sixteen_bits_are_turned_and_scaled_too(tmp_path):
    stored = (np.arange(24, dtype=np.uint16).reshape(4, 6) * 257).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(stored).save(tmp_path / "grey.png", exif=exif)
    assert np.array_equal(np.asarray(decode_image(tmp_path / "grey.png"))[..., 0], np.rot90(stored // 257, -1))


def test_a_file_of_several_pages_is_refused_but_previews_are_not_pages(tmp_path):
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    red.save(tmp_path / "pages.tif", save_all=True, append_images=[blue])
    red.save(tmp_path / "frames.gif", save_all=True, append_images=[blue])
    for name in ("pages.tif", "frames.gif"):
        with pytest.raises(DataError, match=r"got: 2 pages or frames in one file; save each as a file of its own"):
            decode_image(tmp_path / name)
    red.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[blue])
    assert np.asarray(decode_image(tmp_path / "phone.jpg"))[0, 0, 0] > 250
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as file:
        file.write(np.full((4, 4), 7, np.uint8))
        file.write(np.full((2, 2), 9, np.uint8), subfiletype=1)
    assert np.asarray(decode_image(tmp_path / "thumbnail.tif")).tolist() == [[[7, 7, 7]] * 4] * 4


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "colour.png", "colour.tif", "packed.tif"])
def test_twelve_bits_in_sixteen(tmp_path, name):
    values = np.array([[0, 2047, 2048, 4095]], np.uint16)
    if name.startswith("colour"):
        values = np.repeat(values[..., None], 3, axis=-1)
    if name == "colour.png":
        write_png16(tmp_path / name, values)
    elif name.endswith(".png"):
        Image.fromarray(values).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, values, compression="zlib" if name == "packed.tif" else None)
    data = (tmp_path / name).read_bytes()
    dark = decode(data, name, Reading())
    assert (np.asarray(dark.rgb)[0, :, 0].tolist(), dark.largest) == ([0, 8, 8, 16], 4095)
    bright = decode(data, name, Reading(bits=12))
    assert np.asarray(bright.rgb)[0, :, 0].tolist() == [0, 127, 128, 255]
    with pytest.raises(DataError, match="the value 4095, where at most 1023 is expected; correct `bits`"):
        decode(data, name, Reading(bits=10))


def test_files_that_say_their_depth_are_scaled_by_it(tmp_path):
    (tmp_path / "twelve.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([2047, 4095], ">u2").tobytes())
    decoded = decode((tmp_path / "twelve.pgm").read_bytes(), "twelve.pgm", Reading(bits=10))
    assert np.asarray(decoded.rgb)[0, :, 0].tolist() == [127, 255]
    assert decoded.largest is None


def write_png16(path, values_HW3):
    """Pillow cannot write 16-bit colour."""
    height, width, _ = values_HW3.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HW3)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


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
