"""Commands that use a fitted detector: `predict`, `calibrate`, `submission` and `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sanflow.cli.options import RunArgument

CheckpointArgument = Annotated[Path, typer.Argument(help="checkpoint.pt of a run.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda (stops where there is none) or cpu.")]
UNREADABLE_EXIT_CODE = 3

console = Console(stderr=True, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.command()(predict)
    app.command()(calibrate)
    app.command()(submission)
    app.command()(export)


def predict(
    checkpoint: CheckpointArgument,
    images: Annotated[list[Path], typer.Argument(help="Images or folders, searched recursively.")],
    *,
    output: Annotated[Path, typer.Option(help="Folder for predictions.csv, maps and overlays.")],
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Share of good parts that may be called anomalous; needs held-out parts.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Score above which a part is anomalous.")] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Also write anomaly maps, TIFF of 32-bit floats.")] = False,
    overlays: Annotated[bool, typer.Option("--overlays", help="Also write images with heat map and outline.")] = False,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 8,
) -> None:
    """Score new images with a fitted detector.

    A killed run resumes when the same command is given again. The exit code is 3 if an image could not be read.
    """
    from sanflow.evaluation.conformal import expected_rate, number_of_parts, rate_interval
    from sanflow.prediction.detector import load_detector
    from sanflow.prediction.predict import Wanted, decision_of, image_files
    from sanflow.prediction.predict import predict as run

    files = image_files(images)
    detector = load_detector(checkpoint, device)
    decision = decision_of(detector, false_alarm_rate, threshold)
    if false_alarm_rate is not None and detector.held_out is not None:
        n = number_of_parts(detector.held_out, detector.held_out_parts)
        expected = 100 * expected_rate(false_alarm_rate, n)
        low, high = (100 * rate for rate in rate_interval(false_alarm_rate, n))
        console.print(
            f"Threshold {decision.score:.6g} from {n} held-out good parts: {expected:.1f} % false alarms on average "
            f"over such sets; for this one, between {low:.1f} and {high:.1f} % (95 %). Not valid after a "
            "change of light or camera.",
            highlight=False,
        )
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=len(files))
        outcome = run(
            detector,
            files,
            output,
            decision,
            wanted=Wanted(maps, overlays),
            batch_size=batch_size,
            report=lambda done: bar.update(task, completed=done),
        )
    speed = "" if outcome.images_per_second is None else f", {outcome.images_per_second:.1f} images/s"
    typer.echo(f"{outcome.anomalous} of {outcome.images} images are anomalous{speed}: {output / 'predictions.csv'}")
    if outcome.other_aspect:
        console.print(
            f"Warning: {outcome.other_aspect} images have another aspect ratio than the training images; they were "
            "squashed to the input size anyway.",
            highlight=False,
        )
    for file in outcome.unreadable:
        console.print(f"Unreadable: {file}", highlight=False, markup=False)
    if outcome.unreadable:
        raise typer.Exit(UNREADABLE_EXIT_CODE)


def calibrate(
    checkpoint: CheckpointArgument,
    images: Annotated[list[Path], typer.Argument(help="Images of good parts that the fit has not seen, or folders.")],
    *,
    output: Annotated[
        Path | None, typer.Option(help="Checkpoint to write.", show_default="the checkpoint itself")
    ] = None,
    part_pattern: Annotated[
        str | None,
        typer.Option(help="Several photographs of one part: regular expression that finds its name in a path."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Calibrate a fitted detector on new good parts, as after a change of light; nothing is trained again."""
    from sanflow.prediction.calibration import NOTABLE_P, calibrate_on_files
    from sanflow.prediction.predict import image_files

    files, target = image_files(images), output or checkpoint
    n, p = calibrate_on_files(checkpoint, files, target, device=device, part_pattern=part_pattern)
    typer.echo(f"{n} good parts calibrate {target}; its smallest p-value is 1 / {n + 1}.")
    if p is not None and p < NOTABLE_P:
        console.print(
            f"Warning: the scores of these parts differ from the old held-out ones (two-sample test: p = {p:.2g}). "
            "Check light, camera and position; if the change is permanent, train again on such parts.",
            highlight=False,
        )


def submission(
    run: RunArgument,
    *,
    output: Annotated[Path, typer.Option(help="Folder of the submission, the same for all eight categories.")],
    false_alarm_rate: Annotated[
        float,
        typer.Option(help="Share of good images of the validation's light that may have a pixel called anomalous."),
    ] = 0.05,
    device: DeviceOption = "auto",
) -> None:
    """Score the private test sets of MVTec AD 2 with a run's detector, in the form that its server takes.

    Give the command once per category, then run MVTec's check_and_prepare_data_for_upload.py on the folder.
    """
    from rich.progress import track

    from sanflow.data.index import index_of_run, read_index
    from sanflow.prediction.detector import load_detector
    from sanflow.prediction.predict import decision_of
    from sanflow.prediction.submission import private_images, write_submission

    index = read_index(index_of_run(run))
    files = private_images(index)
    detector = load_detector(run / "checkpoint.pt", device)
    level = decision_of(detector, false_alarm_rate, None).map_level
    assert level is not None  # it is known where held-out parts are
    written = write_submission(detector, index.category, files, output, level)
    total = sum(map(len, files.values()))
    shown = track(written, "Private test sets", total, console=console, disable=not console.is_terminal)
    typer.echo(f"{sum(1 for _ in shown)} images of {index.category} -> {output}")


def export(
    checkpoint: CheckpointArgument,
    *,
    file_format: Annotated[Literal["onnx"], typer.Option("--format", help="Format of the file.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="the checkpoint's name with .onnx")
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            help="Image or folder to compare torch and the file on, such as training images; repeat for several.",
            show_default="random images",
        ),
    ] = None,
    most_images: Annotated[int, typer.Option(min=1, help="At most so many of the images, evenly spread.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once in the comparison.")] = 8,
) -> None:
    """Write a fitted detector as one ONNX file, after a comparison with torch."""
    from sanflow.methods.flow.detector import evenly_spread
    from sanflow.prediction.export_onnx import export_onnx, load_for_export, random_images
    from sanflow.prediction.predict import batches_of, image_files

    detector = load_for_export(checkpoint)
    target = output or checkpoint.with_suffix(f".{file_format}")
    images_NHW3, what = random_images(detector.input_size), "random images (give real ones with --check)"
    if check:
        files = image_files(check)
        chosen = [files[place] for place in evenly_spread(len(files), most_images)]
        (images_NHW3,), what = batches_of(detector, chosen, len(chosen)), "images"
    found = export_onnx(detector, target, images_NHW3, batch_size)
    typer.echo(
        f"{target}: differs from torch by at most {found.largest_difference:.1e} of the map's range on {found.images} "
        f"{what}; onnxruntime {found.onnx_images_per_second:.1f} images/s, torch {found.torch_images_per_second:.1f} "
        "images/s."
    )
