"""Make the built-in data set: crops of three photographed textures, half of the test crops with a defect.

Brick, grass and gravel are the 512 x 512 grey photographs that scikit-image carries. The middle columns of a photograph
are cut into test crops, the outer columns into training crops, so no pixel is in both. Everything follows from one
seed, in integer arithmetic and with a separate PNG writer, so that the files are the same bytes on every machine.
The defects never change: a test compares their digests.
"""

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy import ndarray
from numpy.random import RandomState

from sanflow.data.painted_defects import GRID as CROP
from sanflow.data.painted_defects import KINDS, paint_defect
from sanflow.errors import DataError

# Digests of the decoded photographs, because another release of scikit-image may contain others.
PHOTOGRAPHS = {
    "brick": "664a145c5253f0d66db1a12776785f0ea35a44cc7447ffc933f6d6118dc58643",
    "grass": "b18dae4c68bf850a7a7b28a29d1846c76be890665117b57fd125fe29c4d4ede6",
    "gravel": "3d51ad45f789cd8b98534b7af6bce774e499ead45421135afd757358c7230009",
}
SEED = 20230
N_TRAIN = 80
N_GOOD = 40
N_PER_KIND = 10
TEST_COLUMNS = (160, 352)
TRAIN_COLUMNS = ((0, 160), (352, 512))
# Stones in grass are hard to find even for a person, so a foreign patch comes from a photograph that differs clearly.
FOREIGN = {"brick": ("grass", "gravel"), "grass": ("brick",), "gravel": ("brick",)}


def make_photo_textures(root: Path) -> None:
    """Write the data set in MVTec AD's layout below `root`.

    Arguments:
        root: Folder that will hold brick/, grass/ and gravel/.

    Raises:
        DataError: If the installed scikit-image carries other photographs.
    """
    photographs = {name: load_photograph(name) for name in PHOTOGRAPHS}
    for number, category in enumerate(PHOTOGRAPHS):
        # RandomState, not Generator: only the former's stream is frozen across numpy versions.
        random = RandomState(SEED + number)
        photograph = photographs[category]
        others = [photographs[name] for name in FOREIGN[category]]
        folder = root / category
        for i, crop in enumerate(_crops(photograph, TRAIN_COLUMNS, N_TRAIN, random)):
            write_grey_png(folder / "train" / "good" / f"{i:03d}.png", crop)
        for i, crop in enumerate(_crops(photograph, (TEST_COLUMNS,), N_GOOD, random)):
            write_grey_png(folder / "test" / "good" / f"{i:03d}.png", crop)
        for kind in KINDS:
            for i, crop in enumerate(_crops(photograph, (TEST_COLUMNS,), N_PER_KIND, random)):
                image, mask = paint_defect(kind, crop, others, random)
                write_grey_png(folder / "test" / kind / f"{i:03d}.png", image)
                mask_path = folder / "ground_truth" / kind / f"{i:03d}_mask.png"
                write_grey_png(mask_path, np.where(mask, 255, 0).astype(np.uint8))


def _crops(photograph: ndarray, columns: tuple[tuple[int, int], ...], n: int, random: RandomState) -> list[ndarray]:
    """Cut `n` crops inside the column ranges, spread over the photograph's height, every second one mirrored."""
    heights = random.permutation(np.linspace(0, photograph.shape[0] - CROP, n).astype(np.int64))
    crops = []
    for i, row in enumerate(heights):
        first, last = columns[(i // 2) % len(columns)]
        column = random.randint(first, last - CROP + 1)
        crop = photograph[row : row + CROP, column : column + CROP]
        crops.append(crop[:, ::-1] if i % 2 else crop)
    return crops


def load_photograph(name: str) -> ndarray:
    """Return a photograph of `PHOTOGRAPHS`, (512, 512) uint8.

    Raises:
        DataError: If the installed scikit-image carries another one.
    """
    import skimage.data

    image = getattr(skimage.data, name)()
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    if digest != PHOTOGRAPHS[name]:
        raise DataError(
            f"Expected scikit-image's photograph {name!r} with sha256 {PHOTOGRAPHS[name]}, but got {digest}. "
            "Install a scikit-image release whose wheel carries the original photographs (0.24 to 0.26 do)."
        )
    return image


def write_grey_png(path: Path, image_HW: ndarray) -> None:
    """Write a small grey image as a PNG whose bytes depend on its pixels alone.

    Stored, not compressed: the output of a compressor changes with its version, and with it would change the digest
    of the index.

    Arguments:
        path: Its folder is made.
        image_HW: (H, W) uint8 with H (W + 1) < 65536.
    """
    height, width = image_HW.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter type, 0
    rows[:, 1:] = image_HW
    raw = rows.tobytes()
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw
    stored += struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stored), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
