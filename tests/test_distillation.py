"""Distillation: its images, what the student shall learn, and that a run is a function of its choices."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from sanflow.distillation.crops import Crops
from sanflow.distillation.images import FIELDS, program_image
from sanflow.distillation.lessons import Lessons
from sanflow.distillation.loop import DECAY_FROM, Distillation, distill
from sanflow.distillation.photographs import (
    PHOTOGRAPHS,
    builtin_photographs,
    licence_of,
    photograph_paths,
    read_photographs,
)
from sanflow.distillation.teacher import AlignedTeacher, best_margin, first_centres, fit_reductions
from sanflow.encoders import Encoder, build_encoder
from sanflow.encoders.compact import CHANNELS, card_of, load_compact
from sanflow.encoders.layouts import Layout
from sanflow.errors import ConfigError, DataError, IntegrityError, TrainingError
from sanflow.files import read_json, sha256_of_file

QUICK = {
    "steps": 4,
    "batch_size": 4,
    "crop": 32,
    "program_images": 2,
    "reduction_batches": 2,
    "channels": (4, 6, 8),
    "lesson_batches": 2,
}


class Strided(nn.Module):
    """Three convolutions without padding, at strides 4, 8 and 16."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, kernel, 4)
        self.second = nn.Conv2d(12, 16, 3, 2)
        self.third = nn.Conv2d(16, 20, 3, 2)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        first = self.first(images).relu()
        second = self.second(first).relu()
        return [first, second, self.third(second).relu()]


def small_teacher(strides: tuple[int, int, int] = (4, 8, 16)) -> Encoder:
    torch.manual_seed(0)
    layouts = [Layout("first", channels, stride) for channels, stride in zip((12, 16, 20), strides, strict=True)]
    return Encoder(Strided(), layouts, mean=(0.5,) * 3, std=(0.25,) * 3, identity={"name": "small"})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run side by side, and threads that wait for each other on shared cores are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        Image.fromarray(program_image(7, number, 96)).save(folder / f"{number}.png")
    return folder


def test_builtin_photographs_exist_and_spare_the_demo() -> None:
    paths = builtin_photographs()
    assert len(paths) == len(PHOTOGRAPHS) == 15
    assert not {"brick", "grass", "gravel"} & {path.stem for path in paths}
    assert all(photograph.licence for photograph in PHOTOGRAPHS)


def test_the_card_tells_the_licence_of_what_comes_with_the_dependencies() -> None:
    assert [licence_of(path) for path in builtin_photographs()] == [photograph.licence for photograph in PHOTOGRAPHS]
    assert licence_of(Path("/mine/data/camera.png")) is None


def test_folders_are_read_in_order(photographs: Path) -> None:
    paths = photograph_paths([str(photographs)])
    assert [path.name for path in paths] == ["0.png", "1.png"]
    assert [image.shape for image in read_photographs(paths)] == [(96, 96, 3)] * 2


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected a folder with images .* with none"):
        photograph_paths([str(tmp_path)])


def test_an_unreadable_photograph_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Expected an image in .*broken\.png"):
        read_photographs([tmp_path / "broken.png"])


def test_a_package_without_its_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = type(PHOTOGRAPHS[0])("skimage", "data/moved.png", "CC0")
    monkeypatch.setattr("sanflow.distillation.photographs.PHOTOGRAPHS", (moved,))
    with pytest.raises(DataError, match=r"data/moved\.png in the package skimage"):
        builtin_photographs()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.__name__)
def test_each_family_fills_its_range(field) -> None:
    for seed in range(3):
        values = field(np.random.default_rng(seed), 48)
        assert values.shape == (48, 48)
        assert values.min() >= 0
        assert values.max() <= 1
        assert np.isfinite(values).all()


def test_program_images_follow_from_seed_and_number() -> None:
    first = program_image(1, 5, 48)
    assert (first == program_image(1, 5, 48)).all()
    assert (first != program_image(1, 6, 48)).any()
    assert (first != program_image(2, 5, 48)).any()


def test_a_batch_depends_on_seed_and_step_only(photographs: Path) -> None:
    images = read_photographs(photograph_paths([str(photographs)]))
    crops = Crops(images, 2, 32, seed=3)
    early = crops.batch(0, 4)
    late = crops.batch(9, 4)
    again = Crops(images, 2, 32, seed=3)
    assert early.shape == (4, 3, 32, 32)
    assert early.min() >= 0
    assert early.max() <= 1
    torch.testing.assert_close(again.batch(9, 4), late, rtol=0, atol=0)
    assert (early != late).any()


