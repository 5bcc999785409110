"""A fitted detector as an MLflow model: images in, anomaly scores and maps out. MLflow keeps and executes this file.

`mlflow.pyfunc.load_model("models:/<id>").predict(images_NHW3)` takes uint8 RGB images of the model's own size and gives
`score` (N,) and `map` (N, H, W); higher is more anomalous.
"""

from typing import Any

import mlflow
import numpy as np


class AnomalyModel(mlflow.pyfunc.PythonModel):
    """The detector of a checkpoint, as `sanflow.load_detector` gives it."""

    def load_context(self, context: Any) -> None:
        """Build the detector from the checkpoint in the model's artifacts."""
        from sanflow import load_detector

        self.detector = load_detector(context.artifacts["checkpoint"])

    # Without type hints: MLflow would take them for a schema, and the signature is one already.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Score images_NHW3 (uint8)."""
        images_NHW3, (height, width) = np.asarray(model_input), self.detector.input_size
        if images_NHW3.shape[1:] != (height, width, 3) or images_NHW3.dtype != np.uint8:
            raise ValueError(
                f"Expected uint8 images of shape (n, {height}, {width}, 3), but got {images_NHW3.dtype} "
                f"of shape {images_NHW3.shape}. Resize them as in training."
            )
        batch = self.detector.score(images_NHW3)
        return {"score": batch.scores_B.astype(np.float32), "map": batch.maps_BHW.astype(np.float32)}


mlflow.models.set_model(AnomalyModel())
