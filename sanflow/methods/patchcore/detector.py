"""PatchCore: fill the memory bank with patches of the training images, and score images by it.

Shapes: B images, C channels of a tap, h x w cells of its grid, P = h w patches of an image, N patches of all training
images, M of them in the memory bank, D dimensions of a patch.
"""

import logging
import time

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from sanflow.anomaly_maps.scores_file import Kind
from sanflow.cores import on_own_core
from sanflow.data.images import load_images
from sanflow.device import choose_device, device_name, placed, repeatable, unit_images
from sanflow.errors import DataError
from sanflow.methods.checkpoints import Checkpoint
from sanflow.methods.cost import Cost
from sanflow.methods.distance_maps import DistanceMaps
from sanflow.methods.fit import FitFiles, encoder_of
from sanflow.methods.method import FitJob, Output
from sanflow.methods.patchcore.coreset import greedy_k_center, random_projection
from sanflow.methods.patchcore.memory_bank import MemoryBank, patch_features
from sanflow.methods.patchcore.settings import PatchcoreExperiment

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_MESSAGES = 30.0


def fit(job: FitJob) -> None:
    """Fill the memory bank; the outputs are written once all is done, so that a killed fit starts again.

    Raises:
        DataError: If the memory bank would have fewer patches than `neighbours`, or the features are not finite.
    """
    device = choose_device(job.device)
    cost = Cost(device)
    files = FitFiles(job, device_name(device), "fp32")
    with repeatable(), torch.inference_mode():
        with cost.phase("setup"):
            encoder = placed(encoder_of(job.experiment), device)
            distances = DistanceMaps(encoder, job.experiment, job.input_size)
            images_NHW3 = load_images(job.training, "train", job.input_size, cache=job.cache)
            files.introduce({})
        with cost.phase("steps"), on_own_core(device):
            patches_ND = training_patches(distances, images_NHW3, device)
        count = max(1, round(job.experiment.coreset_fraction * len(patches_ND)))
        if job.experiment.image_score == "reweighted" and count < job.experiment.neighbours:
            raise DataError(
                f"Expected a memory bank of at least {job.experiment.neighbours} patches, because `neighbours` needs "
                f"so many, but {len(images_NHW3)} training images give {count}. Add normal images, raise "
                "`coreset_fraction` or lower `neighbours`."
            )
        with cost.phase("coreset"), on_own_core(device):
            picks_M = choose_patches(patches_ND, count, job.experiment, job.seed, device)
        with cost.phase("saving"):
            bank_MD = patches_ND[picks_M]
            files.write_checkpoint(job.outputs.checkpoint, {"bank": bank_MD}, constants={}, encoder=encoder)
    facts = {"images": len(images_NHW3), "patches": len(patches_ND), "kept_patches": count}
    files.write_record(cost, {**facts, "parameters": bank_MD.numel(), "encoder": encoder.identity})


def training_patches(distances: DistanceMaps, images_NHW3: ndarray, device: torch.device) -> Tensor:
    """Describe the patches of all training images.

    Returns:
        patches_ND float32 in host memory: N D 4 bytes.

    Raises:
        DataError: If they are not finite.
    """
    experiment: PatchcoreExperiment = distances.experiment  # type: ignore[assignment]
    patches_ND = torch.empty(0)
    filled = 0
    for features in distances.features_of_all(images_NHW3, device):
        patches_BDhw = patch_features(features, experiment.patch_size, experiment.pooled_dimensions)
        rows_ND = patches_BDhw.permute(0, 2, 3, 1).flatten(0, 2)
        if filled == 0:
            per_image = len(rows_ND) // len(patches_BDhw)
            patches_ND = torch.empty(len(images_NHW3) * per_image, rows_ND.shape[1])
        patches_ND[filled : filled + len(rows_ND)] = rows_ND.cpu()
        filled += len(rows_ND)
    if not np.isfinite(patches_ND.numpy()).all():
        raise DataError(
            "Expected finite features, but got NaN or infinity. Check the encoder's weights and the training images."
        )
    return patches_ND


def choose_patches(
    patches_ND: Tensor, count: int, experiment: PatchcoreExperiment, seed: int, device: torch.device
) -> Tensor:
    """Choose the patches of the memory bank.

    Arguments:
        patches_ND: In host memory.
        count: How many to choose.
        experiment: How. Patches of no more than its `projected_dimensions` are not projected.
        seed: Of the projection and of the first patch, or of all patches if they are chosen at random.
        device: Where the choice is computed.

    Returns:
        (M,) int64 indices.
    """
    random = np.random.RandomState(seed % 2**32)
    if experiment.sampling == "random":
        return torch.from_numpy(random.choice(len(patches_ND), count, replace=False))
    channels, dimensions = patches_ND.shape[1], experiment.projected_dimensions
    projected_ND = patches_ND
    if dimensions < channels:
        projected_ND = patches_ND @ random_projection(channels, dimensions, seed)
    start = int(random.randint(len(patches_ND)))
    last = time.monotonic()

    def report(picked: int) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_MESSAGES:
            last = time.monotonic()
            logger.info("Chose %d of %d patches for the memory bank.", picked, count)

    return greedy_k_center(projected_ND.to(device), count, start, report)


class PatchcoreDetector:
    """The memory bank with its encoder.

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
        self.experiment: PatchcoreExperiment = checkpoint.experiment
        self.bank = MemoryBank(checkpoint.state["bank"].to(device))
        encoder = placed(checkpoint.build_encoder(), device)
        self.distances = DistanceMaps(encoder, checkpoint.experiment, checkpoint.input_size)

    def __call__(self, images_BHW3: Tensor, *, extras: bool = False) -> Output:
        """Score a batch of uint8 images; see `Detector`."""
        with on_own_core(self.torch_device), torch.inference_mode():
            return self.score_floats(unit_images(images_BHW3, self.torch_device))

    def score_floats(self, images_B3HW: Tensor) -> Output:
        """Score images in [0, 1] on the device; see `ExportableDetector`."""
        maps_BHW, scores_B = self.head(self.distances.features(images_B3HW))
        return Output({"map": maps_BHW}, image_scores=scores_B)

    def head(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Turn the features of a batch into its anomaly maps and image scores."""
        patches_BDhw = patch_features(features, self.experiment.patch_size, self.experiment.pooled_dimensions)
        batch, _, rows, columns = patches_BDhw.shape
        patches_BPD = patches_BDhw.flatten(2).transpose(1, 2)
        distances_BP = self.bank.distances_of_images(patches_BPD)
        largest_B, farthest_B = distances_BP.max(1)
        if self.experiment.image_score == "reweighted":
            farthest_BD = patches_BPD[torch.arange(batch, device=farthest_B.device), farthest_B]
            largest_B = self.bank.reweighted(farthest_BD, largest_B, self.experiment.neighbours)
        if self.experiment.squared_distances:
            distances_BP = distances_BP.square()
        return self.distances.maps(distances_BP.reshape(batch, rows, columns)), largest_B


def load(checkpoint: Checkpoint, device: str) -> PatchcoreDetector:
    """Build the detector of a checkpoint."""
    return PatchcoreDetector(checkpoint, choose_device(device))
