"""The scores file: the scores of every test image, from which all later results are computed.

`scores.npz` holds score grids at their native size, one stack per scale. Fusion, resolution, metrics, tables
and figures come from it, on any machine. Two kinds exist:

- `log_prob`: log p / C under the normal base, one stack per scale of a flow; higher is more normal.
- `anomaly_map`: finished anomaly maps in one stack named "map"; higher is more anomalous.

`extras.npz` beside it holds data for figures only. Both are numpy archives without pickles and contain a
digest of their content.

Shapes: N test images in the order of the index, H x W a map, M sampled latents, C channels.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sanflow.errors import DataError, IntegrityError
from sanflow.files import atomic_path

FORMAT = 1
Kind = Literal["log_prob", "anomaly_map"]
# Exceptions of numpy and zipfile for bytes that are not an archive of plain arrays.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of all test images of one category by one run.

    Arguments:
        kind: Meaning of a grid's numbers, see the top of this file.
        grids: Name of a scale -> (N, h, w) float32; scales in the order of the flows, or {"map": ...}.
        constants: Name of a scale -> its calibration constant, the log p / C of normal training images that
            calibrated fusion subtracts; empty for anomaly maps.
        paths: Of the test images, relative to the data set's root, in the order of the index.
        labels: (N,) True where the image is anomalous.
        defect_types: Per image, "good" where there is none.
        input_size: (height, width) the images had before the model.
        image_scores: (N,) float32 image scores of the method's own; None: an image's score is the maximum of its map.
        held_out_scores: (M,) float64 image scores of good parts that the fit did not see; None if there are none.
        held_out_parts: (M,) int64, a number for the part that each of them shows; None: each another one.
        provenance: The values of a `Provenance`, and "checkpoint_digest" or "maps_sha256".
        cost: "images_per_second" of scoring and the like; JSON values.

    Raises:
        ValueError: If shapes, lengths or names do not agree.
    """

    kind: Kind
    grids: dict[str, np.ndarray]
    constants: dict[str, float]
    paths: list[str]
    labels: np.ndarray
    defect_types: list[str]
    input_size: tuple[int, int]
    image_scores: np.ndarray | None = None
    held_out_scores: np.ndarray | None = None
    held_out_parts: np.ndarray | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    cost: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Expected kind to be one of {get_args(Kind)}, but got {self.kind!r}.")
        if not self.grids or (self.kind == "anomaly_map" and list(self.grids) != ["map"]):
            raise ValueError(
                "Expected one grid per scale, or a single one named 'map' for anomaly maps, but got "
                f"{list(self.grids)} for kind {self.kind!r}."
            )
        n_images = len(self.paths)
        grids = {name: np.asarray(grid_NHW, np.float32) for name, grid_NHW in self.grids.items()}
        for name, grid_NHW in grids.items():
            if grid_NHW.ndim != 3 or len(grid_NHW) != n_images:
                raise ValueError(f"Expected grid {name!r} of shape ({n_images}, h, w), but got {grid_NHW.shape}.")
        if np.shape(self.labels) != (n_images,) or len(self.defect_types) != n_images:
            raise ValueError(
                f"Expected a label and a defect type for each of {n_images} images, but got "
                f"{np.shape(self.labels)} and {len(self.defect_types)}."
            )
        if self.image_scores is not None and np.shape(self.image_scores) != (n_images,):
            raise ValueError(f"Expected {n_images} image scores, but got shape {np.shape(self.image_scores)}.")
        if len(set(self.paths)) != n_images:
            raise ValueError("Expected each test image once, but some path occurs twice.")
        expected = set(self.grids) if self.kind == "log_prob" else set()
        if set(self.constants) != expected:
            raise ValueError(
                f"Expected calibration constants for {sorted(expected)}, but got {sorted(self.constants)}."
            )
        object.__setattr__(self, "grids", grids)
        object.__setattr__(self, "labels", np.asarray(self.labels, bool))
        if self.image_scores is not None:
            object.__setattr__(self, "image_scores", np.asarray(self.image_scores, np.float32))
        object.__setattr__(self, "input_size", (int(self.input_size[0]), int(self.input_size[1])))

    def require_finite(self, name: object = "these scores") -> None:
        """Raise an error for scores that no metric can rank.

        Raises:
            DataError: If a grid holds NaN or infinity; names the first such image.
        """
        own = {} if self.image_scores is None else {"image_scores": self.image_scores[:, None, None]}
        for scale, grid_NHW in {**self.grids, **own}.items():
            bad_N = ~np.isfinite(grid_NHW).all(axis=(1, 2))
            if bad_N.any():
                raise DataError(
                    f"Expected finite numbers in {name}, but got NaN or infinity in grid {scale!r} for "
                    f"{int(bad_N.sum())} of {len(self.paths)} images, first "
                    f"{self.paths[int(bad_N.argmax())]}. The model has diverged, or the maps were made wrongly: "
                    "train again with a smaller learning rate, or make the maps again."
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write atomically as a compressed numpy archive.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
        """
        header = {
            "file": "scores",
            "format": FORMAT,
            "kind": self.kind,
            "scales": list(self.grids),
            "constants": {name: float(value) for name, value in self.constants.items()},
            "paths": list(self.paths),
            "defect_types": list(self.defect_types),
            "input_size": list(self.input_size),
            "provenance": self.provenance,
            "cost": self.cost,
        }
        arrays = {f"grid_{name}": grid for name, grid in self.grids.items()} | {"labels": self.labels}
        if self.image_scores is not None:
            arrays["image_scores"] = self.image_scores
        if self.held_out_scores is not None:
            arrays["held_out_scores"] = np.asarray(self.held_out_scores, np.float64)
        if self.held_out_parts is not None:
            arrays["held_out_parts"] = np.asarray(self.held_out_parts, np.int64)
        _write_archive(path, header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Read a scores file, whole and undamaged.

        Raises:
            IntegrityError: If the file is damaged, of another kind or of another format.
        """
        header, arrays = _read_archive(path, "scores")
        return cls(
            kind=header["kind"],
            grids={name: arrays[f"grid_{name}"] for name in header["scales"]},
            constants=header["constants"],
            paths=header["paths"],
            labels=arrays["labels"],
            defect_types=header["defect_types"],
            input_size=tuple(header["input_size"]),
            image_scores=arrays.get("image_scores"),
            held_out_scores=arrays.get("held_out_scores"),
            held_out_parts=arrays.get("held_out_parts"),
            provenance=header["provenance"],
            cost=header["cost"],
        )


@dataclasses.dataclass(frozen=True)
class Extras:
    """Data for figures only; each part may be absent.

    Arguments:
        paths: Of the test images, as in `Scores`.
        variance: (N, h, w) float16, the variance that the statistics network predicts for the normal base.
        latents: (M, C) float16, a seeded sample of latent vectors of one scale from the test images.
        latent_labels: (M,) True where the location is on a defect.
        latent_scale: The scale they come from.
    """

    paths: list[str]
    variance: np.ndarray | None = None
    latents: np.ndarray | None = None
    latent_labels: np.ndarray | None = None
    latent_scale: str | None = None

    def __post_init__(self) -> None:
        if self.variance is not None and (self.variance.ndim != 3 or len(self.variance) != len(self.paths)):
            raise ValueError(f"Expected variance maps ({len(self.paths)}, h, w), but got shape {self.variance.shape}.")
        if self.latents is None or self.latent_labels is None:
            if self.latents is not self.latent_labels:
                raise ValueError("Expected latents together with their labels, but got only one of them.")
        elif self.latents.ndim != 2 or self.latent_labels.shape != (len(self.latents),):
            raise ValueError(
                f"Expected latents (M, C) with M labels, but got {self.latents.shape} and {self.latent_labels.shape}."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write atomically as a compressed numpy archive.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
        """
        arrays = {}
        if self.variance is not None:
            arrays["variance"] = self.variance.astype(np.float16)
        if self.latents is not None:
            arrays["latents"] = self.latents.astype(np.float16)
            arrays["latent_labels"] = np.asarray(self.latent_labels, bool)
        header = {
            "file": "extras",
            "format": FORMAT,
            "paths": list(self.paths),
            "latent_scale": self.latent_scale,
        }
        _write_archive(path, header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Extras":
        """Read an extras file, whole and undamaged.

        Raises:
            IntegrityError: If the file is damaged, of another kind or of another format.
        """
        header, arrays = _read_archive(path, "extras")
        return cls(
            paths=header["paths"],
            variance=arrays.get("variance"),
            latents=arrays.get("latents"),
            latent_labels=arrays.get("latent_labels"),
            latent_scale=header["latent_scale"],
        )


def _content_digest(header_json: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(header_json.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _write_archive(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    header_json = json.dumps(header, ensure_ascii=False, allow_nan=False)
    entries = arrays | {
        "header": np.array(header_json),
        "digest": np.array(_content_digest(header_json, arrays)),
    }
    with atomic_path(Path(path).with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, **entries)  # type: ignore[arg-type]


def _read_archive(path: str | os.PathLike[str], expected_file: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    remedy = "Delete it and run again; it will be remade."
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header_json, digest = str(arrays.pop("header")), str(arrays.pop("digest"))
        header = json.loads(header_json)
    except FileNotFoundError as error:
        raise DataError(
            f"Expected a file of {expected_file} at {path}, but there is none. Run the step that writes it."
        ) from error
    except DAMAGE as error:
        raise IntegrityError(
            f"Expected a file of {expected_file} in {path}, but it is damaged ({error}). {remedy}"
        ) from error
    if digest != _content_digest(header_json, arrays):
        raise IntegrityError(
            f"Expected the content of {path} to have the digest that it states, but it has another: "
            f"it is damaged or was changed by hand. {remedy}"
        )
    if header.get("file") != expected_file or header.get("format") != FORMAT:
        raise IntegrityError(
            f"Expected a file of {expected_file}, format {FORMAT}, in {path}, but got "
            f"{header.get('file')!r}, format {header.get('format')!r}. {remedy}"
        )
    return header, arrays
