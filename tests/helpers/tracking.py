"""A results folder, and what MLflow has of it."""

from pathlib import Path
from typing import Any

import mlflow

from sanflow.benchmark_json import claim, write_outline
from sanflow.files import write_json
from sanflow.tracking.contents import of_benchmark
from sanflow.tracking.mirror import Mirror
from sanflow.tracking.sync import Delivery, sync

CATEGORY = "mvtec_ad/metal nut's"


def make_results(folder: Path) -> Path:
    """Write benchmark.json and the index.json of one category."""
    write_outline(
        folder, name=folder.name, title="a title", digest="d" * 64, datasets={"mvtec_ad": []}, experiments=["sanflow"]
    )
    write_json(folder / CATEGORY / "index.json", {"root": "/data/mvtec_ad"})
    return folder


def send(uri: str, results: Path) -> list[Delivery]:
    """Do as `sanflow track sync`: one delivery per job."""
    outline = claim(results) or {}
    parent = of_benchmark(outline, {"status": "RUNNING", "time": 1}, {})
    return list(sync(Mirror(uri, results / "tracking", results.name), results, outline, parent))


def runs_of(uri: str, benchmark: str = "bench") -> list[Any]:
    """List the runs of a benchmark, oldest first."""
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(f"sanflow/{benchmark}")
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]) if found else []


def jobs_of(uri: str, benchmark: str = "bench") -> list[Any]:
    """List the runs of a benchmark's jobs."""
    return [run for run in runs_of(uri, benchmark) if "mlflow.parentRunId" in run.data.tags]


def history(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    """List the steps and values of a metric."""
    return [(point.step, point.value) for point in mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


def artifacts(uri: str, run: Any, folder: str | None = None) -> list[str]:
    """List the artifacts of a run."""
    return [item.path for item in mlflow.MlflowClient(uri).list_artifacts(run.info.run_id, folder)]


def waiting(results: Path) -> list[str]:
    """List the files of jobs of which MLflow does not have all."""
    return sorted(file.name for file in (results / "tracking").rglob("seed*") if file.is_file())
