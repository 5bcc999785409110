"""The cache of decoded, resized images: arrays in files that are mapped into memory, so an epoch costs no decoding.

<cache>/<key>/images.npy holds the array, <key>/entry.json its description and a checksum per image. A finished folder
is renamed to its final name; jobs that need the same entry wait for its lock and then share it. entry.json's
modification time is the time of the last use: beyond the limit the least recently used are removed. Damaged entries are
made again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy import ndarray

from sanflow.files import require_free_space, storage_errors

FORM = 1  # raise when the array's meaning changes
CHECKED_WHOLE = 512 * 2**20  # larger entries are checked by a sample of their images
SAMPLE = 256


@dataclass(frozen=True)
class Entry:
    """One array of the cache."""

    folder: Path
    label: str
    n_bytes: int
    last_used: float


def cached(
    cache: Path,
    key: str,
    label: str,
    shape: tuple[int, ...],
    fill: Callable[[ndarray], None],
    *,
    limit_bytes: int | None = None,
) -> ndarray:
    """Return the array of `key`; `fill` makes it if the cache does not have it.

    Arguments:
        cache: Folder of the cache; made if missing.
        key: What decides the content; hashed to a file name.
        label: Description for users.
        shape: Shape of the uint8 array, images first.
        fill: Writes the array in place.
        limit_bytes: The least recently used other entries are removed when the cache grows beyond this.

    Returns:
        A read-only memory map.

    Raises:
        StorageError: If there is no space.
    """
    name = hashlib.sha256(f"{FORM}|{key}".encode()).hexdigest()[:32]
    folder = cache / name
    # First without the lock, which cannot be taken in a read-only cache.
    found = _open(folder, shape)
    if found is not None:
        return found
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f".{name}.lock").acquire()
    with lock:
        found = _open(folder, shape)
        if found is not None:
            return found
        n_bytes = int(np.prod(shape))
        _trim(cache, None if limit_bytes is None else limit_bytes - n_bytes, keep=folder)
        require_free_space(cache, n_bytes, f"the image cache of {label} (or choose another cache folder)")
        return _build(folder, label, shape, fill)


def _build(folder: Path, label: str, shape: tuple[int, ...], fill: Callable[[ndarray], None]) -> ndarray:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with storage_errors(folder):
            # Reserve the space now: if the disk gets full later, a signal kills the process without a message.
            array = np.lib.format.open_memmap(temporary / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
            with open(temporary / "images.npy", "rb+") as file:
                _reserve(file.fileno(), os.path.getsize(temporary / "images.npy"))
            fill(array)
            array.flush()
            facts = {
                "label": label,
                "shape": list(shape),
                "file_bytes": os.path.getsize(temporary / "images.npy"),
                "crc32": [zlib.crc32(image.tobytes()) for image in array],
            }
            del array
            (temporary / "entry.json").write_text(json.dumps(facts), "utf-8")
            # Map it before others can see it: another job may remove the entry as soon as it has its final name.
            made: ndarray = np.load(temporary / "images.npy", mmap_mode="r", allow_pickle=False)
            _remove(folder)
            os.replace(temporary, folder)
            return made
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reserve(file: int, n_bytes: int) -> None:
    try:
        os.posix_fallocate(file, 0, n_bytes)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in {28, 122}:  # no space, quota exceeded
            raise


def _open(folder: Path, shape: tuple[int, ...]) -> ndarray | None:
    """Open the array of an entry; None if it is missing or damaged."""
    try:
        facts = json.loads((folder / "entry.json").read_text("utf-8"))
        if tuple(facts["shape"]) != shape or os.path.getsize(folder / "images.npy") != facts["file_bytes"]:
            return None
        array = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != np.uint8:
            return None
        whole = array.nbytes <= CHECKED_WHOLE
        places = range(len(array)) if whole else np.linspace(0, len(array) - 1, SAMPLE).astype(int)
        if any(zlib.crc32(array[i].tobytes()) != facts["crc32"][i] for i in places):
            return None
        with contextlib.suppress(OSError):  # of another user, or on a read-only disk
            os.utime(folder / "entry.json")
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
        return None
    return array


def entries(cache: Path) -> list[Entry]:
    """List the cache's entries, least recently used first."""
    found = []
    for facts_path in cache.glob("*/entry.json"):
        try:
            facts = json.loads(facts_path.read_text("utf-8"))
            n_bytes = sum(path.stat().st_size for path in facts_path.parent.iterdir())
            found.append(Entry(facts_path.parent, str(facts["label"]), n_bytes, facts_path.stat().st_mtime))
        except (OSError, ValueError, KeyError):  # another job removed it just now, or it is damaged
            continue
    return sorted(found, key=lambda entry: entry.last_used)


def clear(cache: Path) -> int:
    """Remove all entries, also unfinished ones of killed jobs; return the bytes that were freed.

    Arrays that a running job has mapped stay usable until it ends.
    """
    freed = 0
    for path in list(cache.iterdir()) if cache.is_dir() else []:
        if path.is_dir() and ((path / "entry.json").exists() or path.name.endswith(".tmp")):
            freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            _remove(path)
    return freed


def _trim(cache: Path, limit_bytes: int | None, keep: Path) -> None:
    for path in cache.glob(".*.tmp"):  # left by killed jobs
        with contextlib.suppress(FileNotFoundError):  # another job has removed it just now
            if time.time() - path.stat().st_mtime > 24 * 3600:
                shutil.rmtree(path, ignore_errors=True)
    if limit_bytes is None:
        return
    others = [entry for entry in entries(cache) if entry.folder != keep]
    total = sum(entry.n_bytes for entry in others)
    for entry in others:
        if total <= limit_bytes:
            break
        _remove(entry.folder)
        total -= entry.n_bytes


def _remove(folder: Path) -> None:
    """Rename an entry, then delete it, so that no other job ever opens an incomplete one."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        os.replace(folder, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)
