"""PaDiM: fit the Gaussians to a stream of training images, and score images with them.

Shapes: B images, P positions of the finest grid, D dimensions, h x w cells of that grid.
"""

import torch
from torch import Tensor

from sanflow.anomaly_maps.scores_file import Kind
from sanflow.cores import on_own_core
from sanflow.data.images import load_images
from sanflow.device import choose_device, device_name, placed, repeatable, unit_images
from sanflow.methods.checkpoints import Checkpoint
from sanflow.methods.cost import Cost
from sanflow.methods.distance_maps import DistanceMaps
from sanflow.methods.fit import FitFiles, encoder_of
from sanflow.methods.method import FitJob, Output
from sanflow.methods.padim.features import choose_dimensions, chosen_by_tap, features_at_positions, finest_grid
from sanflow.methods.padim.gaussians import GaussianStatistics, mahalanobis, unpack


def fit(job: FitJob) -> None:
    """Fit the Gaussians; the outputs are written once all is done, so that a killed fit starts again.

    Raises:
        ConfigError: If more dimensions are asked for than the taps have channels.
        DataError: If there are fewer than two training images, or their features are not finite.
    """
    device = choose_device(job.device)
    cost = Cost(device)
    files = FitFiles(job, device_name(device), "fp32")
    with repeatable(), torch.inference_mode():
        with cost.phase("setup"):
            encoder = placed(encoder_of(job.experiment), device)
            chosen_D = choose_dimensions(encoder.channels, job.experiment.dimensions, job.seed).to(device)
            chosen = chosen_by_tap(chosen_D, encoder.channels)
            distances = DistanceMaps(encoder, job.experiment, job.input_size)
            rows, columns = finest_grid(encoder.map_sizes(*distances.seen_size))
            images_NHW3 = load_images(job.training, "train", job.input_size, cache=job.cache)
            files.introduce({"dimensions": len(chosen_D), "positions": rows * columns})
            statistics = GaussianStatistics(rows * columns, len(chosen_D), device)
        with cost.phase("steps"), on_own_core(device):
            for features in distances.features_of_all(images_NHW3, device):
                statistics.update(features_at_positions(features, chosen))
        with cost.phase("factors"), on_own_core(device):
            state = {"chosen": chosen_D, "mean": statistics.mean_PD.float(), "factors": statistics.whitening()}
        with cost.phase("saving"):
            files.write_checkpoint(
                job.outputs.checkpoint, state, constants={}, encoder=encoder, facts={"grid": [rows, columns]}
            )
    facts = {"images": statistics.count, "parameters": state["mean"].numel() + state["factors"].numel()}
    files.write_record(cost, {**facts, "dimensions": len(chosen_D), "encoder": encoder.identity})


class PadimDetector:
    """The Gaussians with their encoder.

    Arguments:
        checkpoint: Of a fit.
        device: Its device.
    """

    kind: Kind = "anomaly_map"
    precision = "fp32"

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.torch_device, self.device = device, device_name(device)
        self.input_size = checkpoint.input_size
        self.constants: dict[str, float] = {}
        self.grid = tuple(checkpoint.facts["grid"])
        chosen_D = checkpoint.state["chosen"].to(device)
        self.mean_PD = checkpoint.state["mean"].to(device)
        self.factors_PDD = unpack(checkpoint.state["factors"].to(device), len(chosen_D))
        encoder = placed(checkpoint.build_encoder(), device)
        self.chosen = chosen_by_tap(chosen_D, encoder.channels)
        self.distances = DistanceMaps(encoder, checkpoint.experiment, checkpoint.input_size)

    def __call__(self, images_BHW3: Tensor, *, extras: bool = False) -> Output:
        """Score a batch of uint8 images; see `Detector`."""
        with on_own_core(self.torch_device), torch.inference_mode():
            return self.score_floats(unit_images(images_BHW3, self.torch_device))

    def score_floats(self, images_B3HW: Tensor) -> Output:
        """Score images in [0, 1] on the device; see `ExportableDetector`."""
        return Output({"map": self.head(self.distances.features(images_B3HW))})

    def head(self, features: list[Tensor]) -> Tensor:
        """Turn the features of a batch into its anomaly maps."""
        features_PBD = features_at_positions(features, self.chosen)
        distances_PB = mahalanobis(features_PBD, self.mean_PD, self.factors_PDD)
        return self.distances.maps(distances_PB.T.reshape(-1, *self.grid))


def load(checkpoint: Checkpoint, device: str) -> PadimDetector:
    """Build the detector of a checkpoint."""
    return PadimDetector(checkpoint, choose_device(device))
