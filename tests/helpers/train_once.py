"""A training in a process of its own, to be killed: `python -m helpers.train_once <folder> <seconds between saves>`.

Prints a line per step, and may wait after each, so that the killer can choose its moment.
"""

import os
import sys
import time
from pathlib import Path

import torch

from helpers.small_training import SmallTraining, small_experiment
from sanflow.data.index import read_index
from sanflow.tracking import NullTracker
from sanflow.training.loop import train

if __name__ == "__main__":
    folder, save_every = Path(sys.argv[1]), float(sys.argv[2])
    pause = float(os.environ.get("SANFLOW_TEST_PAUSE", "0"))
    torch.set_num_threads(1)

    def on_step(step: int) -> None:
        print(step, flush=True)
        time.sleep(pause)

    train(
        small_experiment(epochs=int(os.environ.get("SANFLOW_TEST_EPOCHS", "4"))),
        read_index(folder.parent / "index.csv"),
        SmallTraining.outputs_in(folder),
        NullTracker(),
        name="small",
        seed=0,
        device="cpu",
        save_every_seconds=save_every,
        on_step=on_step,
    )
