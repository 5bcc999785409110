"""The command `distill`: make a compact encoder out of a larger one."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def register(app: typer.Typer) -> None:
    """Add this file's command to the command line."""
    app.command()(distill)


def distill(
    teacher: Annotated[str, typer.Option(help="Encoder to learn from: timm/..., torchvision/...")],
    images: Annotated[
        list[str],
        typer.Option(
            help="Folder of photographs, searched recursively; may be given several times. `builtin`: the freely "
            "licensed photographs that come with scikit-image and scikit-learn."
        ),
    ],
    output: Annotated[Path, typer.Option(help="File to write (.safetensors); its card is written beside it (.json).")],
    weights: Annotated[str, typer.Option(help="Teacher's weights: pretrained, or a file.")] = "pretrained",
    taps: Annotated[
        str | None, typer.Option(help="Teacher's layers at strides 4, 8 and 16, with commas between them.")
    ] = None,
    padding: Annotated[str | None, typer.Option(help="Teacher's padding: reflect or zeros.")] = None,
    channels: Annotated[str, typer.Option(help="Features kept of each layer, with commas.")] = "32,64,96",
    steps: Annotated[int, typer.Option(help="Batches to learn from.")] = 6000,
    seed: Annotated[int, typer.Option(help="Of images, crops and initial weights.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Crops per step.")] = 16,
    crop: Annotated[int, typer.Option(help="Side of a crop in pixels, a multiple of 16.")] = 96,
    program_images: Annotated[int, typer.Option(help="Images made by a program, beside the photographs.")] = 256,
    reduction_batches: Annotated[int, typer.Option(help="Batches that the teacher's PCA is fitted on.")] = 40,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of AdamW.")] = 3e-3,
    save_every: Annotated[int, typer.Option(help="Steps between two saved states.")] = 250,
    threads: Annotated[int, typer.Option(help="CPU threads of torch; another number may change the last digits.")] = 1,
) -> None:
    """Distil a compact encoder: a small network learns a larger one's features, reduced by PCA.

    An interrupted run continues from the state beside its output when the same command is given again.
    """
    import torch

    from sanflow.distillation.loop import Distillation
    from sanflow.distillation.loop import distill as run
    from sanflow.encoders import build_encoder
    from sanflow.errors import ConfigError

    if padding not in (None, "reflect", "zeros"):
        raise ConfigError(f"Expected --padding reflect or zeros, but got {padding}.")
    torch.set_num_threads(threads)
    choices = Distillation(
        images=tuple(images),
        steps=steps,
        seed=seed,
        channels=_numbers(channels),
        batch_size=batch_size,
        crop=crop,
        program_images=program_images,
        reduction_batches=reduction_batches,
        learning_rate=learning_rate,
    )
    encoder = build_encoder(
        teacher,
        weights=weights,
        taps=taps.split(",") if taps else None,
        padding=padding,  # type: ignore[arg-type]  # checked above
    )
    columns = (
        TextColumn("{task.description:22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("starting", total=None, numbers="")

        def show(what: str, done: int, total: int, numbers: dict[str, float]) -> None:
            text = " ".join(f"{name} {value:.3f}" for name, value in numbers.items())
            if what == "held out":
                bars.console.print(f"step {done}: held-out {text}")
            else:
                bars.update(task, description=what, completed=done, total=total, numbers=text)

        card = run(encoder, choices, output, save_every=save_every, progress=show)
    explained = ", ".join(f"{share:.1%}" for share in card["held_out_r2"])
    size = output.stat().st_size / 1e6
    typer.echo(f"{output}: {size:.2f} MB; explains {explained} of the reduced teacher's held-out variance.")


def _numbers(text: str) -> tuple[int, ...]:
    from sanflow.encoders.compact import STRIDES
    from sanflow.errors import ConfigError

    parts = text.split(",")
    if len(parts) != len(STRIDES) or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"Expected {len(STRIDES)} positive numbers with commas in --channels, but got {text!r}.")
    return tuple(int(part) for part in parts)
