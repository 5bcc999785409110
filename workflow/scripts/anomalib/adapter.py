"""Train an image model of anomalib on a folder and write its raw anomaly maps of another folder.

    python adapter.py --model Patchcore --arguments '{"coreset_sampling_ratio": 0.1}' --train DIR --test DIR \
        --maps DIR --seed 0 --device cpu --height 256 --width 256

Runs in an environment of its own (requirements.txt) as a `method: command` of a benchmark. The maps are neither
normalised nor thresholded; no test image is seen before the training has ended. A few models, such as Cflow, scale the
maps of a batch together; `--test-batch-size 32` is anomalib's own.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from anomalib import models
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning.pytorch import seed_everything
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True, help="class of anomalib.models, such as Patchcore")
    parser.add_argument("--arguments", type=json.loads, default={}, help="of the class, as JSON")
    parser.add_argument(
        "--trainer", type=json.loads, default={}, help="of Lightning's Trainer, as JSON: max_epochs, ..."
    )
    parser.add_argument("--batch-size", type=int, default=32, help="of the training")
    parser.add_argument("--test-batch-size", type=int, default=32, help="of the scoring")
    parser.add_argument(
        "--validation-share",
        type=float,
        default=0.0,
        help="of the training images, held out for models that need validation images (EfficientAd)",
    )
    parser.add_argument("--workers", type=int, default=4, help="processes that read images")
    for folder in ("train", "test", "maps"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    return parser.parse_args()


def build(name: str, arguments: dict, size: tuple[int, int]) -> AnomalibModule:
    """Build a model that resizes its images to `size` and gives raw maps."""
    model = getattr(models, name, None)
    if not (isinstance(model, type) and issubclass(model, AnomalibModule)):
        known = sorted(
            key for key, one in vars(models).items() if isinstance(one, type) and AnomalibModule in one.__mro__[1:]
        )
        sys.exit(f"Expected a model of anomalib among {', '.join(known)}, but got {name!r}.")
    return model(
        pre_processor=model.configure_pre_processor(size),
        post_processor=False,
        evaluator=False,
        visualizer=False,
        **arguments,
    )


def main() -> None:
    """Train, then write one .npy per test image."""
    chosen = options()
    seed_everything(chosen.seed, workers=True)
    size = (chosen.height, chosen.width)
    model = build(chosen.model, chosen.arguments, size)
    data = Folder(
        name="parts",
        normal_dir=chosen.train.resolve(),
        train_batch_size=chosen.batch_size,
        eval_batch_size=1,
        num_workers=chosen.workers,
        test_split_mode="none",
        val_split_mode="from_train" if chosen.validation_share else "none",
        val_split_ratio=chosen.validation_share or None,
        seed=chosen.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            accelerator="gpu" if chosen.device == "cuda" else "cpu",
            devices=1,
            default_root_dir=folder,
            **({} if chosen.validation_share else {"limit_val_batches": 0}),
            **chosen.trainer,
        )
        engine.fit(model, datamodule=data)
        # Resized as the model would do it, but each alone: images of a batch may differ in size.
        images = PredictDataset(chosen.test, transform=Resize(size, antialias=True))
        loader = DataLoader(images, chosen.test_batch_size, collate_fn=images.collate_fn, num_workers=chosen.workers)
        for batch in engine.predict(model, dataloaders=loader, return_predictions=True) or []:
            if batch.anomaly_map is None:
                sys.exit(f"Expected anomaly maps, but {chosen.model} gives none.")
            for path, map_HW in zip(batch.image_path, batch.anomaly_map.float().cpu(), strict=True):
                map_11HW = map_HW.reshape(1, 1, *map_HW.shape[-2:])
                if map_11HW.shape[-2:] != size:
                    map_11HW = interpolate(map_11HW, size, mode="bilinear", align_corners=False)
                np.save(chosen.maps / f"{Path(path).stem}.npy", map_11HW[0, 0].numpy().astype(np.float32))


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    main()
