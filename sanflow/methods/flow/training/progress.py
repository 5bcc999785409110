"""Report the progress of a training: a bar on a terminal, else a line a minute in the log."""

import logging
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

logger = logging.getLogger(__name__)

# Reading the loss waits for the device, so it is read this seldom.
READ_SECONDS = 2.0
# Without a terminal the steps are logged this often, and the loss with each epoch.
LOG_SECONDS = 60.0


class Progress:
    """A progress bar; where there is no terminal, a line in the log every minute.

    Arguments:
        n_steps: Of the whole training.
        done: Steps done by earlier attempts.
        batch_size: Images per step.
    """

    def __init__(self, n_steps: int, done: int, batch_size: int) -> None:
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} images/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("training", total=n_steps, completed=done, loss="-", rate="-")
        self._n_steps, self._done, self._batch_size = n_steps, done, batch_size
        self._since, self._steps = time.monotonic(), 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, losses: dict[str, Tensor]) -> None:
        """Count one step, with its losses."""
        self._steps += 1
        self._done += 1
        self._bar.advance(self._task)
        seconds = time.monotonic() - self._since
        if seconds < (LOG_SECONDS if self._bar.disable else READ_SECONDS):
            return
        rate = self._steps * self._batch_size / seconds
        if self._bar.disable:
            left = timedelta(seconds=round((self._n_steps - self._done) * seconds / self._steps))
            logger.info("Step %d of %d, %.1f images/s, %s left.", self._done, self._n_steps, rate, left)
        else:
            loss = sum(float(value) for name, value in losses.items() if name.endswith("_loss"))
            self._bar.update(self._task, loss=f"{loss:.4f}", rate=f"{rate:.1f}")
        self._since, self._steps = time.monotonic(), 0
