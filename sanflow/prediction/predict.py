"""Score files one after the other; a killed run resumes.

Images are scored in fixed batches of their sorted list, and the rows of a batch are appended to predictions.csv
together. So a run that was killed and started again ends with the rows of one whole run, and memory does not grow with
the number of images.
"""

import csv
import dataclasses
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image

from sanflow.anomaly_maps.export import write_map
from sanflow.data.listing import image_suffixes
from sanflow.data.litter import is_litter
from sanflow.errors import ConfigError, DataError
from sanflow.evaluation.conformal import p_values, threshold
from sanflow.files import atomic_path, read_json, storage_errors, write_json
from sanflow.prediction.detector import Batch, LoadedDetector
from sanflow.prediction.regions import largest_region, outline

COLUMNS = ("image", "score", "p_value", "anomalous", "x", "y", "width", "height", "error")
TABLE, FACTS = "predictions.csv", "predictions.json"
# Level of a region, as a share of the map's maximum, where the decision has no `map_level`.
HALF_OF_MAXIMUM = 0.5
OUTLINE_COLOUR = (230, 159, 0)
LARGEST_ASPECT_CHANGE = 1.05


@dataclasses.dataclass(frozen=True)
class Decision:
    """The thresholds above which a part and a pixel are anomalous.

    Arguments:
        score: A part is anomalous if its score exceeds this.
        map_level: A pixel is anomalous if its map exceeds this; None: half of the map's maximum.
    """

    score: float
    map_level: float | None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The files that are written beside the table.

    Arguments:
        maps: Float maps at the images' own sizes.
        overlays: Pictures with heat map and outline.
    """

    maps: bool = False
    overlays: bool = False


@dataclasses.dataclass
class Outcome:
    """The result of a run.

    Attributes:
        images: Number of images.
        anomalous: How many of them are anomalous.
        unreadable: Paths of images that could not be read.
        other_aspect: How many have another aspect ratio than the training images.
        images_per_second: Of this attempt; None if it had nothing to do.
    """

    images: int = 0
    anomalous: int = 0
    unreadable: list[str] = dataclasses.field(default_factory=list)
    other_aspect: int = 0
    images_per_second: float | None = None


def decision_of(detector: LoadedDetector, false_alarm_rate: float | None, score: float | None) -> Decision:
    """Return the decision for a false-alarm rate, or for a score that the user gives.

    Arguments:
        detector: The fitted detector.
        false_alarm_rate: Level in (0, 1); needs held-out parts.
        score: Threshold of the score.

    Raises:
        ConfigError: If both or none are given, or the detector has too few held-out parts for the level.
    """
    if (false_alarm_rate is None) == (score is None):
        raise ConfigError("Expected either a false-alarm rate or a threshold of the score, but got both or none.")
    held_out = detector.checkpoint.held_out
    if score is not None:
        by_map = held_out is None or held_out["scores"] == held_out["map_maxima"]
        return Decision(score, score if by_map else None)
    if held_out is None or detector.held_out is None:
        raise ConfigError(
            "Expected held-out good parts to find a threshold for a false-alarm rate, but the detector has none. Fit "
            "it with `calibration_fraction`, run `sanflow calibrate`, or give `--threshold`."
        )
    assert false_alarm_rate is not None
    maxima = np.asarray(held_out["map_maxima"], np.float64)
    parts = detector.held_out_parts
    return Decision(threshold(false_alarm_rate, detector.held_out, parts), threshold(false_alarm_rate, maxima, parts))


def image_files(places: Iterable[Path]) -> list[Path]:
    """List image files, folders searched recursively, each once and sorted.

    Raises:
        DataError: If a place does not exist, or there is no image at all.
    """
    found: set[Path] = set()
    for place in places:
        if place.is_dir():
            inside = (Path(top, name) for top, _, names in os.walk(place) for name in names if not is_litter(name))
            found.update(path for path in inside if path.suffix.lower() in image_suffixes())
        elif place.exists():
            found.add(place)
        else:
            raise DataError(f"Expected an image or a folder at {place}, but there is none. Correct the path.")
    if not found:
        names = ", ".join(map(str, places))
        raise DataError(f"Expected images in {names}, but found none of a known type. Name files or their folder.")
    return sorted(found)


def predict(
    detector: LoadedDetector,
    files: Sequence[Path],
    output: Path,
    decision: Decision,
    *,
    wanted: Wanted = Wanted(),
    batch_size: int = 8,
    report: Callable[[int], None] | None = None,
) -> Outcome:
    """Score files and write predictions.csv.

    Arguments:
        detector: The fitted detector.
        files: From `image_files`.
        output: Folder to write to.
        decision: When a part is anomalous.
        wanted: What is written beside the table.
        batch_size: Images at once.
        report: Called with the number of images done.

    Raises:
        ConfigError: If the folder holds predictions of another detector, decision or list of images.
        StorageError: If the disk is full.
    """
    facts = {
        "checkpoint_digest": detector.checkpoint.digest,
        "decision": dataclasses.asdict(decision),
        "images": [str(file) for file in files],
        "batch_size": batch_size,
    }
    table = _Table(output, facts)
    outcome = Outcome(len(files))
    outcome.anomalous = sum(row["anomalous"] == "1" for row in table.rows)
    outcome.unreadable = [row["image"] for row in table.rows if row["error"]]
    done, start = len(table.rows), time.perf_counter()
    for first in range(done, len(files), batch_size):
        part = files[first : first + batch_size]
        rows = _rows(detector, part, output, decision, wanted, outcome)
        table.append(rows)
        if report is not None:
            report(first + len(part))
    if done < len(files):
        outcome.images_per_second = (len(files) - done) / (time.perf_counter() - start)
    return outcome


class _Table:
    """predictions.csv, whole batches only.

    Arguments:
        folder: Where it is written.
        facts: Facts that decide its rows; rows of a run with other facts are not continued.

    Attributes:
        rows: Rows that an earlier attempt has written.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.path, facts_path = folder / TABLE, folder / FACTS
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if facts_path.exists() and read_json(facts_path) != facts:
            raise ConfigError(
                f"Expected a folder for these predictions, but {folder} holds those of another detector, threshold, "
                "batch size or list of images. Choose another folder, or delete it."
            )
        write_json(facts_path, facts)
        self.rows = self._whole_batches(facts["batch_size"], len(facts["images"]))
        with storage_errors(self.path), atomic_path(self.path) as temporary:
            temporary.write_text(_csv([dict(zip(COLUMNS, COLUMNS, strict=True)), *self.rows]), "utf-8", newline="")

    def _whole_batches(self, batch_size: int, n_images: int) -> list[dict[str, str]]:
        """Return the rows of an earlier attempt, without those of a batch whose writing was interrupted."""
        if not self.path.exists():
            return []
        text = self.path.read_text("utf-8", errors="surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
        rows = [row for row in rows if None not in row.values()]
        n_whole = len(rows) if len(rows) == n_images else len(rows) - len(rows) % batch_size
        return rows[:n_whole]

    def append(self, rows: list[dict[str, str]]) -> None:
        """Write the rows of a batch; they are on the disk when this returns."""
        with storage_errors(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(_csv(rows))
            file.flush()
            os.fsync(file.fileno())


def _csv(rows: Iterable[dict[str, str]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rows(
    detector: LoadedDetector,
    files: Sequence[Path],
    output: Path,
    decision: Decision,
    wanted: Wanted,
    outcome: Outcome,
) -> list[dict[str, str]]:
    """Score one batch; write its maps and overlays."""
    rows, readable = [], []
    for file in files:
        row = dict.fromkeys(COLUMNS, "") | {"image": str(file)}
        try:
            readable.append((row, file, detector.decode(file)))
        except DataError as error:
            row["error"] = str(error)
            outcome.unreadable.append(str(file))
        rows.append(row)
    if readable:
        batch = detector.score(np.stack([detector.read(rgb) for _, _, rgb in readable]))
        for place, (row, file, rgb) in enumerate(readable):
            row.update(_described(detector, batch, place, rgb, decision))
            outcome.anomalous += row["anomalous"] == "1"
            outcome.other_aspect += _other_aspect(detector, rgb)
            if wanted.maps or wanted.overlays:
                _write_pictures(detector, batch, place, rgb, output, file, decision, wanted)
    return rows


def _described(
    detector: LoadedDetector, batch: Batch, place: int, rgb: Image.Image, decision: Decision
) -> dict[str, str]:
    """Compute score, p-value, decision and region of one image."""
    score, held_out = float(batch.scores_B[place]), detector.held_out
    anomalous = score > decision.score
    row = {"score": repr(score), "anomalous": str(int(anomalous))}
    if held_out is not None:
        row["p_value"] = repr(float(p_values(np.array([score]), held_out, detector.held_out_parts)[0]))
    if anomalous:
        map_HW = batch.maps_BHW[place]
        region = largest_region(map_HW, _level(map_HW, decision))
        if region is not None:
            x, y = rgb.width / map_HW.shape[1], rgb.height / map_HW.shape[0]
            row |= {
                "x": str(round(region.x * x)),
                "y": str(round(region.y * y)),
                "width": str(max(1, round(region.width * x))),
                "height": str(max(1, round(region.height * y))),
            }
    return row


def _level(map_HW: ndarray, decision: Decision) -> float:
    half = HALF_OF_MAXIMUM * float(map_HW.max())
    # If the map's maximum is below the level of pixels, the region is the one around the maximum.
    return half if decision.map_level is None or map_HW.max() <= decision.map_level else decision.map_level


def _other_aspect(detector: LoadedDetector, rgb: Image.Image) -> bool:
    trained = detector.checkpoint.facts.get("image_size")
    if not trained:
        return False
    ratio = (rgb.width / rgb.height) / (trained[1] / trained[0])
    return not 1 / LARGEST_ASPECT_CHANGE <= ratio <= LARGEST_ASPECT_CHANGE


def _write_pictures(
    detector: LoadedDetector,
    batch: Batch,
    place: int,
    rgb: Image.Image,
    output: Path,
    file: Path,
    decision: Decision,
    wanted: Wanted,
) -> None:
    """Write the map and the overlay of one image, at its own size."""
    own = {name: grid[place : place + 1] for name, grid in batch.grids.items()}
    map_HW = detector.maps(own, (rgb.height, rgb.width))[0].astype(np.float32)
    name = picture_name(file)
    if wanted.maps:
        write_map(output / "maps" / f"{name}.tiff", map_HW)
    if wanted.overlays:
        small = batch.maps_BHW[place]
        picture = overlay(rgb, map_HW, _level(small, decision), float(batch.scores_B[place]) > decision.score)
        with atomic_path(output / "overlays" / f"{name}.png") as temporary:
            picture.save(temporary)


def picture_name(file: Path) -> str:
    """Name a picture after the whole path of its image, so that two images of one name do not share it.

    Example:
        >>> picture_name(Path("line 1/0007.png"))
        'line 1__0007.png'
    """
    return "__".join(part for part in file.parts if part not in {"/", ".", ".."})


def overlay(rgb: Image.Image, map_HW: ndarray, level: float, anomalous: bool) -> Image.Image:
    """Draw a heat map over an image, and the outline of what is above a level if the part is anomalous."""
    import matplotlib

    low, high = float(map_HW.min()), float(map_HW.max())
    scaled_HW = (map_HW - low) / ((high - low) or 1.0)
    heat_HW3 = matplotlib.colormaps["inferno"](scaled_HW)[..., :3]
    mixed_HW3 = 0.55 * np.asarray(rgb) + 0.45 * 255 * heat_HW3
    if anomalous:
        mixed_HW3[outline(map_HW, level)] = OUTLINE_COLOUR
    return Image.fromarray(mixed_HW3.round().astype(np.uint8))


def batches_of(detector: LoadedDetector, files: Sequence[Path], batch_size: int = 8) -> Iterator[ndarray]:
    """Read files in batches (B, H, W, 3) of the detector's input size.

    Raises:
        DataError: If one cannot be read.
    """
    for first in range(0, len(files), batch_size):
        yield np.stack([detector.read(file) for file in files[first : first + batch_size]])
