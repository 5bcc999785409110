"""Write the explorer of a benchmark, whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from sanflow.data.index import read_index
from sanflow.errors import ConfigError
from sanflow.files import storage_errors
from sanflow.report.explorer.category import write_category
from sanflow.report.explorer.facts import facts_of, summary_html
from sanflow.report.explorer.scripts import write_script
from sanflow.report.runs import in_order, labels_of, read_runs

PAGE = Path(__file__).parent / "page"


def write_explorer(
    results: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    files: Iterable[str | os.PathLike[str]] | None = None,
    *,
    workers: int | None = None,
) -> Path:
    """Write the explorer of a benchmark's finished runs.

    Arguments:
        results: Folder of the benchmark, `results/<benchmark>`.
        folder: Where the explorer shall be, replaced if it is one already; `<results>/explorer` if unset.
        files: The metrics.json files to take, as in `read_runs`; all if None.
        workers: Threads that decode and encode images; one per processor, at most 8, if unset.

    Returns:
        The page to open.

    Raises:
        ConfigError: If `folder` holds something else than an explorer.
        DataError: If there are no runs, or an image is missing, damaged or changed.
        IntegrityError: If scores belong to other images, or a file is damaged.
        StorageError: If the disk is full or the folder cannot be written.
    """
    results = Path(results)
    folder = Path(folder) if folder is not None else results / "explorer"
    runs = [run for run in read_runs(results, files) if run.epoch is None]
    _require_replaceable(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(folder):
        try:
            shutil.copytree(PAGE, temporary)
            experiments = in_order(run.experiment for run in runs)
            categories = []
            for number, (dataset, category) in enumerate(in_order((run.dataset, run.category) for run in runs)):
                own = [run for run in runs if (run.dataset, run.category) == (dataset, category)]
                index = read_index(results / dataset / category / "index.csv")
                write_category(temporary, number, index, own, experiments, workers)
                categories.append({"dataset": dataset, "name": category, "images": len(index.test)})
            facts = facts_of(results, runs)
            labels = labels_of(runs)
            top = facts | {"experiments": [labels[name] for name in experiments], "categories": categories}
            write_script(temporary / "data" / "benchmark.js", "benchmark", top)
            (temporary / "summary.html").write_text(summary_html(facts, runs), "utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder / "index.html"


def _require_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that no explorer was written to: somebody's files may be in it."""
    if folder.exists() and not (folder.is_dir() and ((folder / "data" / "benchmark.js").is_file() or _empty(folder))):
        raise ConfigError(
            f"Expected {folder} to be missing, empty or an explorer, but it holds something else. Name another folder."
        )


def _empty(folder: Path) -> bool:
    return not any(folder.iterdir())
