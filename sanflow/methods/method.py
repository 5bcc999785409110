"""The interface of a method: classes by which the pipeline uses it.

Three kinds exist. A `DetectorMethod` is fitted on normal images and scores any image. A `MapSource` gives finished
anomaly maps of the test images. A `MapMaker` makes such maps in one job. The workflow, the code digests, the checks
before a run and the tables use only these classes.

Importing this module does not import torch: the functions of a detector are given by name and imported at their call.

Shapes: B images, H x W pixels, h x w cells of a grid, N = B h w locations, C channels.
"""

import dataclasses
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sanflow.anomaly_maps.scores_file import Kind
from sanflow.config.experiment import Experiment
from sanflow.tracking import Tracker

if TYPE_CHECKING:
    from torch import Tensor

    # Both import pandas, which every command would wait for.
    from sanflow.data.images import ImageCache
    from sanflow.data.index import Index
    from sanflow.methods.checkpoints import Checkpoint


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of a benchmark.

    Arguments:
        name: The value of `method` in a benchmark file.
        settings: Its keys; a pydantic model whose `method` is `Literal[name]`.
    """

    name: str
    settings: type[Experiment]


@dataclasses.dataclass(frozen=True)
class DetectorMethod(Method):
    """A method that is fitted on normal images.

    Arguments:
        fit_function: `<module>:<function>` of `fit(job: FitJob) -> None`, which writes the job's outputs.
        load_function: `<module>:<function>` of `load(checkpoint: Checkpoint, device: str) -> Detector`.
        fit_needs_gpu: Whether the fit runs faster on a GPU than it takes to wait for one.
        scoring_needs_gpu: The same for scoring.
    """

    fit_function: str
    load_function: str
    fit_needs_gpu: bool = True
    scoring_needs_gpu: bool = True

    def fit(self, job: "FitJob") -> None:
        """Fit a detector and write its checkpoint and train.json."""
        pkgutil.resolve_name(self.fit_function)(job)

    def load(self, checkpoint: "Checkpoint", device: str) -> "Detector":
        """Build the detector of a checkpoint on a device, ready to score."""
        detector: Detector = pkgutil.resolve_name(self.load_function)(checkpoint, device)
        return detector

    @property
    def fit_modules(self) -> tuple[str, ...]:
        """The module at which the code of the fit begins; the digest of the code follows its imports."""
        return (self.fit_function.partition(":")[0],)

    @property
    def load_modules(self) -> tuple[str, ...]:
        """The module at which the code of the detector begins."""
        return (self.load_function.partition(":")[0],)


@dataclasses.dataclass(frozen=True)
class MapSource(Method):
    """A method whose anomaly maps are read from files: the experiment says where they are.

    Arguments:
        maps_key: The key of the experiment that names the folder of maps.
    """

    maps_key: str = "maps"


@dataclasses.dataclass(frozen=True)
class MapMaker(Method):
    """A method that makes the anomaly maps of the test images in one job and leaves no detector.

    Arguments:
        make_function: `<module>:<function>` of `make(job: MapJob) -> None`, which writes the job's outputs.
        make_needs_gpu: Whether the job runs faster on a GPU than it takes to wait for one.
    """

    make_function: str
    make_needs_gpu: bool = True

    def make(self, job: "MapJob") -> None:
        """Make the maps and write scores.npz and train.json."""
        pkgutil.resolve_name(self.make_function)(job)

    @property
    def make_modules(self) -> tuple[str, ...]:
        """The module at which the code of the job begins."""
        return (self.make_function.partition(":")[0],)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where a fit writes.

    Arguments:
        checkpoint: The fitted detector.
        record: train.json: history and cost.
        state: Folder of saved states from which a killed fit resumes; it is no output of a rule.
        kept: Folder of the checkpoints of kept epochs; None if there are none.
    """

    checkpoint: Path
    record: Path
    state: Path
    kept: Path | None = None


