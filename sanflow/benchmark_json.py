"""Write and read `results/<benchmark>/benchmark.json`: name, parts and their order, and the owner of the results.

Written when the benchmark begins, so that tables made by hand show what the workflow's show and name what is missing,
and tracking finds the benchmark's runs from any process.
"""

import getpass
import os
import socket
import uuid
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
        "owner": _owner(Path(results), (read_outline(results) or {}).get("owner")),
    }
    write_json(Path(results, FILE), outline)


def read_outline(results: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the outline of a benchmark; None if there is none.

    Raises:
        IntegrityError: If the file is damaged.
    """
    path = Path(results, FILE)
    return read_json(path) if path.exists() else None


def claim(results: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Update the owner in the outline, and read it.

    Runs at a tracking server belong to a user and a results folder by `owner.id`. A folder that was moved keeps its id;
    a copy, or another user, gets a new one, so that two of them never write into one run.

    Arguments:
        results: Its folder, `results/<benchmark>`.

    Returns:
        The outline, or None where none was written.

    Raises:
        IntegrityError: If the file is damaged.
    """
    outline = read_outline(results)
    if outline is not None:
        owner = _owner(Path(results), outline.get("owner"))
        if owner != outline.get("owner"):
            outline["owner"] = owner
            write_json(Path(results, FILE), outline)
    return outline


def _owner(results: Path, known: Mapping[str, str] | None) -> dict[str, str]:
    here = {"user": _user(), "host": socket.gethostname(), "folder": str(results.resolve())}
    if known is not None and known["user"] == here["user"]:
        # One folder that several machines share has one path; the machine from which it is used may change.
        if known["folder"] == here["folder"]:
            return dict(known)
        if known["host"] == here["host"] and not _is_copy(results, known):
            return here | {"id": known["id"]}
    return here | {"id": uuid.uuid4().hex}


def _is_copy(results: Path, known: Mapping[str, str]) -> bool:
    """Return whether the results are a copy: the folder from which they come still exists elsewhere."""
    original = Path(known["folder"], FILE)
    return original.exists() and not original.samefile(results / FILE) and known["id"] in original.read_text("utf-8")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())


def position(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Return a key that sorts names as in `order`; names that are not in it come last, alphabetically.

    Example:
        >>> sorted(["b", "c", "a"], key=lambda name: position(name, ["c"]))
        ['c', 'a', 'b']
    """
    return (order.index(name), "") if name in order else (len(order), name)
