"""Make the built-in data set: crops of three photographed textures, half of the test crops with a defect.

Brick, grass and gravel are the 512 x 512 grey photographs that scikit-image carries. The middle columns of a photograph
are cut into test crops, the outer columns into training crops, so no pixel is in both. Everything follows from one
seed, in integer arithmetic and with a separate PNG writer, so that the files are the same bytes on every machine.
The defects never change: a test compares their digests.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy import ndarray
from numpy.random import RandomState

from sanflow.errors import DataError

# Digests of the decoded photographs, because another release of scikit-image may contain others.
PHOTOGRAPHS = {
    "brick": "664a145c5253f0d66db1a12776785f0ea35a44cc7447ffc933f6d6118dc58643",
    "grass": "b18dae4c68bf850a7a7b28a29d1846c76be890665117b57fd125fe29c4d4ede6",
    "gravel": "3d51ad45f789cd8b98534b7af6bce774e499ead45421135afd757358c7230009",
}
KINDS = ("blur", "foreign_patch", "scratch", "stain")
SEED = 20230
CROP = 128
N_TRAIN = 80
N_GOOD = 40
N_PER_KIND = 10
TEST_COLUMNS = (160, 352)
TRAIN_COLUMNS = ((0, 160), (352, 512))
# Stones in grass are hard to find even for a person, so a foreign patch comes from a photograph that differs clearly.
FOREIGN = {"brick": ("grass", "gravel"), "grass": ("brick",), "gravel": ("brick",)}
# Mean absolute change inside the mask, in grey values: a defect that shows less is drawn again.
LEAST_CHANGE = {"blur": 14.0, "foreign_patch": 24.0, "scratch": 70.0, "stain": 30.0}


def make_photo_textures(root: Path) -> None:
    """Write the data set in MVTec AD's layout below `root`.

    Arguments:
        root: Folder that will hold brick/, grass/ and gravel/.

    Raises:
        DataError: If the installed scikit-image carries other photographs.
    """
    photographs = {name: _photograph(name) for name in PHOTOGRAPHS}
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


def paint_defect(kind: str, crop: ndarray, others: list[ndarray], random: RandomState) -> tuple[ndarray, ndarray]:
    """Paint one defect that a person can see.

    Arguments:
        kind: One of `KINDS`.
        crop: (H, W) uint8.
        others: Photographs of other textures, for foreign patches.
        random: Source of every choice.

    Returns:
        The image (H, W) uint8, and the mask (H, W) bool; no pixel outside of the mask is changed.
    """
    while True:
        image, mask = PAINTERS[kind](crop, others, random)
        change = np.abs(image.astype(np.int64) - crop)[mask]
        if change.sum() >= LEAST_CHANGE[kind] * mask.sum():
            return image, mask


def _blur(crop: ndarray, others: list[ndarray], random: RandomState) -> tuple[ndarray, ndarray]:
    """Paint a region out of focus: three passes of an 11 x 11 box."""
    depth = _blob(random, radius=random.uniform(20, 30))
    blurred = crop
    for _ in range(3):
        blurred = _box_mean(blurred, 5)
    return _blend(crop, blurred, depth, edge=3.0), depth > 0


def _foreign_patch(crop: ndarray, others: list[ndarray], random: RandomState) -> tuple[ndarray, ndarray]:
    """Paint an irregular piece of another texture with a hard edge."""
    depth = _blob(random, radius=random.uniform(13, 20))
    other = others[random.randint(len(others))]
    row, column = random.randint(0, other.shape[0] - CROP + 1, size=2)
    patch = other[row : row + CROP, column : column + CROP]
    return _blend(crop, patch, depth, edge=1.0), depth > 0


def _scratch(crop: ndarray, others: list[ndarray], random: RandomState) -> tuple[ndarray, ndarray]:
    """Paint a long, slightly bent line, bright or dark, thinner towards its ends."""
    length, angle, bend = random.uniform(50, 90), random.uniform(0, np.pi), random.uniform(-10, 10)
    width, bright = random.uniform(2.6, 3.8), random.randint(2) == 1
    grey = random.randint(218, 242) if bright else random.randint(4, 24)
    centre_row, centre_column = random.uniform(40, CROP - 40, size=2)
    along, across = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    t = np.linspace(-1, 1, 241)
    path = np.stack([np.full_like(t, centre_row), np.full_like(t, centre_column)], axis=1)
    path += np.outer(t * length / 2, along) + np.outer(bend * (1 - t * t), across)
    half_width = width / 2 * np.sqrt(1.1 - t * t)
    # Distances only around the path: elsewhere the depth is negative anyway.
    first, last = np.clip(np.stack([path.min(axis=0) - 4, path.max(axis=0) + 5]).astype(int), 0, CROP)
    near = np.s_[first[0] : last[0], first[1] : last[1]]
    rows, columns = (grid[near] for grid in np.mgrid[:CROP, :CROP])
    distance = np.hypot(rows[..., None] - path[:, 0], columns[..., None] - path[:, 1])
    depth = np.full((CROP, CROP), -1.0)
    depth[near] = (half_width - distance).max(axis=-1) + 0.25
    return _blend(crop, np.full_like(crop, grey), depth, edge=1.0), depth > 0


def _stain(crop: ndarray, others: list[ndarray], random: RandomState) -> tuple[ndarray, ndarray]:
    """Paint a spilt liquid: the texture below stays visible but darker."""
    depth = _blob(random, radius=random.uniform(13, 22))
    percent = random.randint(36, 50)
    darker = (crop.astype(np.int64) * percent // 100).astype(np.uint8)
    return _blend(crop, darker, depth, edge=4.0), depth > 0


Painter = Callable[[ndarray, list[ndarray], RandomState], tuple[ndarray, ndarray]]
PAINTERS: dict[str, Painter] = {
    "blur": _blur,
    "foreign_patch": _foreign_patch,
    "scratch": _scratch,
    "stain": _stain,
}


def _blob(random: RandomState, radius: float) -> ndarray:
    """Return the depth below the edge of an irregular round region, in pixels, (CROP, CROP); positive inside."""
    centre_row, centre_column = random.uniform(radius, CROP - radius, size=2)
    rows, columns = np.mgrid[:CROP, :CROP]
    rows, columns = rows - centre_row, columns - centre_column
    angle = np.arctan2(rows, columns)
    edge = np.full((CROP, CROP), radius)
    for waves, share in ((2, 0.22), (3, 0.14), (5, 0.07)):
        edge += radius * random.uniform(0, share) * np.cos(waves * angle + random.uniform(0, 2 * np.pi))
    return edge - np.hypot(rows, columns)


def _blend(below: ndarray, above: ndarray, depth: ndarray, edge: float) -> ndarray:
    """Blend two textures: `above` deeper than `edge` pixels in the region, a ramp before that, `below` outside."""
    weight = np.floor(np.clip((depth + edge / 4) / (edge * 1.25), 0, 1) * 256 + 0.5).astype(np.int64)
    weight[depth <= 0] = 0
    return ((below * (256 - weight) + above * weight + 128) // 256).astype(np.uint8)


def _box_mean(image: ndarray, radius: int) -> ndarray:
    """Compute the mean over a square of 2 radius + 1 pixels, edges repeated; whole numbers throughout."""
    side = 2 * radius + 1
    sums = np.pad(image.astype(np.int64), radius, mode="edge")
    for axis in (0, 1):
        sums = np.cumsum(sums, axis=axis)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis=axis)
        n = sums.shape[axis]
        sums = sums.take(range(side, n), axis) - sums.take(range(n - side), axis)
    return ((sums + side * side // 2) // (side * side)).astype(np.uint8)


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


def _photograph(name: str) -> ndarray:
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
