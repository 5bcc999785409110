"""Log a training to MLflow while it runs, without ever failing it."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sanflow.benchmark_json import read_outline
from sanflow.errors import SanflowError
from sanflow.tracking.contents import of_benchmark, runs_of
from sanflow.tracking.job_file import JobFile
from sanflow.tracking.mirror import Mirror
from sanflow.tracking.uris import URI_VARIABLE, masked

logger = logging.getLogger(__name__)

RETRY_SECONDS = 60.0


class Tracker:
    """A tracker that logs nothing, for trainings without tracking."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Log train.json as far as it is known: `job` and `digests` at first, later `history` and the rest."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the run: FINISHED, FAILED after an exception or KILLED after a signal."""


class LiveTracker(Tracker):
    """A tracker that keeps the record of a training in its job file, and makes its run in MLflow equal to it.

    Arguments:
        uri: MLflow's tracking URI.
        folder: `results/<benchmark>/tracking`.
        unit: `<dataset>/<category>/<experiment>/seed<k>`.
        outline: benchmark.json.

    Raises:
        StorageError: If another process trains the same job, or the folder cannot be written.
    """

    def __init__(self, uri: str, folder: Path, unit: str, outline: Mapping[str, Any]) -> None:
        self._uri, self._folder, self._unit, self._outline = uri, folder, unit, outline
        self._file = JobFile(folder, unit)
        self._mirror: Mirror | None = None
        self._record: dict[str, Any] = {}
        self._silent_until = 0.0

    def log(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._record = dict(record)
        self._update("RUNNING")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `Tracker`."""
        self._silent_until = 0.0
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        try:
            self._file.close(remove=not self._record or self._update(status))
        except OSError as reason:
            logger.warning("Tracking: %s could not be removed: %s", self._file.path, reason)

    def _update(self, status: str) -> bool:
        """Write the job file and send it; returns whether MLflow has all of it."""
        try:
            job = self._file.write(status, self._record)
            if time.monotonic() < self._silent_until:
                return False
            self._mirror = self._mirror or Mirror(self._uri, self._folder, self._outline["name"])
            parent = of_benchmark(self._outline, {"status": "RUNNING", "time": job["time"]}, {})
            for run in runs_of(self._folder.parent, self._unit, self._outline, parent, job):
                self._mirror.put(run)
        except Exception as error:
            # No error of tracking may stop the training.
            self._mirror = None
            self._silent_until = time.monotonic() + RETRY_SECONDS
            logger.warning(
                "Tracking: %s. The training continues; `sanflow track sync` sends the rest later.", masked(str(error))
            )
            return False
        return True


def job_tracker(folder: Path | None, unit: str) -> Tracker:
    """Make the tracker of a training that the workflow started: it hands the URI on in $SANFLOW_TRACKING_URI.

    A URI may hold a password, so it is no argument of a command, where logs and process lists would show it.

    Arguments:
        folder: `results/<benchmark>/tracking`; None turns tracking off.
        unit: `<dataset>/<category>/<experiment>/seed<k>`.

    Returns:
        A tracker that logs nothing where tracking is off or cannot begin; a warning says why.

    Example:
        >>> with job_tracker(None, "a/b/c/seed0") as tracker:
        ...     tracker.log({"history": []})
    """
    uri = os.environ.get(URI_VARIABLE)
    if folder is None or not uri:
        return Tracker()
    folder = folder.absolute()
    try:
        outline = read_outline(folder.parent)
        if outline is not None and "owner" in outline:
            return LiveTracker(uri, folder, unit, outline)
        reason = f"{folder.parent} has no benchmark.json of this version; `sanflow track init` writes it"
    except (SanflowError, OSError) as error:
        reason = str(error)
    logger.warning("Tracking: this training is not logged while it runs: %s", reason)
    return Tracker()
