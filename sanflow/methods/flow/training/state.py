"""The state of a training on disk, from which a training that was killed at any moment resumes.

A state file is named `<key>.step<n>.<sha256>.pt`: it belongs to one key (configuration, data, code, seed), and its
content can be checked by its name. It is written and then renamed, and the state before it is removed afterwards; so
whatever happens during a save, a good state remains. A thread saves a snapshot in host memory while training continues.
"""

import hashlib
import io
import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import torch
from torch import Tensor

from sanflow.errors import StorageError
from sanflow.files import atomic_path, storage_errors, write_json
from sanflow.provenance import digest_of

logger = logging.getLogger(__name__)

State = dict[str, Any]
STATE_FILE = re.compile(r"(?P<key>[0-9a-f]{12})\.step(?P<step>\d{9})\.(?P<sha256>[0-9a-f]{16})\.pt")
KEY_FILE = re.compile(r"(?P<key>[0-9a-f]{12})\.json")
# Name of the file that a killed save leaves.
UNFINISHED = re.compile(r"\.?(?P<key>[0-9a-f]{12})\.waiting\.")


@dataclass(frozen=True)
class StateKey:
    """Digests that must be equal for a state to be resumed; otherwise it belongs to another training."""

    config: str
    data: str
    code: str
    seed: int

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits, for file names."""
        return digest_of(vars(self))[:12]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Name the parts in which another key differs."""
        return [name for name, value in vars(self).items() if other.get(name) != value]


