"""Send what MLflow does not have: finished jobs by their files, unfinished ones by their job files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanflow.errors import IntegrityError, StorageError
from sanflow.tracking.contents import Contents, runs_of
from sanflow.tracking.job_file import JobFile
from sanflow.tracking.mirror import Mirror


@dataclass(frozen=True)
class Delivery:
    """Result for one job: `problem` is None if MLflow has all of it; `running` if it was left alone."""

    unit: str
    sent: bool = False
    problem: str | None = None
    running: bool = False


def units_of(results: Path) -> list[str]:
    """List the jobs of `results/<benchmark>` of which something can be sent."""
    folders = {results: "*/*/*/seed*/train.json", results / "tracking": "*/*/*/seed*.json"}
    files = [file.relative_to(folder) for folder, pattern in folders.items() for file in folder.glob(pattern)]
    files += [file.relative_to(results) for file in results.glob("*/*/*/seed*/metrics.json")]
    return sorted({"/".join(file.with_suffix("").parts[:4]) for file in files})


def sync(
    mirror: Mirror, results: Path, outline: Mapping[str, Any], parent: Contents, *, models: bool = False
) -> Iterator[Delivery]:
    """Send every job that does not run; one that was RUNNING when its process ended was killed.

    Arguments:
        mirror: Where to send.
        results: `results/<benchmark>`.
        outline: benchmark.json.
        parent: From `contents.of_benchmark`.
        models: Also log each checkpoint as an MLflow model.

    Returns:
        One delivery per job, as it happens. A job that is refused does not stop the others.

    Raises:
        ServerAwayError: If the server does not answer any more.
    """
    for unit in units_of(results):
        try:
            file = JobFile(results / "tracking", unit)
        except StorageError:
            yield Delivery(unit, running=True)
            continue
        sent, problems = False, ["not sent"]
        try:
            job = file.read()
            if job is not None and job["status"] == "RUNNING":
                job["status"] = "KILLED"
            runs, problems = runs_of(results, unit, outline, parent, job), []
            for run in runs:
                try:
                    sent |= mirror.put(run, models=models)
                except ValueError as error:
                    problems.append(str(error))
        except IntegrityError as error:
            problems = [str(error)]
        finally:
            file.close(remove=not problems)
        yield Delivery(unit, sent, "; ".join(problems) or None)
