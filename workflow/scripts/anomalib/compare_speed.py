"""Time PaDiM and PatchCore beside anomalib's, on the same features and the same memory bank, and from images to maps.

    python compare_speed.py --images DIR --backbone resnet18 --input-size 256 --training-images 20 --threads 2

Runs in the environment of adapter.py, with sanflow installed in it too. DIR is a folder of images of one size. Encoders
have random weights, and PatchCore keeps all patches of the training images: 20 images of 256 pixels give 20,480. Prints
JSON: images per second of both, medians over windows in turn, and ratios, medians over pairs of neighbouring windows.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor, nn

from sanflow.data.images import load_images
from sanflow.data.index import Index, build_index
from sanflow.device import repeatable, unit_images
from sanflow.methods.checkpoints import load_checkpoint
from sanflow.methods.method import FitJob, Outputs
from sanflow.methods.registry import detector_method
from sanflow.tracking import Tracker

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TAPS = {"padim": ["layer1", "layer2", "layer3"], "patchcore": ["layer2", "layer3"]}


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--method", choices=TAPS, default="patchcore")
    parser.add_argument("--backbone", default="resnet18", help="resnet18 or wide_resnet50_2")
    parser.add_argument("--input-size", type=int, default=256)
    parser.add_argument("--training-images", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def index_of(images: Path, folder: Path, count: int) -> Index:
    """Make a data set of the first images."""
    place = folder / "data" / "parts" / "train" / "good"
    place.mkdir(parents=True)
    for path in sorted(images.iterdir())[:count]:
        (place / path.name).symlink_to(path.resolve())
    return build_index("speed", "parts", folder / "data", kind="folder", test_needed=False)


def ours(method: str, index: Index, folder: Path, backbone: str, size: int) -> Any:
    """Fit our detector."""
    keys: dict[str, Any] = {"method": method, "encoder": f"timm/{backbone}.tv_in1k", "weights": "random"}
    keys |= {"input_size": size, "taps": TAPS[method]}
    if method == "patchcore":
        keys |= {"coreset_fraction": 1.0, "sampling": "random"}
    experiment = detector_method(method).settings.model_validate(keys)
    outputs = Outputs(folder / "checkpoint.pt", folder / "train.json", folder / "state")
    detector_method(method).fit(FitJob(experiment, "speed", index, 0, outputs, Tracker(), device="cpu"))
    return detector_method(method).load(load_checkpoint(outputs.checkpoint), "cpu")


def theirs(method: str, detector: Any, backbone: str, images_N3HW: Tensor) -> nn.Module:
    """Build anomalib's model: with the same memory bank, or with Gaussians of the same images."""
    if method == "patchcore":
        model: Any = PatchcoreModel(TAPS[method], backbone, pre_trained=False).eval()
        model.memory_bank = detector.bank.patches_MD + detector.bank.mean_D
        return model
    model = PadimModel(backbone, TAPS[method], pre_trained=False).train()
    with torch.no_grad():
        for image_3HW in images_N3HW:
            model(image_3HW[None])
        model.fit()
    return model.eval()


def compare(calls: dict[str, Callable[[], Any]], images: int, windows: int) -> dict[str, float]:
    """Time two calls in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for window in range(windows + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if window:  # the first one fills caches
                seconds[name].append(time.perf_counter() - begin)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    found = {f"{name}_images_per_second": images / statistics.median(times) for name, times in seconds.items()}
    return {**found, "ratio": statistics.median(ratios)}


def main() -> None:
    """Fit both, time both."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        index = index_of(chosen.images, Path(folder), chosen.training_images)
        detector = ours(chosen.method, index, Path(folder), chosen.backbone, chosen.input_size)
        images = load_images(index, "train", (chosen.input_size, chosen.input_size))
    images_N3HW = unit_images(torch.from_numpy(images.copy()), torch.device("cpu"))
    mean_311, std_311 = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with repeatable(), torch.inference_mode():
        model = theirs(chosen.method, detector, chosen.backbone, (images_N3HW - mean_311) / std_311)
        # New images: mirrored ones are not in the memory bank.
        batch_B3HW = images_N3HW[: chosen.batch_size].flip(3).contiguous()
        calls = {
            "ours": lambda: detector.score_floats(batch_B3HW),
            "anomalib": lambda: model((batch_B3HW - mean_311) / std_311),
        }
        whole = compare(calls, len(batch_B3HW), chosen.windows)
        features = detector.distances.features(batch_B3HW)
        given = {tap: tap_BChw.contiguous() for tap, tap_BChw in zip(TAPS[chosen.method], features, strict=True)}
        del model.feature_extractor  # a module cannot be replaced by a function
        model.feature_extractor = lambda _: given
        calls = {"ours": lambda: detector.head(features), "anomalib": lambda: model(batch_B3HW)}
        head = compare(calls, len(batch_B3HW), chosen.windows)
        found = vars(chosen) | {"images": str(chosen.images), "from_images_to_maps": whole, "head": head}
        if chosen.method == "patchcore":
            scores_B, expected_B = calls["ours"]()[1], calls["anomalib"]().pred_score.flatten()
            found["bank"] = list(detector.bank.patches_MD.shape)
            found["largest_difference_of_scores"] = float(((scores_B - expected_B) / expected_B).abs().max())
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
