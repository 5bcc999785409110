"""The distillation itself: crops go through teacher and student, the student regresses the reduced features.

Shapes: B images, C channels, K target channels, H rows, W columns.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanflow.distillation.crops import Crops
from sanflow.distillation.lessons import Lessons
from sanflow.distillation.photographs import licence_of, photograph_paths, read_photographs
from sanflow.distillation.teacher import AlignedTeacher, Reduction, fit_reductions
from sanflow.encoders.compact import CHANNELS, MEAN, STD, CompactEncoder, folded, save_compact
from sanflow.encoders.encoder import Encoder
from sanflow.errors import ConfigError, IntegrityError, TrainingError
from sanflow.files import atomic_path, sha256_of_file, write_json

DECAY_FROM = 0.7  # of all steps: until here the learning rate does not depend on how many steps there will be
WARM_UP_STEPS = 100
EMA_DECAY = 0.997
HELD_OUT_BATCHES = 8

Progress = Callable[[str, int, int, dict[str, float]], None]  # what is going on, done, of how many, numbers to show


@dataclass(frozen=True)
class Distillation:
    """Every choice of a distillation; equal choices give equal files on one machine.

    Arguments:
        images: Folders of photographs, or `builtin`.
        steps: Batches learned from.
        seed: Of images, crops and initial weights.
        channels: Features kept of each teacher scale.
        batch_size: Crops per step.
        crop: Side of a crop in pixels, a multiple of 16.
        program_images: How many images a program makes beside the photographs.
        reduction_batches: Batches that the PCA is fitted on.
        lesson_batches: New batches that are kept at a time.
        lesson_passes: How often each crop is seen.
        learning_rate: Of AdamW: rises linearly over the first hundred steps, falls linearly to zero over the last
            three tenths.
        weight_decay: Of AdamW.
    """

    images: tuple[str, ...]
    steps: int = 6000
    seed: int = 0
    channels: tuple[int, ...] = CHANNELS
    batch_size: int = 16
    crop: int = 96
    program_images: int = 256
    reduction_batches: int = 40
    lesson_batches: int = 64
    lesson_passes: int = 3
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.crop % 16 or self.crop < 32:
            raise ConfigError(f"Expected a crop size that is a multiple of 16 and at least 32, but got {self.crop}.")
        if self.steps < 1 or self.batch_size < 2:
            raise ConfigError(
                f"Expected at least 1 step and 2 crops per batch, but got {self.steps} and {self.batch_size}."
            )

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of one step, from 0."""
        warm_up = min((step + 1) / WARM_UP_STEPS, 1.0)
        return self.learning_rate * warm_up * min((self.steps - step) / (self.steps * (1 - DECAY_FROM)), 1.0)


