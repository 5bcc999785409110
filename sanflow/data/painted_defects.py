"""Paint defects with known masks over images of good parts: blur, foreign patch, scratch and stain.

A defect is drawn on a grid of 128 x 128, so that its shape does not depend on the image's size. Images of that size get
the same pixels on every machine: textures are blended in integers.

Shapes: H x W pixels of the image, G = 128 cells of the grid along either side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from numpy.random import RandomState
from PIL import Image

KINDS = ("blur", "foreign_patch", "scratch", "stain")
GRID = 128
# Mean absolute change inside the mask, in grey values: a defect that shows less is drawn again.
LEAST_CHANGE = {"blur": 14.0, "foreign_patch": 24.0, "scratch": 70.0, "stain": 30.0}
MOST_DRAWS = 20


@dataclass(frozen=True)
class Style:
    """The outlines and sizes of defects.

    Arguments:
        waves: Around the outline: pairs of their number and their largest height as a share of the radius.
        smallest: The smallest defect is this much of the usual size, in (0, 1]; a scratch is shorter, not thinner.
    """

    waves: tuple[tuple[int, float], ...]
    smallest: float


SMOOTH = Style(waves=((2, 0.22), (3, 0.14), (5, 0.07)), smallest=1.0)
# Heights fall as a power of the number of waves, so the outline is rough at every scale, as that of a fractal.
FRACTAL = Style(waves=tuple((n, 0.4 * n**-0.5) for n in (2, 3, 5, 8, 13, 21, 34)), smallest=0.3)


class InvisibleDefect(Exception):
    """No defect of a kind shows on an image, such as blur on an even surface."""


@dataclass(frozen=True)
class _Drawing:
    """What lies over an image, the depth below the outline on the grid, and the width of the edge, both in cells."""

    above: ndarray
    depth_GG: ndarray
    edge: float


def paint_defect(
    kind: str, image: ndarray, others: list[ndarray], random: RandomState, style: Style = SMOOTH
) -> tuple[ndarray, ndarray]:
    """Paint one defect that a person can see.

    Arguments:
        kind: One of `KINDS`.
        image: (H, W) or (H, W, 3) uint8.
        others: Square photographs of other textures, uint8, larger than the grid, for foreign patches.
        random: Source of every choice.
        style: Of the outline and the size.

    Returns:
        The painted image, and the mask (H, W) bool; no pixel outside of the mask is changed.

    Raises:
        InvisibleDefect: If none of `MOST_DRAWS` drawings changes the image enough to be seen.
    """
    for _ in range(MOST_DRAWS):
        drawing = PAINTERS[kind](image, others, random, style)
        depth_HW = _to_size(drawing.depth_GG, image.shape[:2])
        mask_HW = depth_HW > 0
        painted = _blend(image, drawing.above, depth_HW, drawing.edge)
        change = np.abs(painted.astype(np.int64) - image)[mask_HW]
        if change.size and change.sum() >= LEAST_CHANGE[kind] * change.size:
            return painted, mask_HW
    raise InvisibleDefect(f"no {kind} of {MOST_DRAWS} drawings shows on this image")


def _blur(image: ndarray, others: list[ndarray], random: RandomState, style: Style) -> _Drawing:
    """Draw a region out of focus: three passes of a box of 11 x 11 cells."""
    depth_GG = _blob(random, random.uniform(20, 30), style)
    blurred = image
    for _ in range(3):
        blurred = _box_mean(blurred, max(1, round(5 * min(image.shape[:2]) / GRID)))
    return _Drawing(blurred, depth_GG, edge=3.0)


def _foreign_patch(image: ndarray, others: list[ndarray], random: RandomState, style: Style) -> _Drawing:
    """Draw an irregular piece of another texture with a hard edge."""
    depth_GG = _blob(random, random.uniform(13, 20), style)
    other = others[random.randint(len(others))]
    row, column = random.randint(0, other.shape[0] - GRID + 1, size=2)
    patch_HW = _to_size(other[row : row + GRID, column : column + GRID], image.shape[:2])
    return _Drawing(patch_HW if image.ndim == 2 else patch_HW[..., None], depth_GG, edge=1.0)


def _scratch(image: ndarray, others: list[ndarray], random: RandomState, style: Style) -> _Drawing:
    """Draw a long, slightly bent line, bright or dark, thinner towards its ends."""
    length, angle, bend = random.uniform(50, 90), random.uniform(0, np.pi), random.uniform(-10, 10)
    width, bright = random.uniform(2.6, 3.8), random.randint(2) == 1
    grey = random.randint(218, 242) if bright else random.randint(4, 24)
    centre_row, centre_column = random.uniform(40, GRID - 40, size=2)
    length *= _share_of_size(random, style)
    along, across = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    t = np.linspace(-1, 1, 241)
    path = np.stack([np.full_like(t, centre_row), np.full_like(t, centre_column)], axis=1)
    path += np.outer(t * length / 2, along) + np.outer(bend * (1 - t * t), across)
    half_width = width / 2 * np.sqrt(1.1 - t * t)
    # Distances only around the path: elsewhere the depth is negative anyway.
    first, last = np.clip(np.stack([path.min(axis=0) - 4, path.max(axis=0) + 5]).astype(int), 0, GRID)
    near = np.s_[first[0] : last[0], first[1] : last[1]]
    rows, columns = (grid[near] for grid in np.mgrid[:GRID, :GRID])
    distance = np.hypot(rows[..., None] - path[:, 0], columns[..., None] - path[:, 1])
    depth_GG = np.full((GRID, GRID), -1.0)
    depth_GG[near] = (half_width - distance).max(axis=-1) + 0.25
    return _Drawing(np.full_like(image, grey), depth_GG, edge=1.0)


def _stain(image: ndarray, others: list[ndarray], random: RandomState, style: Style) -> _Drawing:
    """Draw a spilt liquid: the texture below stays visible but darker."""
    depth_GG = _blob(random, random.uniform(13, 22), style)
    percent = random.randint(36, 50)
    return _Drawing((image.astype(np.int64) * percent // 100).astype(np.uint8), depth_GG, edge=4.0)


Painter = Callable[[ndarray, list[ndarray], RandomState, Style], _Drawing]
PAINTERS: dict[str, Painter] = {
    "blur": _blur,
    "foreign_patch": _foreign_patch,
    "scratch": _scratch,
    "stain": _stain,
}


def _blob(random: RandomState, radius: float, style: Style) -> ndarray:
    """Return the depth below the edge of an irregular round region, in cells, (G, G); positive inside."""
    radius *= _share_of_size(random, style)
    centre_row, centre_column = random.uniform(radius, GRID - radius, size=2)
    rows, columns = np.mgrid[:GRID, :GRID]
    rows, columns = rows - centre_row, columns - centre_column
    angle = np.arctan2(rows, columns)
    edge = np.full((GRID, GRID), radius)
    for waves, share in style.waves:
        edge += radius * random.uniform(0, share) * np.cos(waves * angle + random.uniform(0, 2 * np.pi))
    return edge - np.hypot(rows, columns)


def _share_of_size(random: RandomState, style: Style) -> float:
    """Draw how much of its usual size a defect has; nothing is drawn where all have their usual size."""
    return 1.0 if style.smallest == 1 else random.uniform(style.smallest, 1)


def _to_size(values_GG: ndarray, size: tuple[int, int]) -> ndarray:
    """Resize what is on the grid to the size of the image, bilinearly."""
    if values_GG.shape == size:
        return values_GG
    source = Image.fromarray(values_GG.astype(np.uint8 if values_GG.dtype == np.uint8 else np.float32))
    return np.asarray(source.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _blend(below: ndarray, above: ndarray, depth_HW: ndarray, edge: float) -> ndarray:
    """Blend two textures: `above` deeper than `edge` in the region, a ramp before that, `below` outside."""
    weight = np.floor(np.clip((depth_HW + edge / 4) / (edge * 1.25), 0, 1) * 256 + 0.5).astype(np.int64)
    weight[depth_HW <= 0] = 0
    if below.ndim == 3:
        weight = weight[..., None]
    return ((below * (256 - weight) + above * weight + 128) // 256).astype(np.uint8)


def _box_mean(image: ndarray, radius: int) -> ndarray:
    """Compute the mean over a square of 2 radius + 1 pixels, edges repeated; whole numbers throughout."""
    side = 2 * radius + 1
    margins = [(radius, radius), (radius, radius), (0, 0)][: image.ndim]
    sums = np.pad(image.astype(np.int64), margins, mode="edge")
    for axis in (0, 1):
        sums = np.cumsum(sums, axis=axis)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis=axis)
        n = sums.shape[axis]
        sums = sums.take(range(side, n), axis) - sums.take(range(n - side), axis)
    return ((sums + side * side // 2) // (side * side)).astype(np.uint8)
