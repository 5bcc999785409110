"""Measure every part once; one table, with the ratio of each to its plain reference."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sanflow.bench.coreset import bench_coreset
from sanflow.bench.data import bench_data
from sanflow.bench.metrics import bench_metrics
from sanflow.bench.predict import SHORT_FIT, bench_predict
from sanflow.bench.score import bench_score
from sanflow.bench.startup import bench_startup
from sanflow.bench.train import bench_train


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Arguments:
        part: What was measured.
        value: In `unit`.
        unit: Of the value.
        ratio: How many times as fast as the reference; None where there is none.
        reference: What it is compared with.
    """

    part: str
    value: float
    unit: str
    ratio: float | None = None
    reference: str = ""


def bench_all(*, encoder: str, input_size: int, precision: str, device: str, windows: int) -> list[Row]:
    """Measure training, scoring, prediction, metrics, data, start-up and the coreset.

    Arguments:
        encoder: As in an experiment; its weights are random.
        input_size: Height and width.
        precision: `fp32`, `tf32` or `bf16`.
        device: `auto`, `cuda` or `cpu`.
        windows: Timed windows of training and scoring.
    """
    settings: dict[str, Any] = {
        "encoder": encoder,
        "input_size": input_size,
        "precision": precision,
        "device": device,
        "windows": windows,
    }
    return [
        *_training(settings),
        *_scoring(settings),
        *_prediction(encoder, input_size, windows),
        *_metrics(),
        *_data(),
        *_startup(),
        *_coreset(),
    ]


def _training(settings: dict[str, Any]) -> Iterator[Row]:
    for update in ("joint", "per_scale"):
        found = bench_train(**settings, batch_size=4, update=update, bare=False)
        yield Row(
            f"train, {update}", found["images_per_second"], "images/s", found["ratio_to_reference"], "plain training"
        )


def _scoring(settings: dict[str, Any]) -> Iterator[Row]:
    found = bench_score(**settings, batch_size=8)
    yield Row("score", found["images_per_second"], "images/s", found["ratio_to_reference"], "plain networks")


def _prediction(encoder: str, input_size: int, windows: int) -> Iterator[Row]:
    found = bench_predict(
        methods=list(SHORT_FIT),
        encoder=encoder,
        weights="random",
        input_size=input_size,
        batch_size=8,
        windows=windows,
        training_images=8,
    )
    for method, measured in found["methods"].items():
        seconds = measured["torch_milliseconds_of_one_image"] / 1000
        ratio = measured["onnx_milliseconds_of_one_image"] / measured["torch_milliseconds_of_one_image"]
        yield Row(f"predict: {method}, one image", seconds, "s", ratio, "the same exported to ONNX")


def _metrics() -> Iterator[Row]:
    (found,) = bench_metrics(sizes=(256,), repeats=3)["sizes"]
    seconds, loop = found["seconds"], found["threshold_loop"]
    yield Row("metrics: AUPRO", seconds["aupro"], "s", loop["times_slower_than_aupro"], "threshold loop")
    yield Row("metrics: all of pixels", seconds["all_pixel_metrics_in_one_pass"], "s")


def _data() -> Iterator[Row]:
    found = bench_data(n_images=16)
    rates = found["images_per_second"]
    yield Row("data: cache", rates["cache"], "images/s", found["cache_is_faster_by"], "decoding PNG files")


def _startup() -> Iterator[Row]:
    found = bench_startup()
    for command, times in found.items():
        yield Row(f"start: {command}", times["seconds"], "s")


def _coreset() -> Iterator[Row]:
    found = bench_coreset(points=51_200)
    yield Row("coreset", found["seconds"], "s", found["plain"]["seconds"] / found["seconds"], "plain loop")


def markdown(rows: list[Row]) -> str:
    """Format the table.

    Example:
        >>> print(markdown([Row("score", 12.345, "images/s", 2.0, "plain networks")]))
        | part | value | unit | times as fast as | |
        |---|---|---|---|---|
        | score | 12.3 | images/s | 2.0 | plain networks |
    """
    lines = ["| part | value | unit | times as fast as | |", "|---|---|---|---|---|"]
    for row in rows:
        times = "" if row.ratio is None else f"{row.ratio:.1f}"
        lines.append(f"| {row.part} | {row.value:.3g} | {row.unit} | {times} | {row.reference} |")
    return "\n".join(lines)