def test_a_lesson_shows_each_crop_once_per_pass_and_a_jump_changes_nothing(photographs: Path) -> None:
    images = read_photographs(photograph_paths([str(photographs)]))
    crops = Crops(images, 1, 32, seed=0)

    def lessons() -> Lessons:
        return Lessons(crops, lambda batch: [batch.mean((2, 3), keepdim=True)], 4, n_batches=3, passes=2)

    in_order = lessons()
    shown = [in_order.batch(step) for step in range(9)]
    new, again = (torch.cat([images for images, _ in shown[start : start + 3]]) for start in (0, 3))
    assert sorted(new.sum((1, 2, 3)).tolist()) == sorted(again.sum((1, 2, 3)).tolist())
    assert (new != again).any()
    assert (shown[6][0] != shown[0][0]).any()
    for batch, (target,) in shown:
        torch.testing.assert_close(target, batch.mean((2, 3), keepdim=True))
    jumped, (target,) = lessons().batch(5)
    torch.testing.assert_close(jumped, shown[5][0], rtol=0, atol=0)


def test_held_out_crops_come_from_the_right_sixth() -> None:
    photograph = np.zeros((120, 120, 3), np.uint8)
    photograph[:, 100:] = 200
    learning, held_out = (Crops([photograph], 0, 32, 0, held_out=flag) for flag in (False, True))
    assert {float(level.max()) for levels in learning.photographs for level in levels} == {0.0}
    assert float(held_out.photographs[0][0].min()) == pytest.approx(200 / 255)


def test_first_centres_of_unpadded_convolutions() -> None:
    # A 3 x 3 kernel at stride 4 looks at pixels 0, 1, 2: centre 1. The next ones at 1 + 4 and at 5 + 8.
    for centre, expected, stride in zip(first_centres(small_teacher()), (1, 5, 13), (4, 8, 16), strict=True):
        assert centre == pytest.approx(expected, abs=0.35 * stride)


def test_margin_of_a_grid_that_already_fits_is_zero() -> None:
    assert best_margin([1.5, 3.5, 7.5]) == (0, [0, 0, 0])


def test_aligned_teacher_gives_the_students_grids() -> None:
    maps = AlignedTeacher(small_teacher())(torch.rand(2, 3, 64, 64))
    assert [tuple(map_.shape) for map_ in maps] == [(2, 12, 16, 16), (2, 16, 8, 8), (2, 20, 4, 4)]


def test_a_teacher_of_other_strides_is_refused() -> None:
    encoder = build_encoder("timm/resnet18.tv_in1k", weights="random")
    with pytest.raises(
        ConfigError,
        match=r"strides \(4, 8, 16\), as the student's, but got \(8, 16, 32\)\. Choose other layers with --taps",
    ):
        AlignedTeacher(encoder)


def test_reduction_standardises_and_decorrelates() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(10, 10, generator=generator)
    features = torch.einsum("ck,bkhw->bchw", mixing, torch.randn(8, 10, 16, 16, generator=generator)) * 30 + 5
    (reduction,) = fit_reductions([[features[:4]], [features[4:]]], [6])
    targets = reduction(features).movedim(1, -1).flatten(0, -2)
    covariance = torch.cov(targets.T)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    assert off_diagonal.abs().max() < 1e-3
    assert targets.mean(0).abs().max() < 1e-3
    assert covariance.diagonal().mean() == pytest.approx(1, abs=0.01)
    eigenvalues = torch.linalg.eigvalsh(torch.corrcoef(features.movedim(1, 0).flatten(1)).double()).flip(0)
    assert reduction.explained == pytest.approx(float(eigenvalues[:6].sum() / 10), abs=1e-3)
    # Half whitened: a component's variance is the square root of its eigenvalue, up to one common factor.
    ratio = covariance.diagonal() / eigenvalues[:6].sqrt().float()
    torch.testing.assert_close(ratio, ratio.mean().expand(6), rtol=0.01, atol=0)


def test_more_channels_than_the_teacher_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="Expected at most 3 channels"):
        fit_reductions([[torch.randn(2, 3, 4, 4)]], [4])


