"""Make runs in MLflow equal to the files. Only this file imports MLflow, and only when it sends.

A run is found by a tag and compared first, so that nothing is sent twice.
"""

import contextlib
import importlib.metadata
import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sanflow.files import resource
from sanflow.tracking.contents import Contents, Model
from sanflow.tracking.uris import REQUEST_SECONDS, masked, request_seconds, unreachable

KEY_TAG, SENT_TAG, MODEL_TAG = "sanflow.unit_key", "sanflow.sent", "sanflow.model"
# Short, because a training waits for the server. A user's own values win.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
# Characters of a parameter or tag; MLflow takes 6000.
VALUE_LENGTH = 5000
# An upload gets a second for so many bytes, in addition to the time of any request.
SLOWEST_BYTES_PER_SECOND = 500_000
# Columns of MLflow's database with addresses of artifacts.
ADDRESSES = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


class ServerAwayError(Exception):
    """The server cannot be reached or used; the message holds no password."""


class Mirror:
    """The runs of one benchmark in MLflow.

    Arguments:
        uri: MLflow's tracking URI.
        folder: `results/<benchmark>/tracking`.
        benchmark: Its name.

    Raises:
        ServerAwayError: If the server cannot be reached, or does not give the experiment.
    """

    def __init__(self, uri: str, folder: Path, benchmark: str) -> None:
        self._uri = uri
        self._runs: dict[str, Any] = {}
        # (id of a run, metric) -> the steps and values that the server has.
        self._points: dict[tuple[str, str], set[tuple[int, str]]] = {}
        database = Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
        lock = database.with_name(database.name + ".lock") if database else folder / "runs.lock"
        # Processes that start at the same time must not make the same database, experiment or run twice.
        self._lock = FileLock(lock, timeout=60)
        if reason := unreachable(uri):
            raise ServerAwayError(f"the server at {masked(uri)} cannot be reached: {reason}")
        try:
            client = _import_mlflow()
            lock.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._client = client(tracking_uri=uri)
                self._experiment = _experiment(self._client, f"sanflow/{benchmark}", database)
        except Exception as error:
            raise ServerAwayError(f"{masked(uri)} cannot be used: {_first_line(error)}") from error

    def put(self, contents: Contents, *, models: bool = False) -> bool:
        """Make one run equal to its contents.

        Arguments:
            contents: Everything that the run shows.
            models: Also show its checkpoint, if it has one, as an MLflow model.

        Returns:
            Whether anything had to be sent.

        Raises:
            ServerAwayError: If the server does not answer any more.
            ValueError: If the server answers but refuses a part; all other parts were sent.
        """
        refused: list[str] = []

        def attempt(part: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return part(*arguments)
            except Exception as error:
                self._require_server(error)
                refused.append(_first_line(error))

        known = contents.key in self._runs
        if run := attempt(self._run, contents):
            digest, sent = contents.digest(), run.data.tags.get(SENT_TAG)
            model = contents.model if models else None
            if model is not None and run.data.tags.get(MODEL_TAG) == model.digest:
                model = None
            if sent == digest and model is None:
                return False
            attempt(self._log_values, run, contents)
            if contents.dataset is not None and not known:
                attempt(self._log_dataset, run, *contents.dataset)
            for path, folder in contents.artifacts.items() if sent != digest else ():
                attempt(self._log_artifact, run, path, folder)
            if model is not None:
                attempt(self._log_model, run, model)
            if contents.status != "RUNNING":
                # Last, because they mean that the rest is there.
                attempt(self._client.set_terminated, run.info.run_id, contents.status, contents.end)
                if not refused:
                    attempt(self._set_tag, run, SENT_TAG, digest)
            elif not known:
                attempt(self._client.update_run, run.info.run_id, "RUNNING")
        if refused:
            raise ValueError(f"the server refused a part of {contents.name}: {'; '.join(refused)}")
        return True

    def _require_server(self, cause: Exception) -> None:
        """Find out by a simple request whether the server refused one request or cannot be reached."""
        reason = unreachable(self._uri)
        with contextlib.suppress(Exception):
            if reason is None:
                self._client.search_experiments(max_results=1)
                return
        raise ServerAwayError(
            f"the server at {masked(self._uri)} cannot be reached: {reason or _first_line(cause)}"
        ) from cause

    def _run(self, contents: Contents) -> Any:
        if contents.key not in self._runs:
            with self._lock:
                self._runs[contents.key] = self._find_or_make(contents)
        return self._runs[contents.key]

    def _find_or_make(self, contents: Contents) -> Any:
        key = contents.key[:32]
        if found := self._client.search_runs([self._experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1):
            return found[0]
        tags = {KEY_TAG: key, "mlflow.source.name": "sanflow", "mlflow.source.type": "LOCAL"}
        if "mlflow.user" in contents.tags:
            tags["mlflow.user"] = contents.tags["mlflow.user"]
        if contents.parent is not None:
            tags["mlflow.parentRunId"] = self._find_or_make(contents.parent).info.run_id
        return self._client.create_run(self._experiment, contents.start, tags, contents.name)

    def _log_values(self, run: Any, contents: Contents) -> None:
        """Log the parameters, metrics and tags that the server lacks."""
        from mlflow.entities import Metric, Param, RunTag

        params = {_name(name): value[:VALUE_LENGTH] for name, value in contents.params.items()}
        new_params = {name: value for name, value in params.items() if name not in run.data.params}
        tags = {_name(name): masked(value)[:VALUE_LENGTH] for name, value in contents.tags.items()}
        new_tags = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
        points = {(_name(name), step, repr(value)): value for name, value, step in contents.metrics}
        new_points = {point: value for point, value in points.items() if point[1:] not in self._known(run, point[0])}
        self._client.log_batch(
            run.info.run_id,
            [Metric(name, value, contents.end, step) for (name, step, _), value in new_points.items()],
            [Param(name, value) for name, value in new_params.items()],
            [RunTag(name, value) for name, value in new_tags.items()],
        )
        run.data.params.update(new_params)
        run.data.tags.update(new_tags)
        for name, step, value in new_points:
            self._known(run, name).add((step, value))
        if changed := [name for name, value in params.items() if run.data.params[name] != value]:
            raise ValueError(f"parameters cannot be changed: {', '.join(changed)}")

    def _known(self, run: Any, metric: str) -> set[tuple[int, str]]:
        """Return the steps and values that the server has of a metric; values as text, because NaN is not NaN."""
        key = run.info.run_id, metric
        if key not in self._points:
            history = self._client.get_metric_history(*key) if metric in run.data.metrics else []
            self._points[key] = {(point.step, repr(float(point.value))) for point in history}
        return self._points[key]

    def _log_dataset(self, run: Any, name: str, digest: str, path: str, context: str) -> None:
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        source = CodeDatasetSource(tags={"path": path})
        # MLflow takes names of up to 500 characters and digests of up to 36.
        dataset = MetaDataset(source, name=name[:500], digest=digest[:32])  # type: ignore[abstract]
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(run.info.run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])

    def _log_artifact(self, run: Any, path: Path, folder: str) -> None:
        with _time_for(path):
            self._client.log_artifact(run.info.run_id, str(path), folder or None)

    def _log_model(self, run: Any, model: Model) -> None:
        """Log a checkpoint as a model that brings its own code: nothing named sanflow is installed from an index."""
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        height, width = model.input_size
        images = TensorSpec(np.dtype("uint8"), (-1, height, width, 3))
        scores = TensorSpec(np.dtype("float32"), (-1,), "score")
        maps = TensorSpec(np.dtype("float32"), (-1, height, width), "map")
        package = Path(__file__).resolve().parents[1]
        # In a checkout the resources are beside the package, in an installation they are within it.
        code = [package] if (package / "resources").exists() else [package, package.parent / "resources"]
        mlflow.set_tracking_uri(self._uri)
        with _time_for(model.checkpoint), warnings.catch_warnings(), mlflow.start_run(run_id=run.info.run_id):
            # About type hints, which the signature makes needless.
            warnings.simplefilter("ignore")
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(resource("mlflow_model.py")),
                artifacts={"checkpoint": str(model.checkpoint)},
                signature=ModelSignature(Schema([images]), Schema([scores, maps])),
                code_paths=[str(folder) for folder in code],
                pip_requirements=requirements(),
            )
        self._set_tag(run, MODEL_TAG, model.digest)

    def _set_tag(self, run: Any, name: str, value: str) -> None:
        self._client.set_tag(run.info.run_id, name, value)
        run.data.tags[name] = value


