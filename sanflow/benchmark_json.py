"""`results/<benchmark>/benchmark.json`: the name of a benchmark, its parts and their order.

Written when the benchmark begins, so that tables made by hand show what the workflow's show and name what is missing,
and the mirror finds the benchmark's run from any process.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sanflow.files import read_json, write_json

FILE = "benchmark.json"


def write_outline(
    results: str | os.PathLike[str],
    *,
    name: str,
    title: str,
    digest: str,
    datasets: Mapping[str, Sequence[str]],
    experiments: Iterable[str],
    runs_on: Mapping[str, Sequence[str]] | None = None,
    seeds: Sequence[int] = (),
) -> None:
    """Write the outline of a benchmark.

    Arguments:
        results: Its folder, `results/<benchmark>`.
        name: Of the benchmark.
        title: One sentence for readers.
        digest: Of its settings.
        datasets: Data sets with their categories; none where these are not known.
        experiments: Keys of its experiments.
        runs_on: Experiment -> the data sets it runs on; all of them where it is not named.
        seeds: Of every experiment.
    """
    keys = list(experiments)
    outline = {
        "name": name,
        "title": title,
        "key": f"{name}/{digest[:12]}",
        "digest": digest,
        "datasets": {dataset: list(categories) for dataset, categories in datasets.items()},
        "experiments": keys,
        "runs_on": {key: list((runs_on or {}).get(key, datasets)) for key in keys},
        "seeds": list(seeds),
    }
    write_json(Path(results, FILE), outline)


def read_outline(results: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The outline of a benchmark, or None where none was written.

    Raises:
        IntegrityError: If the file is damaged.
    """
    path = Path(results, FILE)
    return read_json(path) if path.exists() else None


def position(name: str, order: Sequence[str]) -> tuple[int, str]:
    """A key that sorts names as in `order`; what is not in it comes last, by the alphabet.

    Example:
        >>> sorted(["b", "c", "a"], key=lambda name: position(name, ["c"]))
        ['c', 'a', 'b']
    """
    return (order.index(name), "") if name in order else (len(order), name)
