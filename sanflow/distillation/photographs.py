"""Photographs to distil from: a user's folders, or the freely licensed ones that come with our dependencies.

Only photographs whose licence is stated where they ship are listed. Left out on purpose: `brick`, `grass` and
`gravel` (the built-in data set is made of them, an encoder must not have seen them) and those without a statement.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sanflow.errors import DataError

BUILTIN = "builtin"  # what a user writes instead of a folder
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package, and why it may be used."""

    package: str
    path: str
    licence: str


PHOTOGRAPHS = (
    Photograph("skimage", "data/astronaut.png", "public domain (NASA)"),
    Photograph("skimage", "data/camera.png", "CC0 (Lav Varshney)"),
    Photograph("skimage", "data/cell.png", "CC0 (Paul Müller et al.)"),
    Photograph("skimage", "data/chelsea.png", "CC0 (Stéfan van der Walt)"),
    Photograph("skimage", "data/clock_motion.png", "public domain (Stéfan van der Walt)"),
    Photograph("skimage", "data/coffee.png", "CC0 (Rachel Michetti)"),
    Photograph("skimage", "data/coins.png", "no known copyright restrictions (Brooklyn Museum)"),
    Photograph("skimage", "data/hubble_deep_field.jpg", "public domain (NASA)"),
    Photograph("skimage", "data/ihc.png", "no known copyright restrictions (CMMI)"),
    Photograph("skimage", "data/microaneurysms.png", "CC0 (Andreas Maier)"),
    Photograph("skimage", "data/retina.jpg", "CC0 (Mikael Häggström)"),
    Photograph("skimage", "data/rocket.jpg", "public domain (SpaceX)"),
    Photograph("skimage", "data/text.png", "public domain"),
    Photograph("sklearn", "datasets/images/china.jpg", "CC BY 2.0 (danielbuechele, Flickr)"),
    Photograph("sklearn", "datasets/images/flower.jpg", "CC BY 2.0 (vultilion, Flickr)"),
)


def builtin_photographs() -> list[Path]:
    """Paths of `PHOTOGRAPHS` in the installed packages.

    Raises:
        DataError: If an installed package no longer carries one of them.
    """
    paths = []
    for photograph in PHOTOGRAPHS:
        spec = importlib.util.find_spec(photograph.package)
        folder = Path(spec.origin).parent if spec and spec.origin else Path(photograph.package)
        path = folder / photograph.path
        if not path.is_file():
            raise DataError(
                f"Expected the photograph {photograph.path} in the package {photograph.package}, but got no such file: "
                f"{path}. Install scikit-image and scikit-learn from their wheels, or give a folder of photographs."
            )
        paths.append(path)
    return paths


def licence_of(path: Path) -> str | None:
    """Licence of one of `PHOTOGRAPHS`; None for a photograph of the user's own, whose licence only they know."""
    for photograph in PHOTOGRAPHS:
        if path.as_posix().endswith(f"/{photograph.package}/{photograph.path}"):
            return photograph.licence
    return None


def photograph_paths(sources: Sequence[str]) -> list[Path]:
    """Every image file of the sources, each folder's in the order of their names.

    Arguments:
        sources: Folders, searched recursively; or the word `builtin`.

    Raises:
        DataError: If a folder is missing or holds no image.
    """
    paths: list[Path] = []
    for source in sources:
        if source == BUILTIN:
            paths += builtin_photographs()
            continue
        folder = Path(source)
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(
                f"Expected a folder with images ({', '.join(sorted(SUFFIXES))}), but got {folder} with none. "
                f"Name another folder, or `{BUILTIN}` for the photographs that come with the dependencies."
            )
        paths += found
    return paths


def read_photographs(paths: Sequence[Path]) -> list[np.ndarray]:
    """Read images as uint8 RGB of shape (H, W, 3), at their own size.

    Raises:
        DataError: If a file cannot be read as an image.
    """
    photographs = []
    for path in paths:
        try:
            with Image.open(path) as image:
                photographs.append(np.asarray(image.convert("RGB")))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(
                f"Expected an image in {path}, but it cannot be read ({error}). Remove or replace it."
            ) from error
    return photographs