class StateFolder:
    """The states of one training in a folder that no rule declares as its output.

    As a context manager it waits at its end for a save that is being written.

    Arguments:
        folder: Made on the first save.
        key: Of this training.
    """

    def __init__(self, folder: str | os.PathLike[str], key: StateKey) -> None:
        self.folder = Path(folder)
        self.key = key
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.finish()
        except StorageError as failure:
            # An error of the block is more important; without one, the finished state is saved next.
            logger.warning("%s", failure)

    def load(self) -> State | None:
        """Load the newest complete state of this key, or None.

        Damaged files of this key are reported and removed. States of another key are not used; a message says in what
        they differ, and `forget_others` removes them.
        """
        self._report_others()
        for step, digest, path in self._files():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest().startswith(digest):
                # weights_only: only tensors and plain values are read, so no code in the file can run.
                state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                logger.info("Resuming from the state saved after step %d (%s).", step, path)
                return state
            logger.warning("Expected a whole state in %s, but it is damaged; it is removed.", path)
            path.unlink()
        return None

    def save(self, state: State, step: int, *, wait: bool = True) -> None:
        """Save a state, atomically; with `wait=False` in a thread.

        The tensors are copied to host memory first, so the training may change them meanwhile.

        Arguments:
            state: Nested dicts and lists of tensors and plain values.
            step: Steps done; a later state has a larger one.
            wait: Whether to return only when the state is on the disk.

        Raises:
            StorageError: If this save, or with `wait` the one before, could not be written; the state before it stays.
        """
        self.finish()
        snapshot = _snapshot(state)
        if wait:
            self._write(snapshot, step)
            return
        self._thread = threading.Thread(target=self._write_aside, args=(snapshot, step), name="sanflow-save")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Wait for a save that is being written.

        Raises:
            StorageError: If it could not be written; the state before it stays.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def steps(self) -> list[int]:
        """Return the steps after which this key's states were saved, latest first."""
        return [step for step, _, _ in self._files()]

    def forget_others(self) -> None:
        """Remove the states of other keys when this training is done, because each may have gigabytes."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                match = STATE_FILE.fullmatch(path.name) or KEY_FILE.fullmatch(path.name) or UNFINISHED.match(path.name)
                if match is not None and match["key"] != self.key.short:
                    logger.info("Removing %s, the state of another training.", path)
                    path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[int, str, Path]]:
        """List (step, digest, path) of this key's states, newest first."""
        if not self.folder.is_dir():
            return []
        files = []
        for path in self.folder.iterdir():
            match = STATE_FILE.fullmatch(path.name)
            if match is not None and match["key"] == self.key.short:
                files.append((int(match["step"]), match["sha256"], path))
        return sorted(files, reverse=True)

    def _report_others(self) -> None:
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            match = KEY_FILE.fullmatch(path.name)
            if match is not None and match["key"] != self.key.short:
                try:
                    other = json.loads(path.read_text("utf-8"))
                except (OSError, ValueError):
                    other = {}
                logger.warning(
                    "%s holds a state of another training (it differs in: %s). It is not used, this training starts "
                    "from the beginning, and the old state is removed when it is done.",
                    self.folder,
                    ", ".join(self.key.differences(other)),
                )

    def _write_aside(self, snapshot: State, step: int) -> None:
        try:
            self._write(snapshot, step)
        except BaseException as error:
            self._failure = error

    def _write(self, snapshot: State, step: int) -> None:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        key_file = self.folder / f"{self.key.short}.json"
        if not key_file.exists():
            write_json(key_file, vars(self.key))
        before = [path for _, _, path in self._files()]
        waiting = self.folder / f"{self.key.short}.waiting.pt"
        hashing = _HashingFile()
        try:
            with atomic_path(waiting) as temporary, open(temporary, "wb") as file:
                hashing.file = file
                torch.save(snapshot, cast(IO[bytes], hashing))
                file.flush()
            final = self.folder / f"{self.key.short}.step{step:09d}.{hashing.digest.hexdigest()[:16]}.pt"
            os.replace(waiting, final)
            _sync_folder(self.folder)
        except RuntimeError as error:
            # torch's writer turns an OSError of the file below it into a RuntimeError of its own.
            cause = hashing.error
            if cause is None:
                raise
            raise StorageError(
                f"Expected to be able to save the training's state in {self.folder}, but got: {cause}. "
                "Free some space and start again; the state saved before is still there."
            ) from error
        for path in before:
            if path != final:
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a killed save left of its temporary file."""
        for path in self.folder.glob(f".{self.key.short}.waiting.*"):
            path.unlink(missing_ok=True)


def remove_finished_state(folder: str | os.PathLike[str]) -> None:
    """Delete a training's states, once its checkpoint has been used; also the folder, if it is empty."""
    path = Path(folder)
    if not path.is_dir():
        return
    for file in path.iterdir():
        if STATE_FILE.fullmatch(file.name) or KEY_FILE.fullmatch(file.name) or UNFINISHED.match(file.name):
            file.unlink(missing_ok=True)
    kept = path / "kept"
    if kept.is_dir():
        for file in kept.glob("*epoch*.pt"):
            file.unlink(missing_ok=True)
        if not any(kept.iterdir()):
            kept.rmdir()
    if not any(path.iterdir()):
        path.rmdir()


class SaveClock:
    """A clock that says when the next save is due.

    Arguments:
        every_seconds: Shortest time between two saves.
    """

    def __init__(self, every_seconds: float) -> None:
        self.every_seconds = every_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Return whether that time has passed; if so, start it again."""
        now = time.monotonic()
        if now - self._last < self.every_seconds:
            return False
        self._last = now
        return True


class _HashingFile:
    """A file that hashes what is written, and keeps the error that stopped it."""

    def __init__(self) -> None:
        self.file: IO[bytes] = io.BytesIO()
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            written = self.file.write(content)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(content)
        return written

    def flush(self) -> None:
        self.file.flush()


def _snapshot(value: Any) -> Any:
    """Copy all parts, with all tensors in host memory."""
    if isinstance(value, Tensor):
        copy = value.detach().to("cpu", copy=True)
        # Strides decide the order of sums, so they are kept: the resumed run must be equal bit for bit.
        return (
            copy
            if copy.stride() == value.stride()
            else torch.empty_strided(value.size(), value.stride(), dtype=value.dtype).copy_(value.detach())
        )
    if isinstance(value, Mapping):
        return {key: _snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_snapshot(item) for item in value]
    return value


def _sync_folder(folder: Path) -> None:
    """Write the rename itself to the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
