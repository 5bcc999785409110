"""Settings that PaDiM and PatchCore share."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sanflow.config.experiment import EncoderExperiment, pair_of, sizes_of

Upsampling = Literal["bilinear", "nearest"]


class DistanceExperiment(EncoderExperiment):
    """A method that measures how far features are from those of normal images."""

    padding: Literal["reflect", "zeros"] = "zeros"
    """Padding of a ResNet's convolutions; `zeros`, as their authors use it."""
    crop: int | None = Field(None, ge=16)
    """Use only the central square of this many pixels of the input (the authors: 224 of 256). Outside it the map
    repeats its border, and the metrics still count the whole image."""
    smoothing: float = Field(4.0, ge=0)
    """Standard deviation of the Gaussian that smooths the map, in pixels of the input whatever its size; 0 for none."""
    upsampling: Upsampling = "bilinear"
    """How the grid of distances is enlarged to the input's size."""

    resnet_taps: ClassVar[tuple[str, ...]]

    @model_validator(mode="before")
    @classmethod
    def _take_taps_of_the_paper(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("taps") is not None or "scales" in values:
            return values
        architecture = str(values.get("encoder", "")).partition("/")[2]
        if architecture.startswith(("resnet", "wide_resnet", "resnext")):
            return {**values, "taps": list(cls.resnet_taps)}
        return values

    @model_validator(mode="after")
    def _check_crop(self) -> "DistanceExperiment":
        smallest = min(min(pair_of(size)) for size in sizes_of(self.input_size))
        if self.crop is not None and self.crop > smallest:
            raise ValueError(f"expected `crop` of at most {smallest} pixels, as `input_size`, but got {self.crop}")
        return self

    def encoded_size_for(self, dataset: str, category: str) -> tuple[int, int]:
        """Return the size of the crop, if there is one."""
        return super().encoded_size_for(dataset, category) if self.crop is None else (self.crop, self.crop)
