"""A training that ends in a second: a small model on a data set of random textures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sanflow.data.index import Index, build_index, write_index
from sanflow.methods.flow.training.loop import fit
from sanflow.methods.method import FitJob, Outputs
from sanflow.methods.registry import methods
from sanflow.tracking import Tracker

SIZE, N_TRAIN, N_TEST = 16, 12, 3
SQUARE = slice(SIZE // 4, 5 * SIZE // 8)

SETTINGS: dict[str, Any] = {
    "method": "sanflow",
    "encoder": "timm/test_efficientnet.r160_in1k",  # timm's smallest
    "weights": "random",
    "taps": ["blocks.1", "blocks.2", "blocks.3"],
    "input_size": SIZE,
    "epochs": 4,
    "passes_per_epoch": 1,
    "warmup_epochs": 0.5,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "position_channels": 8,
    "coupling_blocks": 1,
    "update": "joint",
}


def small_experiment(**changes: Any) -> Any:
    """Return a small experiment, with changes."""
    settings = SETTINGS | changes
    if settings["method"] == "cflow":
        settings.pop("update")
        settings = {"locations_per_step": 16, **settings}
    return methods()[settings["method"]].settings.model_validate(settings)


def small_index(folder: Path) -> Index:
    """Grey noise, darker in a square where defective; the index is written to `folder`/index.csv."""
    random = np.random.RandomState(0)
    for kind, count in (("train/good", N_TRAIN), ("test/good", N_TEST), ("test/dark", N_TEST)):
        place = folder / "data" / "noise" / kind
        place.mkdir(parents=True)
        for i in range(count):
            pixels = random.randint(100, 156, size=(SIZE, SIZE, 3)).astype(np.uint8)
            if kind == "test/dark":
                pixels[SQUARE, SQUARE] //= 4
            Image.fromarray(pixels).save(place / f"{i:03d}.png")
    masks = folder / "data" / "noise" / "ground_truth" / "dark"
    masks.mkdir(parents=True)
    for i in range(N_TEST):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[SQUARE, SQUARE] = 255
        Image.fromarray(mask).save(masks / f"{i:03d}_mask.png")
    index = build_index("noisy", "noise", folder / "data", kind="folder")
    write_index(index, folder / "index.csv")
    return index


class SmallTraining:
    """Trains small experiments on one small index; each call has a folder of its own unless told.

    Attributes:
        outputs: Of the last call.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        self.index = small_index(folder)
        self.calls = 0
        self.outputs = self.outputs_in(folder)

    @staticmethod
    def outputs_in(folder: Path) -> Outputs:
        """The usual names in a folder."""
        return Outputs(folder / "checkpoint.pt", folder / "train.json", folder / "state", folder / "kept")

    def __call__(
        self,
        *,
        folder: Path | None = None,
        seed: int = 0,
        device: str = "cpu",
        save_every_seconds: float = 300.0,
        on_step: Callable[[int], None] | None = None,
        tracker: Tracker | None = None,
        **changes: Any,
    ) -> Outputs:
        self.calls += 1
        self.outputs = self.outputs_in(folder or self.folder / f"run{self.calls}")
        fit(
            FitJob(
                small_experiment(**changes),
                "small",
                self.index,
                seed,
                self.outputs,
                tracker or Tracker(),
                device=device,
                save_every_seconds=save_every_seconds,
                on_step=on_step,
            )
        )
        return self.outputs
