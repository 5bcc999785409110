"""`sanflow bench ...`: measure speed. Each command prints JSON (`all` a table) and leaves nothing behind."""

import json
from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(name="bench", help="Measure speed on this machine; prints JSON.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(bench)


@bench.command("metrics")
def metrics(
    *,
    size: Annotated[list[int] | None, typer.Option(help="Height and width of the maps; repeat for several.")] = None,
    maps: Annotated[int, typer.Option(min=2, help="Number of maps.")] = 83,
    anomalous: Annotated[int, typer.Option(min=1, help="How many of them are anomalous.")] = 63,
    repeats: Annotated[int, typer.Option(min=1, help="Times each metric is timed; the median is printed.")] = 5,
    thresholds: Annotated[int, typer.Option(min=1, help="Thresholds of the plain loop that are timed.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the random fields.")] = 0,
) -> None:
    """Time every metric on random smooth fields, at 256 and 512 pixels by default, and the usual loop beside them."""
    if anomalous >= maps:
        raise typer.BadParameter(f"Expected fewer anomalous maps than maps, but got {anomalous} of {maps}.")
    from sanflow.bench.metrics import bench_metrics

    found = bench_metrics(
        sizes=tuple(size or (256, 512)),
        n_maps=maps,
        n_anomalous=anomalous,
        repeats=repeats,
        loop_thresholds_timed=thresholds,
        seed=seed,
    )
    typer.echo(json.dumps(found, indent=2))


@bench.command("data")
def data(
    *,
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    side: Annotated[int, typer.Option(min=384, help="Height and width of the PNG files.")] = 1024,
    size: Annotated[int, typer.Option(min=16, help="Height and width after resizing.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="How often the cache is read.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the images and their order.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where the files are made; a temporary folder if unset."),
    ] = None,
) -> None:
    """Measure images per second from cold PNG files and from the image cache, and the memory each needs."""
    from sanflow.bench.data import bench_data

    typer.echo(json.dumps(bench_data(images, side, size, epochs=epochs, seed=seed, folder=folder), indent=2))


Encoder = Annotated[str, typer.Option(help="As in an experiment; its weights are random here.")]
InputSize = Annotated[int, typer.Option(min=32, help="Height and width in pixels.")]
Precision = Annotated[str, typer.Option(help="fp32, tf32 or bf16.")]
Device = Annotated[str, typer.Option(help="auto, cuda or cpu.")]
Windows = Annotated[int, typer.Option(min=1, help="Timed windows; the reference's are in between.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps per window.")]
Reference = Annotated[bool, typer.Option(help="Also time the plain training.")]
Profile = Annotated[Path | None, typer.Option(help="Write a trace for a browser's trace viewer.")]


@bench.command("train")
def train(
    *,
    encoder: Encoder = "timm/wide_resnet50_2.tv_in1k",
    input_size: InputSize = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 4,
    precision: Precision = "fp32",
    update: Annotated[str, typer.Option(help="per_scale or joint.")] = "per_scale",
    device: Device = "auto",
    windows: Windows = 5,
    steps: Steps = 1,
    reference: Reference = True,
    bare: Annotated[bool, typer.Option(help="Also time the step's products and convolutions alone.")] = True,
    cuda_graphs: Annotated[bool, typer.Option(help="On a GPU, replay steps as CUDA graphs, as training does.")] = True,
    profile: Profile = None,
) -> None:
    """Time training steps, from bytes to new weights, beside the plain training."""
    from sanflow.bench.train import bench_train

    found = bench_train(
        encoder=encoder,
        input_size=input_size,
        batch_size=batch_size,
        precision=precision,
        update=update,
        device=device,
        windows=windows,
        steps=steps,
        reference=reference,
        bare=bare,
        cuda_graphs=cuda_graphs,
        profile=profile,
    )
    typer.echo(json.dumps(found, indent=2))


@bench.command("score")
def score(
    *,
    encoder: Encoder = "timm/wide_resnet50_2.tv_in1k",
    input_size: InputSize = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 8,
    precision: Precision = "fp32",
    device: Device = "auto",
    windows: Windows = 5,
    steps: Steps = 1,
    reference: Reference = True,
    profile: Profile = None,
) -> None:
    """Time scoring, from bytes to score grids, beside the plain networks."""
    from sanflow.bench.score import bench_score

    found = bench_score(
        encoder=encoder,
        input_size=input_size,
        batch_size=batch_size,
        precision=precision,
        device=device,
        windows=windows,
        steps=steps,
        reference=reference,
        profile=profile,
    )
    typer.echo(json.dumps(found, indent=2))


@bench.command("coreset")
def coreset(
    *,
    points: Annotated[int, typer.Option(min=2, help="Points to choose from.")] = 204_800,
    dimensions: Annotated[int, typer.Option(min=1, help="Numbers of each point.")] = 128,
    fraction: Annotated[float, typer.Option(min=0, max=1, help="How many of the points are picked.")] = 0.1,
    plain_picks: Annotated[int, typer.Option(min=2, help="Picks of the plain loop that are timed.")] = 40,
    noise: Annotated[bool, typer.Option(help="Points without structure instead of points like patches.")] = False,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of the points.")] = 0,
) -> None:
    """Time PatchCore's choice of patches, and the plain loop beside it."""
    from sanflow.bench.coreset import bench_coreset

    found = bench_coreset(
        points=points,
        dimensions=dimensions,
        fraction=fraction,
        plain_picks=plain_picks,
        noise=noise,
        device=device,
        seed=seed,
    )
    typer.echo(json.dumps(found, indent=2))


@bench.command("memory")
def memory(
    *,
    encoder: Encoder = "timm/wide_resnet50_2.tv_in1k",
    input_size: InputSize = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step, and per batch of scoring.")] = 4,
    precision: Precision = "fp32",
    update: Annotated[str, typer.Option(help="per_scale or joint.")] = "per_scale",
) -> None:
    """Find the memory of a training step and of a batch of scoring, without computing either."""
    from sanflow.bench.memory import bench_memory

    found = bench_memory(
        encoder=encoder, input_size=input_size, batch_size=batch_size, precision=precision, update=update
    )
    typer.echo(json.dumps(found, indent=2))


@bench.command("startup")
def startup(
    repeats: Annotated[int, typer.Option(min=1, help="Starts of each command; medians are printed.")] = 3,
) -> None:
    """Time the start of commands, and name the packages whose imports take longest."""
    from sanflow.bench.startup import bench_startup

    typer.echo(json.dumps(bench_startup(repeats), indent=2))


@bench.command("workflow")
def workflow(
    *,
    run: Annotated[bool, typer.Option(help="Also run the demo; takes minutes.")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="At least so many jobs are planned in a dry run.")] = 1000,
) -> None:
    """Time a demo and a dry run of many jobs; give the share of neither training nor scoring (in a checkout)."""
    from sanflow.bench.workflow import bench_workflow

    typer.echo(json.dumps(bench_workflow(run=run, jobs=jobs), indent=2))


@bench.command("all")
def every(
    *,
    encoder: Encoder = "timm/resnet18.tv_in1k",
    input_size: InputSize = 256,
    precision: Precision = "fp32",
    device: Device = "auto",
    windows: Windows = 3,
) -> None:
    """Measure everything once and print one table, with ratios to the plain reference of each part."""
    from sanflow.bench.table import bench_all, markdown

    rows = bench_all(encoder=encoder, input_size=input_size, precision=precision, device=device, windows=windows)
    typer.echo(markdown(rows))


@bench.command("predict")
def predict(
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(help="sanflow, padim or patchcore; repeat for several.", show_default="all three"),
    ] = None,
    encoder: Annotated[str, typer.Option(help="As in an experiment.")] = "timm/tf_efficientnet_lite0.in1k",
    weights: Annotated[str, typer.Option(help="As in an experiment; speed does not depend on them.")] = "random",
    input_size: InputSize = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once where throughput is measured.")] = 8,
    windows: Windows = 5,
    training_images: Annotated[int, typer.Option(min=4, help="Images of noise that each method is fitted on.")] = 16,
) -> None:
    """Time fitted detectors on the CPU, one image and many, in torch and exported to ONNX."""
    from sanflow.bench.predict import SHORT_FIT, bench_predict

    found = bench_predict(
        methods=list(method or SHORT_FIT),
        encoder=encoder,
        weights=weights,
        input_size=input_size,
        batch_size=batch_size,
        windows=windows,
        training_images=training_images,
    )
    typer.echo(json.dumps(found, indent=2))
