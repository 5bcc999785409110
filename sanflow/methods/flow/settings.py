"""Settings of the methods that put normalizing flows on encoder features: SANFlow, CFLOW-AD, the matched baseline."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sanflow.config.experiment import SCORED_AT_ONCE, EncoderExperiment, Size, Sizes
from sanflow.config.names import ExpandedPath
from sanflow.methods.method import DetectorMethod

Base = Literal["predicted", "fixed"]

# Input sizes of CFLOW-AD's authors for MVTec AD (Gudovskiy et al., WACV 2022).
CFLOW_INPUT_SIZE: dict[str, Size] = {
    **dict.fromkeys(["bottle", "carpet", "grid", "leather", "screw", "tile", "toothbrush", "wood", "zipper"], 512),
    "transistor": 128,
}


class FlowExperiment(EncoderExperiment):
    """The flows: one for each scale of the encoder."""

    position_channels: int = Field(512, ge=4, multiple_of=4)
    """Channels of the position code, the flow's condition."""
    coupling_blocks: int = Field(8, ge=1)
    """Coupling blocks per flow."""
    permutation: Literal["index", "rotation"] = "index"
    """What is between coupling blocks: a permutation of channels or a fixed random rotation."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """`bf16` or `tf32`: matrix products and convolutions; likelihoods and log-determinants stay in fp32.
    Computed in fp32, with a message, where the device has no such instructions."""


class TrainedFlowExperiment(FlowExperiment):
    """The training of the flows."""

    normalize_features: bool = False
    """Divide each scale by its standard deviation on training images."""
    epochs: int = Field(20, ge=1)
    """Epochs of the schedule; see `choose_epoch` for the one that is reported."""
    passes_per_epoch: int = Field(4, ge=1)
    """Passes over the training images in one epoch."""
    warmup_epochs: float = Field(2.0, ge=0)
    """Epochs of linear warm-up; at most half of `epochs`."""
    batch_size: int = Field(4, ge=1)
    """Images per step; the last incomplete batch is dropped."""
    learning_rate: float = Field(5e-4, gt=0)
    """Adam's learning rate after the warm-up."""
    final_learning_rate_factor: float = Field(1e-3, gt=0, le=1)
    """The cosine ends at `learning_rate` times this."""
    gradient_clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient; unset: not clipped."""
    rotation_degrees: float = Field(0.0, ge=0, le=180)
    """Training images are rotated by up to this angle."""
    keep_every: int | None = Field(None, ge=1)
    """Also keep and score each k-th epoch, for the column *oracle epoch*."""
    choose_epoch: Literal["last", "validation"] = "last"
    """Which epoch is reported. `last`: the paper's protocol. `validation` (experimental): the one that finds painted
    defects best, of the epochs that `keep_every` keeps and the last. They are painted on half of the held-out parts
    (`calibration_fraction`); the other half calibrates."""
    patience: int | None = Field(None, ge=1)
    """Stop when so many kept epochs in a row are no better than the best one before them; needs `choose_epoch:
    validation`. `epochs` is then the longest training, and only the chosen epoch is scored on the test images."""

    @model_validator(mode="after")
    def _check_choice(self) -> "TrainedFlowExperiment":
        if self.chooses_epoch and self.keep_every is None:
            raise ValueError(
                "expected `keep_every` with `choose_epoch: validation`: it says which epochs may be chosen"
            )
        if self.chooses_epoch and self.calibration_fraction == 0:
            raise ValueError(
                "expected `calibration_fraction` above 0 with `choose_epoch: validation`: half of the held-out parts "
                "choose the epoch"
            )
        if self.patience is not None and not self.chooses_epoch:
            raise ValueError("expected `choose_epoch: validation` with `patience`, but got `choose_epoch: last`")
        return self

    @model_validator(mode="after")
    def _check_warmup(self) -> "TrainedFlowExperiment":
        if self.warmup_epochs > self.epochs / 2:
            raise ValueError(
                f"expected `warmup_epochs` to be at most half of `epochs` ({self.epochs}), "
                f"but got {self.warmup_epochs}: the warm-up would be most of the schedule"
            )
        return self

    def fit_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate what a step of SANFlow on WRN-50-2 needs; docs/performance.md has the measurements."""
        height, width = self.input_size_for(dataset, category)
        return 4800 + round(470 * self.batch_size * height * width / 256**2)

    @property
    def chooses_epoch(self) -> bool:
        """Whether half of the held-out parts chooses the epoch."""
        return self.choose_epoch == "validation"

    @property
    def candidate_epochs(self) -> list[int]:
        """The epochs that `keep_every` keeps; where one of them is chosen, the last too."""
        if self.keep_every is None:
            return []
        every = list(range(self.keep_every, self.epochs + 1, self.keep_every))
        return sorted({*every, self.epochs}) if self.chooses_epoch else every

    @property
    def kept_epochs(self) -> list[int]:
        """The epochs that are scored beside the reported one: none with `patience`, which may stop before them."""
        return [] if self.patience is not None else self.candidate_epochs


