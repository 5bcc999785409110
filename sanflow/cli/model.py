"""`sanflow train`, `score`, `make-maps` and `gpu-exec`: from an index to scores, on a GPU of its own."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from sanflow.cli.options import (
    BenchmarkOption,
    CacheOption,
    DeviceOption,
    ExperimentOption,
    GigabytesOption,
    IndexArgument,
    TrackingOption,
    image_cache,
)
from sanflow.config import handed_on

BARE_COMMAND = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.command()(train)
    app.command()(score)
    app.command()(validate)
    app.command("make-maps")(make_maps)
    app.command("gpu-exec", context_settings=BARE_COMMAND)(gpu_exec)


def train(
    index: IndexArgument,
    *,
    benchmark: BenchmarkOption,
    experiment: ExperimentOption,
    output: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    history: Annotated[
        Path | None, typer.Option(help="train.json to write: history and cost.", show_default="beside --output")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder of saved states, from which a killed training resumes.", show_default="state beside --output"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn: weights, order, anomalies.")] = 0,
    kept: Annotated[Path | None, typer.Option(help="Folder for the epochs that `keep_every` keeps.")] = None,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
    cache_gigabytes: GigabytesOption = 50.0,
    save_state_every: Annotated[
        float, typer.Option(envvar=handed_on.SAVE_STATE_EVERY, min=0, help="Shortest time between saves, in seconds.")
    ] = 300.0,
    tracking: TrackingOption = None,
) -> None:
    """Fit the detector of one category; a killed training resumes.

    SIGTERM, SIGINT and SIGUSR1 end the batch, save the state and exit with 143 or 130.
    """
    from sanflow.data.index import read_index
    from sanflow.methods.method import FitJob, Outputs
    from sanflow.methods.registry import detector_method
    from sanflow.pipeline.benchmark import Job, load_experiment
    from sanflow.prediction.calibration import calibrate_on_held_out
    from sanflow.tracking import job_tracker

    _log_to_stderr()
    settings = load_experiment(benchmark, experiment)
    method = detector_method(settings.method)
    content = read_index(index)
    job = Job(content.dataset, content.category, experiment, seed)
    with job_tracker(tracking, str(job.folder)) as tracker:
        fit_job = FitJob(
            settings,
            experiment,
            content,
            seed,
            Outputs(output, history or output.with_name("train.json"), state or output.with_name("state"), kept),
            tracker,
            cache=image_cache(cache, cache_gigabytes),
            device=device,
            save_every_seconds=save_state_every,
        )
        method.fit(fit_job)
        if fit_job.held_out is not None:
            calibrate_on_held_out(output, fit_job.held_out, device=device, cache=fit_job.cache)


def score(
    index: IndexArgument,
    *,
    checkpoint: Annotated[Path, typer.Option(help="The fitted detector.")],
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
    """Score the test images of one category: grids per scale at their own size."""
    from sanflow import scoring
    from sanflow.data.index import read_index
    from sanflow.methods.flow.training.state import remove_finished_state

    _log_to_stderr()
    scores, more = scoring.score(
        checkpoint,
        read_index(index),
        device=device,
        cache=image_cache(cache, cache_gigabytes),
        batch_size=batch_size,
    )
    more.save(extras)
    scores.save(output)
    if state is not None:
        remove_finished_state(state)


def validate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of finished runs (.../<experiment>/seed<k>), or checkpoints such as kept/epoch04.pt."
        ),
    ],
    *,
    device: DeviceOption = "auto",
) -> None:
    """Compare fitted detectors by painted defects on held-out good parts; no test image is read.

    The parts are the half of those held out by `calibration_fraction` that `choose_epoch` uses. The seed decides which
    these are, so compare runs of one seed.
    """
    from rich.console import Console
    from rich.table import Table

    from sanflow.data.index import read_index
    from sanflow.methods.validation import MEASURES, index_of, validate_checkpoint

    table = Table("run", *MEASURES)
    for run in runs:
        checkpoint = run / "checkpoint.pt" if run.is_dir() else run
        found = validate_checkpoint(checkpoint, read_index(index_of(checkpoint)), device=device)
        table.add_row(str(run), *(f"{found[name]:.4f}" if name in found else "-" for name in MEASURES))
    Console(soft_wrap=True).print(table)


def make_maps(
    index: IndexArgument,
    *,
    benchmark: BenchmarkOption,
    experiment: ExperimentOption,
    output: Annotated[Path, typer.Option(help="scores.npz to write.")],
    history: Annotated[Path, typer.Option(help="train.json to write: the cost.")],
    work: Annotated[Path, typer.Option(help="Folder for what only this job needs; emptied first, removed in the end.")],
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    device: DeviceOption = "auto",
    tracking: TrackingOption = None,
) -> None:
    """Run another tool on neutral copies of the images of one category and read the anomaly maps that it makes.

    SIGTERM, SIGINT and SIGUSR1 end the tool and its children and exit with 143 or 130; the next call starts anew.
    """
    from sanflow.data.index import read_index
    from sanflow.errors import ConfigError
    from sanflow.methods.method import MapJob, MapMaker
    from sanflow.methods.registry import methods
    from sanflow.pipeline.benchmark import Job, load_experiment
    from sanflow.pipeline.gpu_slots import wanted_pool
    from sanflow.tracking import job_tracker

    _log_to_stderr()
    settings = load_experiment(benchmark, experiment)
    method = methods()[settings.method]
    if not isinstance(method, MapMaker):
        raise ConfigError(f"Expected an experiment whose job makes maps, but {experiment!r} is of `{settings.method}`.")
    content = read_index(index)
    chosen = "cuda" if wanted_pool(device, os.environ) else "cpu"
    job = Job(content.dataset, content.category, experiment, seed)
    with job_tracker(tracking, str(job.folder)) as tracker:
        method.make(MapJob(settings, experiment, content, seed, output, history, work, chosen, tracker))


def gpu_exec(
    context: typer.Context,
    *,
    device: DeviceOption = "auto",
    slots_per_gpu: Annotated[
        int, typer.Option(envvar=handed_on.SLOTS_PER_GPU, min=1, help="How many jobs may share one GPU.")
    ] = 1,
) -> None:
    """Run a command on a GPU of its own: `sanflow gpu-exec -- sanflow train ...`.

    Waits for a free GPU of this machine, shows it alone to the command and frees it when the command exits, even if it
    is killed. Claims nothing where a scheduler has bound the devices, or there is no GPU.
    """
    from sanflow.errors import ConfigError
    from sanflow.pipeline.gpu_slots import run_on_gpu

    if not context.args:
        raise ConfigError("Expected a command to run, as in `sanflow gpu-exec -- sanflow train ...`, but got none.")
    _log_to_stderr()
    run_on_gpu(context.args, slots_per_gpu=slots_per_gpu, device=device)


def _log_to_stderr() -> None:
    """Write the package's messages to stderr, which the rules keep as the job's log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
