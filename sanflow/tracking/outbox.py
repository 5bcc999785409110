"""The outbox of one job: events not yet sent to the tracking server, one JSON object a line.

An event is written here before anything is sent, and the outbox is removed once all of it arrived and the job
ended. Every event carries its own time and can be sent twice with the effect of once, so no kill at any moment
loses or doubles one. The lock is held while the job lives: an outbox whose lock is free belongs to a job that
ended, and if it was never closed, to one that was killed.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sanflow.errors import StorageError
from sanflow.files import read_json, storage_errors, write_json

Event = dict[str, Any]
IDENTITY_SUFFIX = ".run.json"


class Outbox:
    """`<name>.run.json` (whose events), `<name>.jsonl` (the unsent ones) and `<name>.lock` in one folder.

    Arguments:
        folder: Where the outboxes of a benchmark lie: `results/<benchmark>/tracking`.
        name: File name without its ending.
        identity: By what the run is found at the server; None reads the one left by an earlier job.

    Raises:
        StorageError: If another live process holds this outbox, or the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, identity: dict[str, Any] | None = None) -> None:
        self.path = folder / f"{name}.jsonl"
        self._identity_path = folder / f"{name}{IDENTITY_SUFFIX}"
        self._lock_path = folder / f"{name}.lock"
        with storage_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._lock_path)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise StorageError(
                    f"Expected {self._lock_path} to be free, but a running process holds it. "
                    "Wait until it ends, or stop it."
                ) from error
        if identity is None:
            identity = read_json(self._identity_path)
        else:
            write_json(self._identity_path, identity)
        self.identity: dict[str, Any] = identity

    def append(self, event: Event) -> None:
        """Write one event; it is on the disk when this returns.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
        """
        # The leading newline keeps half a line, left by a job killed while writing, from spoiling this one.
        line = "\n" + json.dumps({"time": int(time.time() * 1000), **event}, ensure_ascii=False) + "\n"
        with storage_errors(self.path), open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Event]:
        """All unsent events, oldest first. Half a line of a killed job is skipped."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text("utf-8", errors="replace").split("\n"):
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and "kind" in event:
                events.append(event)
        return events

    def clear(self) -> None:
        """Forget the events: they have arrived."""
        self.path.unlink(missing_ok=True)

    def close(self, empty: bool) -> None:
        """Let go of the outbox.

        Arguments:
            empty: True if the job ended and all it told has arrived: then the files go as well.
        """
        if empty:
            # The identity first: events without it are known to have been sent.
            self._identity_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            self._lock_path.unlink(missing_ok=True)
        else:
            self.append({"kind": "closed"})
        self._lock.release()

    def release(self) -> None:
        """Let go of the outbox and leave it as it is, for the next attempt to send it."""
        self._lock.release()

    def was_killed(self) -> bool:
        """Whether the job that filled it never came to its end."""
        events = self.read()
        if any(event["kind"] == "closed" for event in events[-1:]):
            return False
        statuses = [event["status"] for event in events if event["kind"] == "status"]
        return not statuses or statuses[-1] == "RUNNING"


def pending(folder: Path) -> list[str]:
    """Names of the outboxes in a folder, oldest first."""
    found = sorted(folder.glob(f"*{IDENTITY_SUFFIX}"), key=lambda path: path.stat().st_mtime)
    return [path.name.removesuffix(IDENTITY_SUFFIX) for path in found]