def test_learning_rate_rises_stays_and_falls() -> None:
    choices = Distillation(images=(), steps=1000, learning_rate=1.0)
    assert choices.learning_rate_at(0) == pytest.approx(0.01)
    assert choices.learning_rate_at(99) == choices.learning_rate_at(699) == 1.0
    assert choices.learning_rate_at(850) == pytest.approx(0.5)
    assert choices.learning_rate_at(999) == pytest.approx(1 / 300)


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"crop": 40}, "multiple of 16"), ({"steps": 0}, "at least 1 step"), ({"batch_size": 1}, "2 crops per batch")],
)
def test_impossible_choices_are_refused(choice, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distillation(images=(), **choice)


def test_one_seed_gives_one_file_and_a_killed_run_continues_to_it(photographs: Path, tmp_path: Path) -> None:
    choices = Distillation(images=(str(photographs),), **QUICK)
    card = distill(small_teacher(), choices, tmp_path / "a.safetensors")
    distill(small_teacher(), choices, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if what == "held out" and done == 2:
            raise Killed

    # Interrupted half way, and asked for fewer steps at first, which is allowed before the decay.
    longer = Distillation(images=(str(photographs),), **{**QUICK, "steps": 8})
    with pytest.raises(Killed):
        distill(small_teacher(), longer, tmp_path / "c.safetensors", save_every=2, progress=kill)
    assert (tmp_path / "c.safetensors.state").is_file()
    distill(small_teacher(), choices, tmp_path / "c.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert not (tmp_path / "c.safetensors.state").exists()

    written = read_json(tmp_path / "a.json")
    assert written == {**card, "sha256": sha256_of_file(tmp_path / "a.safetensors")}
    assert card_of(tmp_path / "a.safetensors") == card
    assert card["photographs"] == dict.fromkeys(path.name for path in sorted(photographs.iterdir()))
    assert load_compact(tmp_path / "a.safetensors").channels == [4, 6, 8]


def test_learning_reduces_the_held_out_error(photographs: Path, tmp_path: Path) -> None:
    changes = {"steps": 40, "learning_rate": 1e-2, "batch_size": 8, "lesson_batches": 8}
    shares: list[float] = []

    def note(what: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if what == "held out":
            shares.append(numbers["R2 0"])

    choices = Distillation(images=(str(photographs),), **{**QUICK, **changes})
    distill(small_teacher(), choices, tmp_path / "a.safetensors", save_every=20, progress=note)
    assert shares[1] > shares[0] + 0.05
    assert shares[1] > 0.2


def test_a_state_of_other_choices_is_refused(photographs: Path, tmp_path: Path) -> None:
    def run(**changes) -> None:
        choices = Distillation(images=(str(photographs),), **{**QUICK, **changes})
        distill(small_teacher(), choices, tmp_path / "a.safetensors", save_every=3, progress=stop)

    def stop(what: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if what == "held out":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert DECAY_FROM * QUICK["steps"] < 3
    with pytest.raises(ConfigError, match=r"these differ: seed, steps\. Repeat the choices"):
        run(seed=1, steps=6)
    (tmp_path / "a.safetensors.state").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="it is damaged"):
        run()


def test_a_loss_that_is_not_finite_stops_the_run(photographs: Path, tmp_path: Path) -> None:
    choices = Distillation(images=(str(photographs),), **{**QUICK, "learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"Expected a finite loss, but got .* lower --learning-rate"):
        distill(small_teacher(), choices, tmp_path / "a.safetensors")


def test_the_command_writes_file_and_card(photographs: Path, tmp_path: Path) -> None:
    import typer

    from sanflow.cli.distill import register

    app = typer.Typer()
    register(app)
    arguments = [
        "--teacher", "torchvision/squeezenet1_0", "--weights", "random",
        "--taps", "features.5,features.10,features.12", "--images", str(photographs),
        "--output", str(tmp_path / "out.safetensors"), "--steps", "2", "--batch-size", "2",
        "--crop", "32", "--program-images", "2", "--reduction-batches", "2", "--channels", "4,4,4",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "explains" in result.output
    assert read_json(tmp_path / "out.json")["steps_done"] == 2
    assert load_compact(tmp_path / "out.safetensors").channels == [4, 4, 4]


def test_the_command_has_the_defaults_of_the_choices() -> None:
    from sanflow.cli.distill import distill as command

    options = inspect.signature(command).parameters
    for field in dataclasses.fields(Distillation):
        if field.name in options and field.default is not dataclasses.MISSING:
            default = options[field.name].default
            expected = ",".join(map(str, CHANNELS)) if field.name == "channels" else field.default
            assert default == expected, field.name


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--padding", "round"], "--padding reflect or zeros"), (["--channels", "4,x"], "3 positive numbers with commas")],
)
def test_the_command_refuses_what_it_cannot_read(option: list[str], message: str, tmp_path: Path) -> None:
    import typer

    from sanflow.cli.distill import register

    app = typer.Typer()
    register(app)
    arguments = ["--teacher", "x", "--images", "builtin", "--output", str(tmp_path / "o"), *option]
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
