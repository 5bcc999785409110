"""Read one mask: which pixels of an image are defective.

A mask is named by a reference relative to the data set's top folder:
- a file, whose pages are joined,
- a folder, whose files are joined (MVTec LOCO has several masks per image), or
- `<file>.npy/<frame>`, one frame of an array (frames, height, width). No file can have that path.

A pixel is judged by its colour, not by its index in a palette. Background is black or transparent.

Shapes: H height, W width, C channels.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from sanflow.data.decode import DAMAGE, Page, Reading, load_page, open_limited, page_numbers, read_bytes
from sanflow.data.litter import is_litter
from sanflow.errors import DataError

SHOWN_LEVELS = 8


class MaskPart(NamedTuple):
    """One page of a file of a mask: the file's path relative to the data set's top folder, its levels (H, W)."""

    file: str
    levels_HW: ndarray


@dataclass(frozen=True)
class Mask:
    """A mask at its own resolution.

    Arguments:
        defect_HW: (H, W) bool, True where defective.
        sha256: Digest of the bytes of its files, or of its frame.
        doubts: Why its files may be misread: they have other levels than background and defect.
        parts: Its pages, the brightest channel of each; none of a frame.
    """

    defect_HW: ndarray
    sha256: str
    doubts: tuple[str, ...] = ()
    parts: tuple[MaskPart, ...] = ()


def read_mask(root: Path, reference: str, reading: Reading | None = None) -> Mask:
    """Read a mask; each of its files is read once.

    Arguments:
        root: The data set's top folder.
        reference: See the top of this file.
        reading: How the data set's files are read.

    Raises:
        DataError: If a file is missing or damaged, holds only black on transparent, or joined masks differ in size.
    """
    reading = reading or Reading()
    path = root / reference
    if path.parent.suffix == ".npy" and path.parent.is_file():
        frame_HW = _array_frame(path.parent, path.name)
        return Mask(np.asarray(frame_HW > reading.mask_above), hashlib.sha256(frame_HW.tobytes()).hexdigest())
    digest, parts, doubts = hashlib.sha256(), [], []
    for file in mask_files(path) if path.is_dir() else [path]:
        data, name = read_bytes(file, "a mask"), file.relative_to(root).as_posix()
        digest.update(data)
        for levels_HWC in _pages(data, file, reading.max_megapixels):
            doubts += [f"{name}: {doubt}" for doubt in _doubts(levels_HWC)]
            parts.append(MaskPart(name, levels_HWC.max(axis=-1)))
    sizes = [part.levels_HW.shape for part in parts]
    if len(set(sizes)) != 1:
        raise DataError(f"Expected masks of one size in {path}, but got {sizes}.")
    defect_HW = np.logical_or.reduce([part.levels_HW > reading.mask_above for part in parts])
    return Mask(defect_HW, digest.hexdigest(), tuple(doubts), tuple(parts))


def mask_files(folder: Path) -> list[Path]:
    """List the files of a mask that consists of several."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not is_litter(path.name))


def _pages(data: bytes, path: Path, max_megapixels: float) -> list[ndarray]:
    """Return the levels of each page, (H, W, C) with one channel for grey and three for colour."""
    try:
        with open_limited(data, max_megapixels) as image:
            return [
                _levels(load_page(image, data, number, max_megapixels), image.info) for number in page_numbers(image)
            ]
    except DAMAGE as error:
        raise DataError(f"Expected a readable mask at {path}, but got: {error}. Replace the file.") from error


def _levels(page: Page, info: dict[str | tuple[int, int], object]) -> ndarray:
    image, values = page.image, page.sixteen_bits_HWC
    if values is None:
        if "transparency" in info and not image.mode.startswith("I"):
            image = image.convert("RGBA")
        elif image.mode in {"1", "P", "CMYK", "YCbCr", "LAB", "HSV", "La", "PA", "RGBa"}:
            image = image.convert({"1": "L", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
        values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    if values.ndim == 2:
        return values[..., None]
    if values.shape[-1] in {2, 4}:
        return _on_black(values[..., :-1], values[..., -1:])
    return values


def _on_black(colour_HWC: ndarray, alpha_HW1: ndarray) -> ndarray:
    """Draw a mask on black; an alpha channel of one value has no meaning."""
    if alpha_HW1.min() == alpha_HW1.max() > 0:
        return colour_HWC
    shown_HWC = (colour_HWC.astype(np.int64) * alpha_HW1 // np.iinfo(alpha_HW1.dtype).max).astype(colour_HWC.dtype)
    if not shown_HWC.any() and (alpha_HW1.any() or colour_HWC.any()):
        raise ValueError(
            "only black or invisible pixels beside transparent ones, so what is defective is unknown; "
            "save it without transparency, defects in white on black"
        )
    return shown_HWC


def _doubts(levels_HWC: ndarray) -> list[str]:
    """Say why a page may not have two levels, background and defect."""
    if levels_HWC.shape[-1] == 1 or (levels_HWC == levels_HWC[..., :1]).all():
        grey_HW = levels_HWC[..., 0]
        if grey_HW.dtype.kind == "u":
            levels = np.flatnonzero(np.bincount(grey_HW.ravel())).tolist()
        else:
            levels = np.unique(grey_HW).tolist()
        shown = [f"{level:g}" for level in levels]
        kind = "grey level"
    else:
        shift = 16 * np.arange(levels_HWC.shape[-1])[::-1]
        colours = np.unique((levels_HWC.astype(np.int64) << shift).sum(axis=-1))
        levels = colours.tolist()
        shown = [str(tuple(int(level) >> int(step) & 0xFFFF for step in shift)) for level in levels]
        kind = "colour"
    if len(levels) == 1 or (len(levels) == 2 and levels[0] == 0):
        return []
    some = ", ".join(shown if len(shown) <= SHOWN_LEVELS else [*shown[: SHOWN_LEVELS - 1], "...", shown[-1]])
    return [
        f"expected a mask of two {kind}s, black and one other, but found {len(levels)}: {some}. Correct the mask, or "
        "set `mask_above` for the data set: the value above which a pixel is defective (its brightest channel), 127 "
        "for soft edges, 0 where all but black is defective"
    ]


def _array_frame(path: Path, frame: str) -> ndarray:
    try:
        return np.ascontiguousarray(np.load(path, mmap_mode="r", allow_pickle=False)[int(frame)])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"Expected masks (frames, height, width) with frame {frame} in {path}, but got: {error}."
        ) from error
