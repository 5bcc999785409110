"""Sends what was left behind: outboxes of jobs that ended while the server was away, or that were killed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sanflow.errors import IntegrityError, StorageError
from sanflow.tracking.mirror import send
from sanflow.tracking.outbox import Outbox, pending


@dataclass(frozen=True)
class Delivery:
    """What became of one outbox: `problem` is None if all of its `n_events` arrived; `running` if it was left alone."""

    name: str
    n_events: int = 0
    problem: str | None = None
    running: bool = False


def sync(uri: str, folder: Path) -> Iterator[Delivery]:
    """Send every outbox whose job has ended; one whose last word was RUNNING was killed and is told so.

    Arguments:
        uri: MLflow's tracking URI.
        folder: `results/<benchmark>/tracking`.

    Returns:
        One delivery per outbox, as it happens; the first that the server refuses is the last.
    """
    for name in pending(folder):
        try:
            outbox = Outbox(folder, name)
        except StorageError:
            yield Delivery(name, running=True)
            continue
        except (IntegrityError, FileNotFoundError) as error:
            yield Delivery(name, problem=str(error))
            continue
        if outbox.was_killed():
            outbox.append({"kind": "status", "status": "KILLED"})
        events = outbox.read()
        problem = send(uri, folder, outbox.identity, events)
        if problem is None:
            outbox.close(empty=True)
        else:
            outbox.release()
        yield Delivery(name, len(events), problem)
        if problem is not None:
            # The next one would meet the same server.
            return
