"""Settings of PatchCore (Roth, Pemula, Zepeda, Schoelkopf, Brox and Gehler, CVPR 2022)."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from sanflow.methods.distance_settings import DistanceExperiment
from sanflow.methods.method import DetectorMethod


class PatchcoreExperiment(DistanceExperiment):
    """PatchCore: distances to the nearest normal patch. Unset `taps` are a ResNet's layer2 and layer3."""

    method: Literal["patchcore"]
    coreset_fraction: float = Field(0.1, gt=0, le=1)
    """How many of the training patches the memory bank keeps."""
    sampling: Literal["greedy", "random"] = "greedy"
    """How they are chosen: by greedy k-center, or at random."""
    projected_dimensions: int = Field(128, ge=1)
    """Dimensions of the random projection in which greedy k-center measures distances."""
    patch_size: int = Field(3, ge=1)
    """A patch is the mean over this many by this many cells of a tap; odd."""
    pooled_dimensions: int | None = Field(None, ge=1)
    """Average neighbouring channels to this many dimensions (the authors' code: 1024); unset: keep all channels."""
    squared_distances: bool = False
    """Smooth squared distances, as the authors' code does."""
    image_score: Literal["reweighted", "max"] = "reweighted"
    """`max`: the largest distance of a patch. `reweighted`: the same, less where normal patches are rare too
    (equation 7 of the paper)."""
    neighbours: int = Field(9, ge=2)
    """Patches of the memory bank around the nearest one that `reweighted` uses."""

    resnet_taps: ClassVar[tuple[str, ...]] = ("layer2", "layer3")

    def fit_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate the patches of a thousand training images, with WRN-50-2's channels, and the encoder's part."""
        return round(self._patches_mb(dataset, category)) + super().score_memory_mb(dataset, category)

    def score_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate the memory bank, with a copy of it for the search, and the encoder's part."""
        bank = 2 * self.coreset_fraction * self._patches_mb(dataset, category)
        return round(bank) + super().score_memory_mb(dataset, category)

    def _patches_mb(self, dataset: str, category: str) -> float:
        height, width = self.encoded_size_for(dataset, category)
        return 1.5 * 1000 * height * width / 8**2 * 1536 * 4 / 1e6

    @field_validator("patch_size")
    @classmethod
    def _check_patch_size(cls, patch_size: int) -> int:
        if patch_size % 2 == 0:
            raise ValueError(f"expected an odd `patch_size`, so that a patch has a centre, but got {patch_size}")
        return patch_size


PATCHCORE = DetectorMethod(
    "patchcore",
    PatchcoreExperiment,
    "sanflow.methods.patchcore.detector:fit",
    "sanflow.methods.patchcore.detector:load",
)
