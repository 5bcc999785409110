"""Sends events to MLflow. The only file that imports it, and only when something is sent.

Sending the same events again changes nothing: runs are found by a deterministic tag, metrics carry their times,
and the rest overwrites itself.
"""

import hashlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sanflow.files import resource
from sanflow.tracking.outbox import Event
from sanflow.tracking.uris import masked, unreachable

logger = logging.getLogger(__name__)

KEY_TAG = "sanflow.unit_key"
MODEL_TAG = "sanflow.model"
STATUS_TIME_TAG = "sanflow.status_time"
# Short: a job waits for the server at most this long before it goes on without. A user's own values win.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
# Limits of one request, from MLflow's own checks.
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 800
VALUE_LENGTH = 5000

_run_ids: dict[tuple[str, str], str] = {}
# (run, metric) -> the steps and values that the server has had of earlier attempts.
_told: dict[tuple[str, str], set[tuple[int, float]]] = {}


def send(uri: str, folder: Path, identity: dict[str, Any], events: list[Event]) -> str | None:
    """Send events of one run; say what went wrong, or None if all arrived.

    Arguments:
        uri: MLflow's tracking URI.
        folder: `results/<benchmark>/tracking`; relative artifact paths start at its parent.
        identity: The run's key, name, parent key and experiment, see `tracker.run_identity`.
        events: Oldest first.
    """
    if not events:
        return None
    if reason := unreachable(uri):
        return f"the server at {masked(uri)} cannot be reached: {reason}"
    try:
        _Run(uri, folder, identity, events[0]["time"]).send(events)
    except Exception as error:
        # Whatever MLflow or its database raises, the job's own work is worth more than its mirror.
        _run_ids.clear()
        _told.clear()
        return f"the server at {masked(uri)} did not take the events: {masked(_first_line(error))}"
    return None


def initialise(uri: str, folder: Path) -> str | None:
    """Make the database's tables once, before many jobs start at the same time and race for it.

    Arguments:
        uri: MLflow's tracking URI.
        folder: `results/<benchmark>/tracking`.

    Returns:
        What went wrong, or None.
    """
    if reason := unreachable(uri):
        return f"the server at {masked(uri)} cannot be reached: {reason}"
    try:
        _import_mlflow()
        with _alone(uri, folder):
            _client(uri).search_experiments(max_results=1)
    except Exception as error:
        return f"{masked(uri)} cannot be used: {masked(_first_line(error))}"
    return None