class SanflowExperiment(TrainedFlowExperiment):
    """SANFlow (Kim, Baik, Kim, NeurIPS 2023)."""

    method: Literal["sanflow"]
    update: Literal["per_scale", "joint"] = "per_scale"
    """`per_scale`: a step per scale and batch, as released. `joint`: one step for the sum of the scales."""
    base: Base = "predicted"
    """`predicted`: the statistics network's variance per location. `fixed`: N(0, I)."""
    synthetic_anomalies: bool = True
    """Show synthetic anomalies in training."""
    abnormal_mean: float = 1.0
    """Mean of the base for abnormal locations, in every channel."""

    locations_per_step: ClassVar[int | None] = None


class CflowMatchedExperiment(SanflowExperiment):
    """SANFlow with the base N(0, I) and without synthetic anomalies: the matched baseline."""

    method: Literal["cflow-matched"]  # type: ignore[assignment]
    base: Base = "fixed"
    """`predicted`: the statistics network's variance per location. `fixed`: N(0, I)."""
    synthetic_anomalies: bool = False
    """Show synthetic anomalies in training."""


class CflowExperiment(TrainedFlowExperiment):
    """CFLOW-AD as its authors released it (Gudovskiy et al., WACV 2022)."""

    method: Literal["cflow"]
    input_size: Sizes | None = None  # type: ignore[assignment]
    """Pixels: one number, `[height, width]`, or `{default: ..., <category>: ...}`; unset: the authors' sizes for
    MVTec AD (128, 256 or 512 by category), 256 for other data."""
    position_channels: int = Field(128, ge=4, multiple_of=4)
    """Channels of the position code, the flow's condition."""
    permutation: Literal["index", "rotation"] = "rotation"
    """What is between coupling blocks: a permutation of channels or a fixed random rotation."""
    locations_per_step: int = Field(256, ge=1)
    """Locations of one step: chunks of shuffled locations, the remainder is dropped."""
    learning_rate: float = Field(2e-4, gt=0)
    """Adam's learning rate after the warm-up."""
    batch_size: int = Field(32, ge=1)
    """Images whose locations are shuffled together; the last incomplete batch is dropped."""
    epochs: int = Field(25, ge=1)
    """Epochs of the schedule; see `choose_epoch` for the one that is reported."""
    passes_per_epoch: int = Field(8, ge=1)
    """Passes over the training images in one epoch."""
    rotation_degrees: float = Field(5.0, ge=0, le=180)
    """Training images are rotated by up to this angle."""

    def fit_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate what the encoder's pass over a batch needs, with the flows and Adam's moments; chunks are small."""
        return 3200 + self.encoding_memory_mb(dataset, category, self.batch_size)

    base: ClassVar[Base] = "fixed"
    abnormal_mean: ClassVar[float] = 1.0
    update: ClassVar[Literal["per_scale", "joint"]] = "per_scale"
    synthetic_anomalies: ClassVar[bool] = False

    def input_size_for(self, dataset: str, category: str) -> tuple[int, int]:
        """Return the size that is set, else the authors' for MVTec AD."""
        if self.input_size is not None:
            return super().input_size_for(dataset, category)
        size = CFLOW_INPUT_SIZE.get(category, 256) if dataset == "mvtec_ad" else 256
        assert isinstance(size, int)
        return size, size


class OfficialExperiment(FlowExperiment):
    """SANFlow with the authors' own weights, imported instead of trained."""

    method: Literal["official"]
    official_weights: ExpandedPath
    """Path of the authors' files, with `{category}` in it."""
    base: Base = "predicted"
    """`predicted`: the file holds a statistics network. `fixed`: N(0, I)."""

    abnormal_mean: ClassVar[float] = 1.0

    @model_validator(mode="after")
    def _check_weights(self) -> "OfficialExperiment":
        if "{category}" not in self.official_weights:
            raise ValueError(
                f"expected `official_weights` as a path with {{category}} in it, but got {self.official_weights!r}"
            )
        return self

    def fit_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate what reading the authors' file and scoring the training images for the constants needs."""
        return 3200 + self.encoding_memory_mb(dataset, category, SCORED_AT_ONCE)

    def files_for(self, dataset: str, category: str) -> dict[str, str]:
        """Return the authors' file for a category."""
        # Not str.format: a path may hold other braces.
        return {"official_weights": self.official_weights.replace("{category}", category)}


TRAINING = "sanflow.methods.flow.training.loop:fit"
DETECTOR = "sanflow.methods.flow.detector:load"
SANFLOW = DetectorMethod("sanflow", SanflowExperiment, TRAINING, DETECTOR)
CFLOW_MATCHED = DetectorMethod("cflow-matched", CflowMatchedExperiment, TRAINING, DETECTOR)
CFLOW = DetectorMethod("cflow", CflowExperiment, TRAINING, DETECTOR)
OFFICIAL = DetectorMethod(
    "official", OfficialExperiment, "sanflow.methods.flow.authors_weights:fit", DETECTOR, fit_needs_gpu=False
)
