"""`sanflow train`, `score` and `gpu-exec`: from an index to a checkpoint to scores, on a GPU of its own."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sanflow.data.images import ImageCache

DeviceOption = Annotated[str, typer.Option(help="auto, cuda (stops where there is none) or cpu.")]
CacheOption = Annotated[Path | None, typer.Option(help="Folder of the image cache; decodes into memory if unset.")]
GigabytesOption = Annotated[
    float, typer.Option(envvar="SANFLOW_CACHE_GIGABYTES", min=0, help="Limit of the image cache.")
]
BARE_COMMAND = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.command()(train)
    app.command()(score)
    app.command("gpu-exec", context_settings=BARE_COMMAND)(gpu_exec)


def train(
    index: Annotated[Path, typer.Argument(help="index.csv of the category.")],
    *,
    benchmark: Annotated[str, typer.Option(help="Name in config/benchmarks/ or path of a benchmark file.")],
    experiment: Annotated[str, typer.Option(help="Key of an experiment of the benchmark.")],
    output: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    history: Annotated[Path, typer.Option(help="train.json to write: history and cost.")],
    state: Annotated[Path, typer.Option(help="Folder of the training's state, from which a killed training goes on.")],
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and anomalies.")] = 0,
    kept: Annotated[Path | None, typer.Option(help="Folder for the epochs that `keep_every` keeps.")] = None,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
    cache_gigabytes: GigabytesOption = 50.0,
    save_state_every: Annotated[float, typer.Option(min=0, help="Shortest time between saves, in seconds.")] = 300.0,
    tracking: Annotated[Path | None, typer.Option(help="`results/<benchmark>/tracking`; unset: no mirror.")] = None,
) -> None:
    """Train the model of one category; goes on where a killed training was.

    SIGTERM, SIGINT and SIGUSR1 end the batch, save the state and exit with 143 or 130.
    """
    from sanflow.config import load_experiment
    from sanflow.data.index import read_index
    from sanflow.errors import ConfigError
    from sanflow.methods.flow.training.loop import Outputs
    from sanflow.methods.flow.training.loop import train as run
    from sanflow.provenance import training_digest
    from sanflow.tracking import job_tracker

    _tell()
    settings = load_experiment(benchmark, experiment)
    if not settings.trains:
        raise ConfigError(
            f"Expected an experiment that is trained, but {experiment!r} is not: its weights or maps come from files."
        )
    content = read_index(index)
    unit = f"{content.dataset}/{content.category}/{experiment}/seed{seed}"
    digest = training_digest(settings.training_settings(content.category))
    tracker = job_tracker(tracking, unit=unit, digest=digest, stage="train")
    with tracker:
        run(
            settings,
            content,
            Outputs(output, history, state, kept),
            tracker,
            name=experiment,
            seed=seed,
            device=device,
            cache=_image_cache(cache, cache_gigabytes),
            save_every_seconds=save_state_every,
        )


def score(
    index: Annotated[Path, typer.Argument(help="index.csv of the category.")],
    *,
    checkpoint: Annotated[Path, typer.Option(help="The trained or imported model.")],
    output: Annotated[Path, typer.Option(help="scores.npz to write.")],
    extras: Annotated[Path, typer.Option(help="extras.npz to write: variance maps and latents for figures.")],
    state: Annotated[
        Path | None, typer.Option(help="Folder of the training's state, removed once the scores are written.")
    ] = None,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
    cache_gigabytes: GigabytesOption = 50.0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once; 8 on a CPU, 32 on a GPU.")] = None,
) -> None:
    """Score the test images of one category: grids per scale, and the constants that calibrate them."""
    from sanflow import scoring
    from sanflow.data.index import read_index
    from sanflow.methods.flow.training.state import remove_finished_state

    _tell()
    scores, more = scoring.score(
        checkpoint,
        read_index(index),
        device=device,
        cache=_image_cache(cache, cache_gigabytes),
        batch_size=batch_size,
    )
    more.save(extras)
    scores.save(output)
    if state is not None:
        remove_finished_state(state)


def gpu_exec(
    context: typer.Context,
    *,
    device: DeviceOption = "auto",
    slots_per_gpu: Annotated[int, typer.Option(min=1, help="How many jobs may share one GPU.")] = 1,
) -> None:
    """Run a command on a GPU of its own: `sanflow gpu-exec -- sanflow train ...`.

    Waits for a free GPU of this machine, shows it alone to the command and frees it with the command's end, however it
    ends. Claims nothing where a scheduler has bound the devices, or there is no GPU.
    """
    from sanflow.errors import ConfigError
    from sanflow.pipeline.gpu_slots import run_on_gpu

    if not context.args:
        raise ConfigError("Expected a command to run, as in `sanflow gpu-exec -- sanflow train ...`, but got none.")
    _tell()
    run_on_gpu(context.args, slots_per_gpu=slots_per_gpu, device=device)


def _image_cache(folder: Path | None, gigabytes: float) -> "ImageCache | None":
    from sanflow.data.images import ImageCache

    return None if folder is None else ImageCache(folder, int(gigabytes * 1e9))


def _tell() -> None:
    """Messages of the package on stderr, which the rules keep as the job's log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