class _Run:
    """One run at the server, found or made."""

    def __init__(self, uri: str, folder: Path, identity: dict[str, Any], start_time: int) -> None:
        self._uri = uri
        self._folder = folder
        key = (uri, identity["key"])
        _import_mlflow()
        if key not in _run_ids:
            with _alone(uri, folder):
                client = _client(uri)
                experiment = _experiment(client, uri, identity["experiment"])
                parent = None
                if identity["parent"]:
                    parent = _find_or_make(
                        client,
                        experiment,
                        identity["parent"],
                        identity["experiment"],
                        parent=None,
                        start_time=start_time,
                    )
                _run_ids[key] = _find_or_make(
                    client, experiment, identity["key"], identity["name"], parent=parent, start_time=start_time
                )
        self._client = _client(uri)
        self._id = _run_ids[key]

    def send(self, events: list[Event]) -> None:
        of = {
            kind: [event for event in events if event["kind"] == kind]
            for kind in ("params", "metrics", "tags", "dataset", "artifact", "model", "status")
        }
        self._log_params({key: value for event in of["params"] for key, value in event["values"].items()})
        self._log_metrics(of["metrics"])
        self._log_tags({key: value for event in of["tags"] for key, value in event["values"].items()})
        for event in of["dataset"]:
            self._log_dataset(event)
        for event in of["artifact"]:
            self._log_artifact(event)
        for event in of["model"]:
            self._log_model(event)
        if of["status"]:
            self._set_status(of["status"][-1])

    def _log_params(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        params = [Param(_name(key), value[:VALUE_LENGTH]) for key, value in values.items()]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            try:
                self._client.log_batch(self._id, params=params[start : start + PARAMS_PER_BATCH])
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                # Never accepted, however often it is sent: keeping it would block all that follows.
                logger.warning("Tracking: parameters refused by the server: %s", masked(_first_line(error)))

    def _log_metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_name(key), value, event["time"], event["step"])
            for event in events
            for key, value in event["values"].items()
            if not self._has(_name(key), event["step"], value)
        ]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + METRICS_PER_BATCH])

    def _has(self, key: str, step: int, value: float) -> bool:
        """Whether an epoch was told by an attempt that was killed before it could save its state."""
        if not key.startswith("train/"):
            return False
        if (self._id, key) not in _told:
            history = self._client.get_metric_history(self._id, key)
            _told[self._id, key] = {(metric.step, metric.value) for metric in history}
        return (step, value) in _told[self._id, key]

    def _log_tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(_name(key), masked(value)[:VALUE_LENGTH]) for key, value in values.items()]
        for start in range(0, len(tags), PARAMS_PER_BATCH):
            self._client.log_batch(self._id, tags=tags[start : start + PARAMS_PER_BATCH])

    def _log_dataset(self, event: Event) -> None:
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.http_dataset_source import HTTPDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        source: Any = CodeDatasetSource(tags={"path": event["source"]})
        if event["source"].startswith(("http://", "https://")):
            source = HTTPDatasetSource(event["source"])
        # MLflow takes names of up to 500 characters.
        dataset = MetaDataset(source, name=event["name"][:500], digest=event["digest"])  # type: ignore[abstract]
        context = InputTag("mlflow.data.context", event["context"])
        self._client.log_inputs(self._id, [DatasetInput(dataset._to_mlflow_entity(), [context])])

    def _log_artifact(self, event: Event) -> None:
        path = self._folder.absolute().parent / event["path"]
        if not path.exists():
            logger.warning("Tracking: %s is gone and cannot be mirrored.", path)
            return
        self._client.log_artifact(self._id, str(path), event["folder"] or None)

    def _log_model(self, event: Event) -> None:
        """Log a checkpoint as a model with its signature, unless this run has it already."""
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        if self._client.get_run(self._id).data.tags.get(MODEL_TAG) == event["digest"]:
            return
        results = self._folder.absolute().parent
        height, width = event["input_size"]
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), (-1, height, width, 3))]),
            Schema(
                [
                    TensorSpec(np.dtype("float32"), (-1,), "score"),
                    TensorSpec(np.dtype("float32"), (-1, height, width), "map"),
                ]
            ),
        )
        mlflow.set_tracking_uri(self._uri)
        with warnings.catch_warnings(), mlflow.start_run(run_id=self._id):
            # About type hints, which the signature makes needless.
            warnings.simplefilter("ignore")
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(resource("mlflow_model.py")),
                artifacts={name: str(results / event[name]) for name in ("checkpoint", "scores")},
                signature=signature,
                # Named here because MLflow would import the model to find out.
                pip_requirements=[f"sanflow=={version('sanflow')}"],
            )
        self._client.set_tag(self._id, MODEL_TAG, event["digest"])

    def _set_status(self, event: Event) -> None:
        # An outbox sent late must not overrule what a later attempt has told already.
        known = self._client.get_run(self._id).data.tags.get(STATUS_TIME_TAG, "0")
        if event["time"] < int(known):
            return
        if event["status"] == "RUNNING":
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._client.set_terminated(self._id, event["status"], event["time"])
        self._client.set_tag(self._id, STATUS_TIME_TAG, str(event["time"]))


def _find_or_make(client: Any, experiment: str, key: str, name: str, *, parent: str | None, start_time: int) -> str:
    """Id of the run with this key. The key is searched by its digest, so no name can break the query."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{digest}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {KEY_TAG: digest, "sanflow.unit": key, "mlflow.source.name": "sanflow", "mlflow.source.type": "LOCAL"}
    if parent:
        tags["mlflow.parentRunId"] = parent
    return str(client.create_run(experiment, start_time, tags, name).info.run_id)


def _experiment(client: Any, uri: str, name: str) -> str:
    """Id of the benchmark's experiment, made if new. Artifacts of a SQLite mirror lie beside its database."""
    from mlflow.exceptions import MlflowException

    name = f"sanflow/{name}"
    found = client.get_experiment_by_name(name)
    if found is None:
        database = _sqlite_path(uri)
        location = (database.parent / "mlflow-artifacts").as_uri() if database else None
        try:
            return str(client.create_experiment(name, location))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


@contextmanager
def _alone(uri: str, folder: Path) -> Iterator[None]:
    """Keep the processes that share a database (or a benchmark's folder) from making the same thing twice."""
    database = _sqlite_path(uri)
    path = database.with_name(database.name + ".lock") if database else folder / "runs.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=60):
        yield


def _sqlite_path(uri: str) -> Path | None:
    """The database file of a `sqlite:///` URI, else None."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


@lru_cache(maxsize=4)
def _client(uri: str) -> Any:
    """A client; making one on an empty SQLite file makes its tables, which is why it is made under the lock."""
    return _import_mlflow()(tracking_uri=uri)


def _import_mlflow() -> Any:
    """MLflow's client class. The import takes seconds, so it happens before the lock is taken."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A run id inherited from the caller's environment would redirect every event into that run.
    os.environ.pop("MLFLOW_RUN_ID", None)
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    return MlflowClient


def _name(key: str) -> str:
    """A key with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w./ :-]", "_", key)[:240]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
