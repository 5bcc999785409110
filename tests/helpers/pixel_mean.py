"""A method of another package, whole: how far a pixel is from the mean of the training images."""

from typing import Literal

import torch

from sanflow.config.experiment import DetectorExperiment
from sanflow.data.images import load_images
from sanflow.device import choose_device, device_name
from sanflow.methods.cost import Cost
from sanflow.methods.fit import FitFiles
from sanflow.methods.method import DetectorMethod, Output


class PixelMeanExperiment(DetectorExperiment):
    """The distance to the mean image."""

    method: Literal["pixel-mean"]
    power: float = 1.0
    """Of the distance."""


PIXEL_MEAN = DetectorMethod("pixel-mean", PixelMeanExperiment, "pixel_mean:fit", "pixel_mean:PixelMean")


def fit(job):
    """Compute the mean image."""
    device = choose_device(job.device)
    cost = Cost(device)
    files = FitFiles(job, device_name(device), "fp32")
    with cost.phase("steps"):
        images_NHW3 = load_images(job.training, "train", job.input_size, cache=job.cache)
        state = {"mean": torch.from_numpy(images_NHW3.mean(0)).float()}
    files.write_checkpoint(job.outputs.checkpoint, state, constants={})
    files.write_record(cost, {"images": len(images_NHW3)})


class PixelMean:
    """The mean image as a detector; an image's score is the sum over its map."""

    kind = "anomaly_map"
    precision = "fp32"

    def __init__(self, checkpoint, device):
        self.device = device_name(choose_device(device))
        self.input_size = checkpoint.input_size
        self.constants = {}
        self.power = checkpoint.experiment.power
        self.mean_HW3 = checkpoint.state["mean"]

    def __call__(self, images_BHW3, *, extras=False):
        map_BHW = (images_BHW3.float() - self.mean_HW3).abs().mean(-1) ** self.power
        return Output({"map": map_BHW}, image_scores=map_BHW.sum((1, 2)))
