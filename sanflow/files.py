"""Write a file whole or not at all; read JSON; hash a file.

Every output of sanflow goes through `atomic_path`: a killed job leaves the previous file or none, never a part of one.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sanflow.errors import IntegrityError, StorageError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's error for a full or read-only disk into a `StorageError` that names the file.

    Raises:
        StorageError: If the block fails because the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise StorageError(
                f"No space left on the device while writing {path}. Free some space and start again; "
                "nothing written before is lost."
            ) from error
        if error.errno in NOT_WRITABLE:
            raise StorageError(
                f"Expected to be able to write {path}, but got: {error.strerror}. "
                "Make the folder writable or choose another one."
            ) from error
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it to disk and rename it, on failure remove it.

    Arguments:
        path: Final path of the file; its folder is made.

    Raises:
        StorageError: If the disk is full or the folder cannot be written.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with atomic_path(folder / "answer.txt") as temporary:
        ...     _ = temporary.write_text("42")
        >>> [file.name for file in folder.iterdir()]
        ['answer.txt']
    """
    final = Path(path)
    # The suffix stays last, because numpy and pandas choose the format by it.
    temporary = final.with_name(f".{final.stem}.{uuid.uuid4().hex[:8]}.tmp{final.suffix}")
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; NaN is written as null, which every JSON reader takes."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file that sanflow wrote.

    Raises:
        IntegrityError: If the file is not whole JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(
            f"Expected JSON in {path}, but it is damaged ({error}). Delete it and start again; it will be remade."
        ) from error


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resource(name: str) -> Path:
    """Return the path of a file that is part of sanflow, from the installed package or the checkout.

    Arguments:
        name: Path below `resources/`: "datasets.yaml".
    """
    package = Path(__file__).resolve().parent
    installed = package / "resources" / name
    return installed if installed.exists() else package.parent / "resources" / name


def require_free_space(folder: str | os.PathLike[str], n_bytes: int, purpose: str) -> None:
    """Check before the work that `folder` (or its nearest existing parent) has room.

    Arguments:
        folder: Where something will be written.
        n_bytes: How many bytes it needs.
        purpose: Text for the message that says what needs the room, such as "the archive of mvtec_ad".

    Raises:
        StorageError: If there is less free space than that.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < n_bytes:
        raise StorageError(
            f"Expected {n_bytes / 1e9:.2f} GB free in {folder} for {purpose}, but there are {free / 1e9:.2f} GB. "
            "Free some space or choose another folder."
        )
