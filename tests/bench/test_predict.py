"""The speed of prediction: every number is there, for each method."""

import pytest
import torch
from typer.testing import CliRunner

from sanflow.bench.predict import SHORT_FIT, bench_predict
from sanflow.cli import app
from sanflow.prediction.export_onnx import EXTRA

NUMBERS = {
    "onnx_megabytes",
    *(f"{library}_milliseconds_of_one_image" for library in ("torch", "onnx")),
    *(f"{library}_images_per_second" for library in ("torch", "onnx")),
}


@pytest.fixture(autouse=True)
def extra():
    for name in EXTRA:
        pytest.importorskip(name, reason="needs the extra `onnx`")
    torch.set_num_threads(1)


@pytest.mark.parametrize("method", SHORT_FIT)
@pytest.mark.slow
def test_bench_predict_measures_torch_and_onnx(method):
    found = bench_predict(
        methods=[method],
        encoder="timm/test_efficientnet.r160_in1k",
        weights="random",
        input_size=32,
        batch_size=2,
        windows=1,
        training_images=4,
        scales=2,
    )
    assert set(found["methods"]) == {method}
    assert set(found["methods"][method]) == NUMBERS
    assert all(value > 0 for value in found["methods"][method].values())


def test_unknown_methods_are_refused():
    result = CliRunner().invoke(app, ["bench", "predict", "--method", "padin"])
    assert str(result.exception) == (
        "Expected a method among sanflow, padim, patchcore, but got 'padin'. Did you mean 'padim'?"
    )
