"""What a job tells of itself: parameters, metrics, files and how it ended. Never a reason for the job to fail."""

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from sanflow.benchmark_json import read_outline
from sanflow.errors import DataError, SanflowError
from sanflow.tracking.outbox import Outbox
from sanflow.tracking.uris import masked

logger = logging.getLogger(__name__)

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
RETRY_SECONDS = 60.0
URI_VARIABLE = "SANFLOW_TRACKING_URI"


class Tracker(Protocol):
    """The run of one job. A context manager: it ends FINISHED, FAILED (an exception) or KILLED (a signal)."""

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log settings, nested mappings flattened with dots. One value for good per run: not for what may vary."""

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at an epoch; `train/loss` puts `loss` into the group `train`. Call once an epoch."""

    def log_tags(self, values: Mapping[str, Any]) -> None:
        """Log facts that may change between attempts: device, versions, digests."""

    def log_dataset(self, name: str, digest: str, source: str, context: Literal["train", "test"]) -> None:
        """Log which images went in, by the digest of their index."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Mirror a finished file (its bytes are read when sent), optionally into a folder."""

    def log_model(self, checkpoint: Path, scores: Path, digest: str, input_size: tuple[int, int]) -> None:
        """Log a checkpoint, calibrated by its scores file, as an MLflow model with signature; once per digest."""

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run and send what is left. A second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class NullTracker:
    """Tracking switched off: takes everything, does nothing."""

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_tags(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_dataset(self, name: str, digest: str, source: str, context: Literal["train", "test"]) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def log_model(self, checkpoint: Path, scores: Path, digest: str, input_size: tuple[int, int]) -> None:
        """Do nothing."""

    def finish(self, status: Status = "FINISHED") -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing."""


class MlflowTracker:
    """Writes every event to the outbox, then mirrors the outbox to MLflow.

    Arguments:
        uri: MLflow's tracking URI.
        folder: `results/<benchmark>/tracking`; it holds the outboxes.
        unit: `<dataset>/<category>/<experiment>/seed<k>`, or "" for the benchmark's parent run.
        digest: Digest of the job's configuration: a changed one is another run.
        stage: Which step of the unit logs: `train`, `evaluate`, ...; steps of one unit share a run.
        send: False keeps all in the outbox, for a short job that would spend longer on importing MLflow.
    """

    def __init__(self, uri: str, *, folder: Path, unit: str, digest: str, stage: str, send: bool = True) -> None:
        self._uri = uri
        self._folder = folder
        self._send = send
        self._silent_until = 0.0
        self._finished = False
        self._sent = False
        self._outbox = Outbox(folder, file_name(unit, stage, digest), run_identity(folder, unit, digest))
        self._record({"kind": "status", "status": "RUNNING"})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._record({"kind": "params", "values": flattened(values)})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        numbers = {key: float(value) for key, value in values.items()}
        self._record({"kind": "metrics", "values": numbers, "step": int(step)})

    def log_tags(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._record({"kind": "tags", "values": flattened(values)})

    def log_dataset(self, name: str, digest: str, source: str, context: Literal["train", "test"]) -> None:
        """See `Tracker`."""
        # MLflow refuses digests of more than 36 characters.
        self._record({"kind": "dataset", "name": name, "digest": digest[:32], "source": source, "context": context})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See `Tracker`."""
        self._record({"kind": "artifact", "path": portable(Path(path), self._folder), "folder": folder})

    def log_model(self, checkpoint: Path, scores: Path, digest: str, input_size: tuple[int, int]) -> None:
        """See `Tracker`."""
        files = {"checkpoint": portable(checkpoint, self._folder), "scores": portable(scores, self._folder)}
        self._record({"kind": "model", **files, "digest": digest, "input_size": list(input_size)})

    def finish(self, status: Status = "FINISHED") -> None:
        """See `Tracker`."""
        if self._finished:
            return
        self._finished = True
        self._silent_until = 0.0
        self._record({"kind": "status", "status": status})
        try:
            self._outbox.close(empty=self._sent)
        except (SanflowError, OSError) as error:
            logger.warning("Tracking: the outbox could not be closed: %s", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _record(self, event: dict[str, Any]) -> None:
        self._sent = False
        try:
            self._outbox.append(event)
        except (SanflowError, OSError) as error:
            # The job's own files matter more than their mirror: with a full disk they will say so themselves.
            logger.warning("Tracking: an event could not be kept: %s", error)
            return
        if self._send and time.monotonic() >= self._silent_until:
            self._flush()

    def _flush(self) -> None:
        from sanflow.tracking.mirror import send

        problem = send(self._uri, self._folder, self._outbox.identity, self._outbox.read())
        if problem is None:
            self._sent = True
            # The last events go together with the outbox: see `Outbox.close`.
            if not self._finished:
                self._outbox.clear()
        else:
            self._silent_until = time.monotonic() + RETRY_SECONDS
            logger.warning(
                "Tracking: %s. The job goes on; the rest waits in %s, and `sanflow track sync` sends it later.",
                masked(problem),
                self._outbox.path,
            )


def open_tracker(uri: str | None, *, folder: Path, unit: str, digest: str, stage: str, send: bool = True) -> Tracker:
    """The tracker of one job, or one that does nothing.

    Arguments:
        uri: MLflow's tracking URI; None or "" turns tracking off.
        folder: `results/<benchmark>/tracking`.
        unit: `<dataset>/<category>/<experiment>/seed<k>`, or "" for the benchmark itself.
        digest: Digest of the job's configuration.
        stage: The step that logs: `train`, `evaluate`, ...
        send: False only keeps the events for the next `sanflow track sync` or `publish`.

    Example:
        >>> folder = Path("results/demo/tracking")
        >>> with open_tracker(None, folder=folder, unit="a/b/c/seed0", digest="", stage="train") as run:
        ...     run.log_metrics({"train/loss": 1.0}, step=0)
    """
    if not uri:
        return NullTracker()
    try:
        return MlflowTracker(uri, folder=Path(folder), unit=unit, digest=digest, stage=stage, send=send)
    except (SanflowError, OSError) as error:
        logger.warning("Tracking is off for this job: %s", error)
        return NullTracker()


def job_tracker(folder: Path | None, *, unit: str, digest: str, stage: str, send: bool = True) -> Tracker:
    """The tracker of a job that the workflow started: it hands the URI on in $SANFLOW_TRACKING_URI.

    A URI may hold a password, so it is no argument of a command, where logs and process lists would show it.

    Arguments:
        folder: `results/<benchmark>/tracking`; None turns tracking off.
        unit: As for `open_tracker`.
        digest: As for `open_tracker`.
        stage: As for `open_tracker`.
        send: As for `open_tracker`.
    """
    uri = os.environ.get(URI_VARIABLE) if folder is not None else None
    return open_tracker(uri, folder=folder or Path(), unit=unit, digest=digest, stage=stage, send=send)


def run_identity(folder: Path, unit: str, digest: str) -> dict[str, Any]:
    """By what a run is found again, from any process: its own key, its parent's and its experiment.

    Arguments:
        folder: `results/<benchmark>/tracking`; `sanflow track init` left the benchmark's key beside it.
        unit: As for `open_tracker`.
        digest: As for `open_tracker`.

    Raises:
        DataError: If the benchmark's own run is wanted, but nothing tells its key.
    """
    results = folder.absolute().parent
    benchmark = read_outline(results) or {"name": results.name, "key": None}
    if not unit:
        if benchmark["key"] is None:
            raise DataError(
                f"Expected benchmark.json in {results}, but there is none. Run `sanflow track init` for this benchmark."
            )
        return {"key": benchmark["key"], "name": benchmark["name"], "parent": None, "experiment": benchmark["name"]}
    return {
        "key": f"{benchmark['name']}/{unit}/{digest[:12]}",
        "name": unit,
        "parent": benchmark["key"],
        "experiment": benchmark["name"],
    }


def file_name(unit: str, stage: str, digest: str) -> str:
    """A flat file name for the outbox of one unit and stage.

    Example:
        >>> file_name("mvtec_ad/metal nut/sanflow/seed0", "train", "0123456789abcdef")
        'mvtec_ad.metal_nut.sanflow.seed0.train.01234567'
    """
    readable = re.sub(r"[^\w.-]+", "_", unit.replace("/", ".")) if unit else "benchmark"
    return ".".join(part for part in (readable, stage, digest[:8]) if part)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of dotted names and text values.

    Example:
        >>> flattened({"epochs": 20, "input_size": {"default": 256}, "taps": ["a", "b"], "clip": None})
        {'epochs': '20', 'input_size.default': '256', 'taps': 'a, b', 'clip': 'None'}
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = ", ".join(map(str, value))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def portable(path: Path, folder: Path) -> str:
    """A path as the outbox keeps it: relative to the benchmark's results where it lies in them, so they can move."""
    results = folder.absolute().parent
    absolute = path.absolute()
    return str(absolute.relative_to(results)) if absolute.is_relative_to(results) else str(absolute)
