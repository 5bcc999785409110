"""Derive what MLflow shows of a run from the files of a results folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sanflow.files import read_json, sha256_of_file
from sanflow.provenance import digest_of

FILES = ("train.json", "metrics.json", "images.csv")
TAGS = ("device", "precision", "parameters", "training_images", "steps", "attempts", "digests", "versions")
COSTS = ("images_per_second", "peak_memory_bytes", "energy_joules", "attempts")


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint with its digest and the size of its images (height and width in pixels)."""

    checkpoint: Path
    digest: str
    input_size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Contents:
    """All that MLflow shows of one run.

    Arguments:
        key: Finds the run again, from any process.
        name: As a user sees it.
        status: RUNNING, FINISHED, FAILED or KILLED.
        start: When it began, in ms.
        end: When it ended or was last changed, in ms; the time of all its metrics.
        params: Settings, which never change.
        tags: Facts that may change between attempts.
        metrics: Name, value and epoch.
        dataset: Name, digest, source and context (train or test) of the images; None for a benchmark.
        artifacts: Files, each with the folder in which it is shown.
        parent: The benchmark's own run.
        model: The fitted detector; None until it was evaluated.
    """

    key: str
    name: str
    status: str
    start: int
    end: int
    params: dict[str, str]
    tags: dict[str, str]
    metrics: list[tuple[str, float, int]]
    dataset: tuple[str, str, str, str] | None
    artifacts: dict[Path, str]
    parent: "Contents | None" = None
    model: Model | None = None

    def digest(self) -> str:
        """Compute the SHA-256 of all that is shown; times do not count, so that copied files are not sent again."""
        files = [(folder, path.name, sha256_of_file(path)) for path, folder in self.artifacts.items()]
        return digest_of([self.status, self.params, self.tags, self.metrics, self.dataset, files])


def of_benchmark(outline: Mapping[str, Any], state: Mapping[str, Any], artifacts: dict[Path, str]) -> Contents:
    """Describe the benchmark's own run, the parent of the runs of its jobs.

    Arguments:
        outline: benchmark.json.
        state: `status`, `time` (in ms), `versions` and `means`, as far as they are known.
        artifacts: As in `Contents`.
    """
    return Contents(
        key=digest_of([outline["owner"]["id"], outline["digest"]]),
        name=outline["name"],
        status=state["status"],
        start=state["time"],
        end=state["time"],
        params=flattened({name: list(outline[name]) for name in ("datasets", "experiments", "seeds")}),
        tags=_tags(outline, {"sanflow.unit": outline["key"], "sanflow.title": outline["title"]}, state),
        metrics=[(name, value, 0) for name, value in state.get("means", {}).items()],
        dataset=None,
        artifacts=artifacts,
    )


def of_job(
    results: Path, unit: str, outline: Mapping[str, Any], parent: Contents, job: Mapping[str, Any] | None = None
) -> Contents | None:
    """Describe the run of one job.

    Arguments:
        results: `results/<benchmark>`.
        unit: `<dataset>/<category>/<experiment>/seed<k>`.
        outline: benchmark.json.
        parent: From `of_benchmark`.
        job: From `JobFile.read`, for a training that has not finished; None reads train.json and metrics.json.

    Returns:
        The run, or None where the files do not say which job it is.

    Raises:
        IntegrityError: If a file is damaged.
    """
    files = [file for name in FILES if job is None and (file := results / unit / name).exists()]
    read = {file.name: read_json(file) for file in files if file.suffix == ".json"}
    measured = read.get("metrics.json", {})
    provenance = measured.get("provenance", {})
    record = job["record"] if job else _from_provenance(provenance) | read.get("train.json", {})
    if "job" not in record:
        return None
    end = job["time"] if job else max(int(1000 * file.stat().st_mtime) for file in files)
    category = unit.rsplit("/", 2)[0]
    index = results / category / "index.json"
    checkpoint, model = results / unit / "checkpoint.pt", None
    if "checkpoint_digest" in provenance and checkpoint.exists():
        model = Model(checkpoint, provenance["checkpoint_digest"], tuple(measured["input_size"]))
    source = str(read_json(index)["root"]) if index.exists() else ""
    context = "train" if "training_images" in record else "test"
    return Contents(
        # Whose results, which job, and what decides its weights: settings, images and code.
        key=digest_of([outline["owner"]["id"], unit, record["digests"]]),
        name=unit,
        status=job["status"] if job else "FINISHED",
        start=end - int(1000 * record.get("seconds", {}).get("total", 0)),
        end=end,
        params=flattened(record["job"]),
        tags=_tags(outline, {"sanflow.unit": f"{outline['name']}/{unit}"}, record),
        metrics=_metrics(record, measured),
        # MLflow shows a data set once in a run, so that of a fit is shown as the one it was trained on.
        dataset=(category, record["digests"]["data"], source, context),
        artifacts=dict.fromkeys(files, ""),
        parent=parent,
        model=model,
    )


def runs_of(
    results: Path, unit: str, outline: Mapping[str, Any], parent: Contents, job: Mapping[str, Any] | None
) -> list[Contents]:
    """Describe the runs of one job: a finished one by its files, and an attempt of other settings by its job file.

    Arguments: as for `of_job`.
    """
    running = job is not None and job["status"] == "RUNNING"
    finished = None if running else of_job(results, unit, outline, parent)
    live = of_job(results, unit, outline, parent, job) if job else None
    return [run for run in (finished, live) if run and (run is finished or not finished or run.key != finished.key)]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested settings into one level of dotted names and text values.

    Example:
        >>> flattened({"epochs": 20, "input_size": {"default": 256}, "taps": ["a", "b"], "clip": None})
        {'epochs': '20', 'input_size.default': '256', 'taps': 'a, b', 'clip': 'None'}
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return flat


def _tags(outline: Mapping[str, Any], own: dict[str, str], record: Mapping[str, Any]) -> dict[str, str]:
    owner = outline["owner"]
    facts = flattened({name: record[name] for name in TAGS if name in record})
    return (
        own | facts | {"mlflow.user": owner["user"], "sanflow.host": owner["host"], "sanflow.folder": owner["folder"]}
    )


def _metrics(record: Mapping[str, Any], measured: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    history, seconds = record.get("history", []), record.get("seconds", {})
    costs = {f"seconds_{phase}": value for phase, value in seconds.items()}
    costs |= {name: record[name] for name in COSTS if seconds and record.get(name) is not None}
    found = [(f"train/{name}", value, one["epoch"]) for one in history for name, value in one.items()]
    found += [(f"cost/{name}", value, len(history)) for name, value in costs.items()]
    found += [(f"test/{name}", value, len(history)) for name, value in measured.items() if isinstance(value, float)]
    # JSON has no NaN.
    nan = float("nan")
    return [
        (name, nan if value is None else float(value), step) for name, value, step in found if name != "train/epoch"
    ]


def _from_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a run without a train.json, from the provenance in its metrics.json, as train.json does."""
    if not provenance:
        return {}
    step = next(iter(provenance["steps"].values()))
    job = {name: provenance[name] for name in ("dataset", "category", "seed")}
    digests = {"config": provenance["config_digest"], "data": provenance["index_digest"], "code": step["code_digest"]}
    return {
        "job": {**job, "experiment": provenance["experiment_name"], "settings": provenance["experiment"]},
        "digests": digests,
        "versions": step["versions"],
    }