@dataclasses.dataclass(frozen=True)
class FitJob:
    """The inputs of one fit.

    Arguments:
        experiment: Settings; of the method's own model.
        name: Key of the experiment in the benchmark.
        index: The category; a fit opens only the images of `training`.
        seed: Of everything that is drawn.
        outputs: Where to write.
        tracker: Logs train.json as far as it is known; see `FitFiles`.
        cache: The image cache; None decodes into memory.
        device: `auto`, `cuda` or `cpu`.
        save_every_seconds: Shortest time between two saves of the state.
        on_step: Called after each step with the number of steps done; for tests.
    """

    experiment: Any
    name: str
    index: "Index"
    seed: int
    outputs: Outputs
    tracker: Tracker
    cache: "ImageCache | None" = None
    device: str = "auto"
    save_every_seconds: float = 300.0
    on_step: Callable[[int], None] | None = None

    @property
    def training(self) -> "Index":
        """The category with the training images that the fit may see; those held out for calibration are not in it."""
        return self._split()[0]

    @property
    def choosing(self) -> "Index | None":
        """The held-out good parts that choose the epoch, as test images; None if the last one is reported."""
        return self._halves()[0]

    @property
    def held_out(self) -> "Index | None":
        """The held-out good parts that calibrate, as test images; None if there are none."""
        return self._halves()[1]

    def _halves(self) -> "tuple[Index | None, Index | None]":
        from sanflow.data.held_out import halve

        held_out = self._split()[1]
        if held_out is None or not self.experiment.chooses_epoch:
            return None, held_out
        return halve(held_out, self.seed)

    def _split(self) -> "tuple[Index, Index | None]":
        from sanflow.data.held_out import split_training

        return split_training(self.index, self.experiment.calibration_fraction, self.seed)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width at which images of the category enter the method."""
        size: tuple[int, int] = self.experiment.input_size_for(self.index.dataset, self.index.category)
        return size

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of the experiment that decide the fit, as plain values."""
        settings: dict[str, Any] = self.experiment.fit_settings(self.index.dataset, self.index.category)
        return settings


@dataclasses.dataclass(frozen=True)
class MapJob:
    """What a job of a `MapMaker` is given.

    Arguments:
        experiment: Settings; of the method's own model.
        name: Key of the experiment in the benchmark.
        index: The category.
        seed: Of everything that is drawn.
        scores: scores.npz to write.
        record: train.json to write: the cost.
        work: Folder for what only the job needs; it may hold what an earlier attempt left, and is no output of a rule.
        device: `cuda` or `cpu`.
        tracker: Logs train.json as far as it is known.
    """

    experiment: Any
    name: str
    index: "Index"
    seed: int
    scores: Path
    record: Path
    work: Path
    device: str
    tracker: Tracker


@dataclasses.dataclass
class Output:
    """The output of a detector for a batch of images.

    Arguments:
        grids: Name of a scale -> (B, h, w), float32.
        image_scores: (B,) scores of the method's own; None: an image's score is the maximum of its map.
        variance_Bhw: For figures: the predicted variance of the base; None if the method has none.
        latents_NC: For figures: latent vectors of one scale at all its locations, images first, then rows.
        latent_scale: Name of that scale.
    """

    grids: "dict[str, Tensor]"
    image_scores: "Tensor | None" = None
    variance_Bhw: "Tensor | None" = None
    latents_NC: "Tensor | None" = None
    latent_scale: str | None = None


class Detector(Protocol):
    """A fitted detector on a device.

    Attributes:
        kind: Meaning of the numbers in its grids, see `sanflow.anomaly_maps.scores_file`.
        input_size: Height and width of the images it takes.
        constants: Name of a grid -> the constant that calibrates it, measured by the fit; empty for anomaly maps.
        device: Name of its device, for the records.
        precision: Of its matrix products and convolutions.
    """

    kind: Kind
    input_size: tuple[int, int]
    constants: dict[str, float]
    device: str
    precision: str

    def __call__(self, images_BHW3: "Tensor", *, extras: bool = False) -> Output:
        """Score a batch.

        Arguments:
            images_BHW3: uint8, of `input_size`, in host memory.
            extras: Also return the data for figures.
        """


@runtime_checkable
class ExportableDetector(Protocol):
    """A detector whose computation is one graph of tensor operations, which `sanflow export` writes to a file.

    Its modules and tensors are attributes, and nothing in `score_floats` depends on the number of images or on the
    values of a tensor but through such operations.
    """

    def score_floats(self, images_B3HW: "Tensor") -> Output:
        """Score a batch.

        Arguments:
            images_B3HW: float32 in [0, 1], of `input_size`, on the detector's device.
        """
