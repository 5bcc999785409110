"""Keep what is known of a training that has not finished, in `results/<benchmark>/tracking/<unit>.json`.

The lock beside it is held as long as the process lives, so a training with status RUNNING and a free lock was killed.
Both files are removed once MLflow has all of it.
"""

import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sanflow.errors import StorageError
from sanflow.files import read_json, storage_errors, write_json


class JobFile:
    """The file of one job, locked until it is released or the process ends.

    Arguments:
        folder: `results/<benchmark>/tracking`.
        unit: `<dataset>/<category>/<experiment>/seed<k>`.

    Raises:
        StorageError: If another live process holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: Path, unit: str) -> None:
        self.path, self._lock = folder / f"{unit}.json", FileLock(folder / f"{unit}.lock")
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise StorageError(
                    f"Expected {self._lock.lock_file} to be free, but a running process holds it. "
                    "Wait until it ends, or stop it."
                ) from error

    def read(self) -> dict[str, Any] | None:
        """Read `status`, `time` (in ms) and `record` (train.json as far as it is known); None if there is no file."""
        return read_json(self.path) if self.path.exists() else None

    def write(self, status: str, record: dict[str, Any]) -> dict[str, Any]:
        """Write the file, and return what `read` gives."""
        job = {"status": status, "time": int(time.time() * 1000), "record": record}
        write_json(self.path, job)
        return job

    def close(self, *, remove: bool) -> None:
        """Free the lock, after the files were removed or for `sync` to send them."""
        if remove:
            self.path.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
