"""Settings of PaDiM (Defard, Setkov, Loesch and Audigier, ICPR 2020)."""

from typing import ClassVar, Literal

from pydantic import Field

from sanflow.methods.distance_settings import DistanceExperiment
from sanflow.methods.method import DetectorMethod


class PadimExperiment(DistanceExperiment):
    """PaDiM: a Gaussian for every position. Unset `taps` are a ResNet's layer1, layer2 and layer3."""

    method: Literal["padim"]
    dimensions: int | None = Field(None, ge=1)
    """Channels that are chosen at random, with the seed, of all taps; unset: 100 for ResNet-18 and 550 for
    WideResNet-50-2 as in the paper, else the smaller of 100 and all."""

    resnet_taps: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3")

    def fit_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate 6 P D² bytes for the Gaussians (docs/methods.md) on a grid of stride 4, and the encoder's part."""
        height, width = self.encoded_size_for(dataset, category)
        dimensions = self.dimensions or (550 if "wide_resnet50_2" in self.encoder else 100)
        gaussians = 6 * height * width / 4**2 * dimensions**2 / 1e6
        return round(gaussians) + super().score_memory_mb(dataset, category)

    def score_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate the same: while a checkpoint is read, packed and whole factors are in memory."""
        return self.fit_memory_mb(dataset, category)


PADIM = DetectorMethod(
    "padim", PadimExperiment, "sanflow.methods.padim.detector:fit", "sanflow.methods.padim.detector:load"
)
