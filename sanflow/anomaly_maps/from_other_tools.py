"""Read anomaly maps that another tool made from a folder into a scores file (method `external`).

So any method can be measured and shown in the same tables. There is one map per test image: `.npy`, `.npz` with one
array, `.tif`/`.tiff` (any number type), `.exr`, or `.png` (8 or 16 bits); one channel, higher for more anomalous, of
the size of its image or of the experiment's input.
"""

import hashlib
import os
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from sanflow.anomaly_maps.maps import resized
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.config.experiment import Experiment
from sanflow.config.names import normal_form, printable
from sanflow.data.index import Index
from sanflow.data.litter import is_litter
from sanflow.errors import DataError
from sanflow.provenance import Provenance, Step, code_digest, fit_digest

ENDINGS = (".npy", ".npz", ".tif", ".tiff", ".exr", ".png")
LOSSY = (".jpg", ".jpeg", ".webp")
SHOWN = 40  # problems that one message names


def score_external(
    index: Index,
    folder: str | os.PathLike[str],
    experiment: Experiment,
    *,
    name: str,
    seed: int | None = None,
    given_as: Mapping[str, str] | None = None,
    step: Step | None = None,
) -> Scores:
    """Read the maps of all test images of a category.

    A map belongs to the image whose path (relative to the data set, without its ending) ends like the map's path in
    the folder: `<folder>/crack/007.tiff` to `bottle/test/crack/007.png`. The longest such path counts.

    Arguments:
        index: The category.
        folder: Folder of the maps, which may be in subfolders of any depth.
        experiment: Its input size is that at which the headline metrics are measured.
        name: Key of the experiment in the benchmark.
        seed: Seed of the run.
        given_as: Test image -> the name under which the tool saw it, after which its map is named; None: its own.
        step: How the maps were made; None: they were found in the folder.

    Returns:
        Scores of kind `anomaly_map`; the maps at their own size if they all have one, else at the input size.

    Raises:
        DataError: Naming together all maps that are missing, extra, double, unreadable, of a wrong size or not finite.
    """
    root, input_size = Path(folder), experiment.input_size_for(index.dataset, index.category)
    if not root.is_dir():
        raise DataError(f"Expected a folder of anomaly maps at {root}, but there is none. Set `maps` to their folder.")
    table = index.test
    natives = [(int(height), int(width)) for height, width in table[["height", "width"]].to_numpy()]
    images = [str(image) for image in table.image]
    # How messages call an image, and the path that its map's path is compared with.
    names = [image if given_as is None else f"{image} (given as {given_as[image]})" for image in images]
    seen = [image if given_as is None else given_as[image] for image in images]
    found, problems = _match(dict(zip(names, seen, strict=True)), root)
    maps, digest = [], hashlib.sha256()
    for shown, native in zip(names, natives, strict=True):
        file = found.get(shown)
        if file is None:
            continue
        try:
            maps.append(_read_map(file, {native, input_size}))
            digest.update(maps[-1].tobytes())
        except DataError as error:
            of_image = "" if given_as is None else f", the map of {shown}"
            problems.append(f"{file.relative_to(root)}{of_image}: {error}")
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems[:SHOWN])
        more = f"\n  - and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"Expected one anomaly map in {root} for each of {len(table)} test images of "
            f"{index.dataset}/{index.category}, but:\n{listed}{more}\n"
            "Correct these maps or the tool that writes them, and score again."
        )
    if len({map_HW.shape for map_HW in maps}) > 1:
        maps = [resized(map_HW, input_size) for map_HW in maps]
    provenance = Provenance(
        dataset=index.dataset,
        category=index.category,
        experiment_name=name,
        experiment=experiment.model_dump(mode="json"),
        index_digest=index.digest,
        config_digest=fit_digest(experiment, index.dataset, index.category),
        seed=seed,
        steps={"score": step or Step(code_digest("score_external"), details={"maps": str(folder)})},
    )
    return Scores(
        kind="anomaly_map",
        grids={"map": np.stack(maps)},
        constants={},
        paths=images,
        labels=table.label.to_numpy() == 1,
        defect_types=[str(name) for name in table.defect_type],
        input_size=input_size,
        provenance={**provenance.to_dict(), "maps_sha256": digest.hexdigest()},
    )


