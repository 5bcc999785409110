"""Digest the content of a user's folders; hash a file again only once it has changed.

Snakemake reruns `index` when this digest changes: also for a repainted mask of the same name and size, but not for a
file with a new time only. Symlinked folders are followed, each once.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sanflow.config.names import printable
from sanflow.data.litter import is_litter
from sanflow.data.places import category_folder
from sanflow.data.table import list_table
from sanflow.errors import StorageError
from sanflow.files import atomic_path, sha256_of_file
from sanflow.provenance import digest_of

PARTS = ("train", "validation", "test", "test_public", "ground_truth", "defects_config.json")
# A file that changed so recently may change again within the resolution of its times, so its hash is not kept.
SETTLED_NS = 2 * 10**9


def category_digest(root: str | Path, category: str, memo: Path, *, dataset: str = "") -> str:
    """Compute a digest of the files of a category in its owner's folder.

    Arguments:
        root: The data set's top folder, or the folder around it, or the CSV file of a `list`.
        category: Name of the category.
        memo: See `content_digest`.
        dataset: Name of the data set.

    Returns:
        SHA-256 over the folders and files of the category in `PARTS`, or over all of `root` where it has no folder; of
        a list, over the CSV file and what it names.
    """
    if Path(root).is_file():
        listing = list_table(Path(root), category, dataset)
        names = [name for row in listing.rows for name in (row.image, row.mask) if name]
        return content_digest([Path(root), *(_file_of(Path(root).parent / name) for name in names)], memo)
    own = category_folder(Path(root), category)
    return content_digest([own / part for part in PARTS] if own.is_dir() else [Path(root)], memo)


def content_digest(folders: Iterable[Path], memo: Path) -> str:
    """Compute the SHA-256 over names and contents of all files below folders, without litter.

    Arguments:
        folders: May be missing; also files.
        memo: JSON file that keeps the hash of each file with its size and times. Not written in a read-only folder.
    """
    known, facts, fresh = _read(memo), [], {}
    files = [(folder, path) for folder in folders for path in sorted(_files(folder))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        entries = pool.map(lambda item: _entry(item[1], known.get(printable(str(item[1].absolute())))), files)
        for (folder, path), entry in zip(files, entries, strict=True):
            facts.append([folder.name, printable(str(path.relative_to(folder))), entry and entry[-1]])
            if entry is not None and time.time_ns() - max(entry[1], entry[2]) > SETTLED_NS:
                fresh[printable(str(path.absolute()))] = entry
    if not fresh.items() <= known.items():
        _write(memo, known | fresh)
    return digest_of(facts)


def _file_of(path: Path) -> Path:
    """Return the file of the array if a mask is one of its frames, else the path itself."""
    return path.parent if path.parent.suffix == ".npy" and path.parent.is_file() else path


def _files(folder: Path) -> Iterator[Path]:
    """List all files below a folder, and links to nothing; a folder that links lead to twice is entered once.

    If `folder` is a file, only that file is listed.
    """
    if folder.is_file():
        yield folder
        return
    entered: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_litter(name))
        yield from (Path(place, name) for name in names if not is_litter(name))


def _entry(path: Path, known: list[Any] | None) -> list[Any] | None:
    """Return size, times and hash of a file; None for a link to nothing or an unreadable file."""
    try:
        status = path.stat()
        facts = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if known is not None and known[:3] == facts:
            return known
        return [*facts, sha256_of_file(path)] if path.is_file() else None
    except OSError:
        return None


def _read(memo: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(memo.read_text("utf-8"))
    except (OSError, ValueError):  # the first time, or damaged: files are hashed again
        return {}
    return content if isinstance(content, dict) else {}


def _write(memo: Path, content: dict[str, list[Any]]) -> None:
    try:
        with atomic_path(memo) as temporary:
            temporary.write_text(json.dumps(content), "utf-8")
    except StorageError:  # results are read-only
        return
