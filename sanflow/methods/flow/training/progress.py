"""How far the training is: loss, images per second and time left, on the terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

# Reading the loss waits for the device, so it is read this seldom.
READ_SECONDS = 2.0


class Progress:
    """A progress bar; silent where there is no terminal.

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
        self._batch_size = batch_size
        self._since, self._steps = time.monotonic(), 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, told: dict[str, Tensor]) -> None:
        """One step more, with its losses."""
        self._steps += 1
        if self._bar.disable:
            return
        now = time.monotonic()
        if now - self._since >= READ_SECONDS:
            loss = sum(float(value) for name, value in told.items() if name.endswith("_loss"))
            rate = self._steps * self._batch_size / (now - self._since)
            self._bar.update(self._task, loss=f"{loss:.4f}", rate=f"{rate:.1f}")
            self._since, self._steps = now, 0
        self._bar.advance(self._task)
