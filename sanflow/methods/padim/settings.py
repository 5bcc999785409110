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


PADIM = DetectorMethod(
    "padim", PadimExperiment, "sanflow.methods.padim.detector:fit", "sanflow.methods.padim.detector:load"
)
