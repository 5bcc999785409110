"""Keep the checkpoints of some epochs until the training is done.

They are in the state's folder while the training runs, because Snakemake empties the output folder before each attempt.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sanflow.errors import IntegrityError
from sanflow.files import atomic_path


@dataclass(frozen=True)
class KeptEpochs:
    """The kept epochs of one training.

    Arguments:
        state: Folder of the training's states.
        target: Folder that holds them in the end; None if they are needed in the training only.
        key: Short name of the training, for file names.
        epochs: The epochs, counted from 1.
    """

    state: Path
    target: Path | None
    key: str
    epochs: Sequence[int]

    def wants(self, epoch: int) -> bool:
        """Return whether an epoch is kept."""
        return epoch in self.epochs

    def file(self, epoch: int) -> Path:
        """Return the path of an epoch's checkpoint during the training."""
        return self.state / "kept" / f"{self.key}.epoch{epoch:02d}.pt"

    def publish(self, last: int) -> None:
        """Put all kept epochs up to the last one that was trained into the target folder.

        Raises:
            IntegrityError: If one was deleted meanwhile.
        """
        if self.target is not None:
            for epoch in self.epochs:
                if epoch <= last:
                    self.put(epoch, self.target / f"epoch{epoch:02d}.pt")

    def put(self, epoch: int, target: Path) -> None:
        """Put one kept epoch at a path.

        Raises:
            IntegrityError: If it was deleted meanwhile.
        """
        source = self.file(epoch)
        if not source.exists():
            raise IntegrityError(
                f"Expected epoch {epoch}, which `keep_every` keeps, at {source}, but it was deleted. Delete the "
                f"folder {self.state} and train again."
            )
        with atomic_path(target) as temporary:
            try:
                os.link(source, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source, temporary)