def requirements() -> list[str]:
    """List the installed versions of sanflow's dependencies; sanflow itself is not among them.

    Snakemake is left out, because a model needs no workflow.
    """
    demanded = [one for one in importlib.metadata.requires("sanflow") or [] if "extra ==" not in one]
    names = [re.split(r"[^\w.-]", one)[0] for one in demanded]
    # Without the local part of a version such as 2.6.0+cpu, which is on no index.
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in names if name != "snakemake"]


@contextlib.contextmanager
def _time_for(file: Path) -> Iterator[None]:
    """Give MLflow's requests the time that the upload of a file of this size needs."""
    before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    seconds = request_seconds() + file.stat().st_size / SLOWEST_BYTES_PER_SECOND
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(int(seconds))
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before


def _experiment(client: Any, name: str, database: Path | None) -> str:
    """Find or make the benchmark's experiment; the artifacts of a SQLite database are beside it, also after a move."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    artifacts = database.parent / "mlflow-artifacts" if database else None
    found = client.get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(Exception):  # another machine may be faster
            client.create_experiment(name, artifacts.as_uri() if artifacts else None)
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if database and artifacts:
        location = Path(local_file_uri_to_path(found.artifact_location))
        if location != artifacts and location.name == artifacts.name:
            _move_artifacts(database, found.artifact_location, artifacts.as_uri())
    return str(found.experiment_id)


def _move_artifacts(database: Path, old: str, new: str) -> None:
    """Change the addresses of artifacts in a database that was moved, because MLflow keeps absolute ones."""
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for table, columns in ADDRESSES.items():
            for column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )


def _import_mlflow() -> Any:
    """Import MLflow's client class. It takes seconds, so it is done before a lock is taken."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A run id inherited from the caller's environment would redirect everything into that run.
    os.environ.pop("MLFLOW_RUN_ID", None)
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    return MlflowClient


def _name(key: str) -> str:
    """Replace the characters that MLflow refuses in a name."""
    return re.sub(r"[^\w./ :-]", "_", key)[:240]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return masked(f"{type(error).__name__}: {lines[0] if lines else ''}"[:500])