def distill(
    teacher: Encoder,
    choices: Distillation,
    output: str | Path,
    *,
    state_path: str | Path | None = None,
    save_every: int = 250,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Distil a compact encoder and write it with its card.

    A killed run continues from its state file. `steps` may be changed for a run that is still before the decay of
    its learning rate; the result is what one run with the new number gives.

    Arguments:
        teacher: Frozen, with features at strides 4, 8 and 16.
        choices: See `Distillation`.
        output: The safetensors file; its card becomes `<name>.json` beside it.
        state_path: Where an unfinished run is kept; `<output>.state` by default, removed in the end.
        save_every: Steps between two states; each also writes `output` as it would be so far.
        progress: Called every few steps.

    Returns:
        The card: what the encoder was made from and how well it explains the teacher on held-out crops.

    Raises:
        ConfigError: If the state file belongs to other choices.
        DataError: If there are no photographs or one cannot be read.
        TrainingError: If the loss is no longer finite.
    """
    output = Path(output)
    state_path = Path(state_path) if state_path else output.with_name(output.name + ".state")
    report = progress or (lambda *_: None)
    paths = photograph_paths(choices.images)
    photographs = read_photographs(paths)
    report("drawing images", 0, 1, {})
    crops = Crops(photographs, choices.program_images, choices.crop, choices.seed)
    held_out = Crops(photographs, max(choices.program_images // 10, 1), choices.crop, choices.seed, held_out=True)
    aligned = AlignedTeacher(teacher)

    torch.manual_seed(choices.seed)
    student = CompactEncoder(choices.channels, batch_norm=True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), choices.learning_rate, weight_decay=choices.weight_decay)
    identity = {"teacher": teacher.identity, "photographs": [sha256_of_file(path) for path in paths]}
    if state_path.is_file():
        start, reductions, average = _restore(state_path, choices, identity, student, optimizer)
    else:
        start, average = 0, copy.deepcopy(student)
        report("fitting the reduction", 0, 1, {})
        # Numbers that no step reaches, so that learning sees other crops.
        fitting = (crops.batch(2**32 + i, choices.batch_size) for i in range(choices.reduction_batches))
        reductions = fit_reductions((aligned(images_BCHW) for images_BCHW in fitting), list(choices.channels))
    test_set = [held_out.batch(i, choices.batch_size) for i in range(HELD_OUT_BATCHES)]
    test_targets = [_targets(aligned, reductions, images_BCHW) for images_BCHW in test_set]

    def targets_of(images_BCHW: Tensor) -> list[Tensor]:
        return _targets(aligned, reductions, images_BCHW)

    lessons = Lessons(crops, targets_of, choices.batch_size, choices.lesson_batches, choices.lesson_passes)
    mean_1C11, std_1C11 = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    student.train()
    running: list[float] = []
    card: dict[str, Any] = {}
    for step in range(start, choices.steps):
        for group in optimizer.param_groups:
            group["lr"] = choices.learning_rate_at(step)
        images_BCHW, targets = lessons.batch(step)
        x_BCHW = ((images_BCHW - mean_1C11) / std_1C11).contiguous(memory_format=torch.channels_last)
        outputs = student(x_BCHW)
        losses = [
            (output_BKHW - target_BKHW).square().mean()
            for output_BKHW, target_BKHW in zip(outputs, targets, strict=True)
        ]
        loss = torch.stack(losses).sum()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"Expected a finite loss, but got {loss.item()} at step {step}. "
                f"Delete {state_path} and start again with a lower --learning-rate."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _average(average, student, min(EMA_DECAY, (1 + step) / (10 + step)))
        running = (
            [new.item() for new in losses]
            if step == start
            else [0.98 * old + 0.02 * new.item() for old, new in zip(running, losses, strict=True)]
        )
        done = step + 1
        if done % save_every == 0 or done == choices.steps:
            encoder = folded(average)
            explained = held_out_r2(encoder, test_set, test_targets)
            card = _card(choices, teacher, paths, reductions, explained, done)
            save_compact(output, encoder, card)
            _save(state_path, done, choices, identity, student, average, optimizer, reductions)
            report("held out", done, choices.steps, {f"R2 {scale}": value for scale, value in enumerate(explained)})
        if done % 10 == 0:
            report("learning", done, choices.steps, {f"loss {scale}": value for scale, value in enumerate(running)})
    if start >= choices.steps:
        encoder = folded(average)
        card = _card(choices, teacher, paths, reductions, held_out_r2(encoder, test_set, test_targets), start)
        save_compact(output, encoder, card)
    write_json(output.with_suffix(".json"), {**card, "sha256": sha256_of_file(output)})
    state_path.unlink(missing_ok=True)
    return card


def held_out_r2(encoder: CompactEncoder, images: Sequence[Tensor], targets: Sequence[list[Tensor]]) -> list[float]:
    """Share of the targets' variance that a student explains, per scale; 1 is perfect, 0 is their mean.

    Arguments:
        encoder: In eval mode.
        images: Batches (B, 3, H, W) in [0, 1].
        targets: Per batch, one map (B, K, H, W) per scale.
    """
    mean_1C11, std_1C11 = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        outputs = [encoder((images_BCHW - mean_1C11) / std_1C11) for images_BCHW in images]
    shares = []
    for scale in range(len(encoder.channels)):
        output_BKHW = torch.cat([maps[scale] for maps in outputs])
        target_BKHW = torch.cat([maps[scale] for maps in targets])
        mean_K = target_BKHW.mean((0, 2, 3), keepdim=True)
        shares.append(float(1 - (output_BKHW - target_BKHW).square().sum() / (target_BKHW - mean_K).square().sum()))
    return shares


def _targets(teacher: AlignedTeacher, reductions: Sequence[Reduction], images_BCHW: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [reduce(features_BCHW) for reduce, features_BCHW in zip(reductions, teacher(images_BCHW), strict=True)]


@torch.no_grad()
def _average(average: CompactEncoder, student: CompactEncoder, decay: float) -> None:
    for old, new in zip(average.state_dict().values(), student.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


def _card(
    choices: Distillation,
    teacher: Encoder,
    paths: Sequence[Path],
    reductions: Sequence[Reduction],
    explained: Sequence[float],
    done: int,
) -> dict[str, Any]:
    """What the file was made from; nothing in it depends on the machine's folders or clock."""
    return {
        "name": "sanflow/compact",
        "teacher": teacher.identity,
        "photographs": {path.name: licence_of(path) for path in paths},
        "choices": {
            **dataclasses.asdict(choices),
            "channels": list(choices.channels),
            "images": [Path(source).name for source in choices.images],
        },
        "steps_done": done,
        "teacher_variance_kept": [round(reduction.explained, 4) for reduction in reductions],
        "held_out_r2": [round(value, 4) for value in explained],
    }


def _save(
    path: Path,
    step: int,
    choices: Distillation,
    identity: dict[str, Any],
    student: CompactEncoder,
    average: CompactEncoder,
    optimizer: torch.optim.Optimizer,
    reductions: Sequence[Reduction],
) -> None:
    state = {
        "step": step,
        "choices": dataclasses.asdict(choices),
        "identity": identity,
        "student": student.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "reductions": [dataclasses.asdict(reduction) for reduction in reductions],
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _restore(
    path: Path,
    choices: Distillation,
    identity: dict[str, Any],
    student: CompactEncoder,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, list[Reduction], CompactEncoder]:
    try:
        state = torch.load(path, weights_only=True)
        step, old = state["step"], state["choices"]
    except Exception as error:
        raise IntegrityError(
            f"Expected the state of a distillation in {path}, but it is damaged ({error}). Delete it and start again."
        ) from error
    steps_old, steps_new = old["steps"], choices.steps
    unlike = [key for key, value in dataclasses.asdict(choices).items() if old[key] != value and key != "steps"]
    if state["identity"] != identity:
        unlike.append("teacher or photographs")
    if steps_old != steps_new and step > DECAY_FROM * min(steps_old, steps_new):
        unlike.append("steps")
    if unlike:
        raise ConfigError(
            f"Expected the choices of the unfinished distillation in {path}, but these differ: {', '.join(unlike)}. "
            "Repeat the choices to continue it, or delete the file to start anew."
        )
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    average = CompactEncoder(choices.channels, batch_norm=True)
    average.load_state_dict(state["average"])
    return step, [Reduction(**reduction) for reduction in state["reductions"]], average
