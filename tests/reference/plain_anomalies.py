"""Synthetic anomalies of docs/method.md drawn with Pillow and torchvision, one image at a time.

Takes the random choices of a drawing of ours, so that both paint the same thing. Shares no code with it.
"""

import math

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFilter
from torchvision.transforms import functional as T

GRID, FINE = 128, 16  # outlines are drawn 16 times finer, so that pixels are decided by their centres


def shape_mask(shape: tuple, flips: tuple[bool, bool], size: tuple[int, int]) -> ndarray:
    """Mask (H, W) in [0, 1] of a rectangle or disc: drawn on the grid, blurred, enlarged twice, resized, mirrored."""
    kind, x, y, a, b, angle = shape
    canvas = Image.new("L", (GRID * FINE, GRID * FINE))
    draw = ImageDraw.Draw(canvas)
    if kind == 2:
        draw.ellipse([FINE * (x - a), FINE * (y - a), FINE * (x + a), FINE * (y + a)], fill=255)
    else:
        c, s = math.cos(angle), math.sin(angle)
        corners = [(a, b), (-a, b), (-a, -b), (a, -b)]
        draw.polygon([(FINE * (x + u * c - v * s), FINE * (y + u * s + v * c)) for u, v in corners], fill=255)
    fine = np.asarray(canvas)
    grid = Image.fromarray(np.ascontiguousarray(fine[FINE // 2 :: FINE, FINE // 2 :: FINE]))
    mask = grid.filter(ImageFilter.BLUR).resize((2 * GRID, 2 * GRID), Image.Resampling.BICUBIC)
    mask = mask.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return _flip(np.asarray(mask), flips) / 255


def jittered(image: Image.Image, factors: tuple[float, float, float, float], order: list[int]) -> Image.Image:
    operations = [T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue]
    for place in order:
        image = operations[place](image, factors[place])
    return image


def pasted(
    image: ndarray, foreign: ndarray, mask: ndarray, crop: tuple, flips: tuple, factors: tuple, order: list[int]
) -> ndarray:
    """image (1 - m) + y m, with y a mirrored and jittered crop of the foreign image; all uint8 (H, W, 3)."""
    height, width = image.shape[:2]
    top = int(crop[0] * (foreign.shape[0] - height + 1))
    left = int(crop[1] * (foreign.shape[1] - width + 1))
    texture = Image.fromarray(_flip(foreign[top : top + height, left : left + width], flips))
    texture_HW3 = np.asarray(jittered(texture, factors, order))
    return image * (1 - mask[..., None]) + texture_HW3 * mask[..., None]


def scarred(image: ndarray, scar: tuple, factors: tuple, order: list[int]) -> tuple[ndarray, ndarray]:
    """The image with a jittered, rotated patch of its own pasted, and where: (H, W, 3) and (H, W) bool."""
    patch_height, patch_width, top, left, angle, centre_y, centre_x = scar
    patch = Image.fromarray(np.ascontiguousarray(image[top : top + patch_height, left : left + patch_width]))
    patch = jittered(patch, factors, order)
    c, s = math.cos(angle), math.sin(angle)
    # Pillow wants, for each output pixel, where it comes from.
    inverse = (
        c, s, patch_width / 2 - c * centre_x - s * centre_y,
        -s, c, patch_height / 2 + s * centre_x - c * centre_y,
    )  # fmt: skip
    size = (image.shape[1], image.shape[0])
    moved = patch.transform(size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST)
    white = Image.new("L", patch.size, 255).transform(size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST)
    inside = np.asarray(white) > 0
    return np.where(inside[..., None], np.asarray(moved), image), inside


def _flip(array: ndarray, flips: tuple[bool, bool]) -> ndarray:
    left_right, top_bottom = flips
    array = array[:, ::-1] if left_right else array
    array = array[::-1] if top_bottom else array
    return np.ascontiguousarray(array)