def _match(images: Mapping[str, str], root: Path) -> tuple[dict[str, Path], list[str]]:
    """Match images (name in messages -> path) with maps; return name -> map, and the problems found."""
    by_key: dict[str, list[Path]] = defaultdict(list)
    unread: dict[str, Path] = {}
    for file in sorted(root.rglob("*")):
        if file.is_file() and not is_litter(file.name):
            place = normal_form(file.relative_to(root).with_suffix("").as_posix())
            if file.suffix.lower() in ENDINGS:
                by_key[place].append(file)
            else:
                unread[place] = file
    key_of = {image: _longest_key(path, by_key) for image, path in images.items()}
    images_of: dict[str, list[str]] = defaultdict(list)
    for image, key in key_of.items():
        if key is not None:
            images_of[key].append(image)
    problems = [f"{image}: {_no_map(images[image], unread, root)}" for image, key in key_of.items() if key is None]
    problems += [
        f"{file.relative_to(root)}: no test image" for key in by_key if key not in images_of for file in by_key[key]
    ]
    problems += [
        f"{by_key[key][0].relative_to(root)}: it could belong to {' or '.join(several)}; use the images' folders"
        for key, several in images_of.items()
        if len(several) > 1
    ]
    problems += [
        f"{images_of[key][0]}: several maps, {' and '.join(str(file.relative_to(root)) for file in by_key[key])}"
        for key in images_of
        if len(by_key[key]) > 1
    ]
    single = {image: key for image, key in key_of.items() if key is not None and len(images_of[key]) == 1}
    return {image: by_key[key][0] for image, key in single.items()}, problems


def _no_map(image: str, unread: Mapping[str, Path], root: Path) -> str:
    found = _longest_key(image, unread)
    if found is None:
        return "no map"
    file = unread[found]
    why = "its compression changes the numbers" if file.suffix.lower() in LOSSY else "it is not read"
    return (
        f"no map, but {printable(str(file.relative_to(root)))}, and {why}. Save the maps as {', '.join(ENDINGS[:-1])} "
        f"or {ENDINGS[-1]}"
    )


def _longest_key(image: str, keys: Mapping[str, Any]) -> str | None:
    parts = PurePosixPath(normal_form(image)).with_suffix("").parts
    suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in keys), None)


def _read_map(file: Path, sizes: set[tuple[int, int]]) -> np.ndarray:
    """Read one map as (H, W) float32.

    Raises:
        DataError: Without the file's name, which the caller knows.
    """
    try:
        ending = file.suffix.lower()
        if ending == ".npy":
            values = np.load(file, allow_pickle=False)
        elif ending == ".npz":
            values = _only_array(file)
        elif ending == ".exr":
            values = _only_channel(file)
        elif ending == ".png":
            with Image.open(file) as image:
                values = np.asarray(image)
        else:  # Pillow knows neither 16-bit nor 64-bit floats
            values = tifffile.imread(file)
    except (OSError, ValueError, EOFError, SyntaxError, UnidentifiedImageError, zipfile.BadZipFile) as error:
        raise DataError(f"it cannot be read ({error})") from error
    if not isinstance(values, np.ndarray):  # an .npz by its content
        values.close()
        raise DataError("expected one array, but it is an archive of arrays")
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise DataError(f"expected one channel of real numbers, but got shape {values.shape} of {values.dtype}")
    if values.shape not in sizes:
        expected = " or ".join(f"{height} x {width}" for height, width in sorted(sizes))
        raise DataError(f"expected height x width {expected}, but got {values.shape[0]} x {values.shape[1]}")
    with np.errstate(over="ignore"):
        map_HW: np.ndarray = values.astype(np.float32)
    if not np.isfinite(map_HW).all():
        raise DataError("expected finite numbers in the range of float32, but it holds NaN, infinity or larger ones")
    return map_HW


def _only_array(file: Path) -> np.ndarray:
    with np.load(file, allow_pickle=False) as arrays:
        if len(arrays.files) != 1:
            raise DataError(f"expected one array, but it holds {', '.join(arrays.files) or 'none'}; save the map alone")
        values: np.ndarray = arrays[arrays.files[0]]
    return values


def _only_channel(file: Path) -> np.ndarray:
    try:
        import OpenEXR
    except ImportError as error:
        raise DataError("reading .exr needs OpenEXR: `pip install OpenEXR`, or save the map as .npy or .tif") from error
    try:
        with OpenEXR.File(str(file), separate_channels=True) as content:
            channels = {name: np.array(channel.pixels) for name, channel in content.channels().items()}
    except RuntimeError as error:
        raise DataError(f"it cannot be read ({error})") from error
    if len(channels) != 1:
        raise DataError(f"expected one channel, but it has {', '.join(channels)}")
    return next(iter(channels.values()))
