"""A trained run as an MLflow model: images in, anomaly scores and maps out. MLflow keeps and executes this file.

`mlflow.pyfunc.load_model("models:/<id>").predict(images_NHW3)` takes bytes in RGB of the model's own size and gives
`score` (N,) and `map` (N, H, W); higher is more anomalous.
"""

from typing import Any

import mlflow
import numpy as np


class AnomalyModel(mlflow.pyfunc.PythonModel):
    """The checkpoint with the constants that calibrate its scales."""

    def load_context(self, context: Any) -> None:
        """Read the checkpoint and the constants that lie in the model's artifacts."""
        from sanflow.anomaly_maps.scores_file import Scores
        from sanflow.device import choose_device
        from sanflow.methods.checkpoints import load_checkpoint
        from sanflow.scoring import Scorer

        checkpoint = load_checkpoint(context.artifacts["checkpoint"])
        scores = Scores.load(context.artifacts["scores"])
        self.scorer = Scorer.of(checkpoint, choose_device("auto"), 8)
        self.constants = [scores.constants[name] for name in scores.grids]
        self.size = checkpoint.input_size

    # Without type hints: MLflow would take them for a schema, and the signature is one already.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Score images_NHW3 (uint8)."""
        from sanflow.anomaly_maps.fusion import calibrated, image_scores
        from sanflow.device import repeatable

        images_NHW3 = np.asarray(model_input)
        if images_NHW3.shape[1:] != (*self.size, 3) or images_NHW3.dtype != np.uint8:
            raise ValueError(
                f"Expected uint8 images of shape (n, {self.size[0]}, {self.size[1]}, 3), but got {images_NHW3.dtype} "
                f"of shape {images_NHW3.shape}. Resize them as in training."
            )
        # As the run's own scores were made; the memory of a server is its own affair.
        with repeatable(seconds_matter=False):
            grids = self.scorer.grids(images_NHW3, "scoring")
        maps_NHW = calibrated(grids, self.constants, self.size)
        return {"score": image_scores(maps_NHW), "map": maps_NHW}


mlflow.models.set_model(AnomalyModel())
