"""A fitted detector as an MLflow model: images in, anomaly scores and maps out. MLflow keeps and executes this file.

`mlflow.pyfunc.load_model("models:/<id>").predict(images_NHW3)` takes uint8 RGB images of the model's own size and gives
`score` (N,) and `map` (N, H, W); higher is more anomalous.
"""

from typing import Any

import mlflow
import numpy as np


class AnomalyModel(mlflow.pyfunc.PythonModel):
    """The detector of a checkpoint."""

    def load_context(self, context: Any) -> None:
        """Build the detector from the checkpoint in the model's artifacts."""
        from sanflow.methods.checkpoints import load_checkpoint
        from sanflow.methods.registry import detector_method

        checkpoint = load_checkpoint(context.artifacts["checkpoint"])
        self.detector = detector_method(checkpoint.experiment.method).load(checkpoint, "auto")

    # Without type hints: MLflow would take them for a schema, and the signature is one already.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Score images_NHW3 (uint8)."""
        import torch

        from sanflow.anomaly_maps.maps import anomaly_maps, image_scores
        from sanflow.anomaly_maps.scores_file import Scores
        from sanflow.device import repeatable

        images_NHW3, size = np.asarray(model_input), self.detector.input_size
        if images_NHW3.shape[1:] != (*size, 3) or images_NHW3.dtype != np.uint8:
            raise ValueError(
                f"Expected uint8 images of shape (n, {size[0]}, {size[1]}, 3), but got {images_NHW3.dtype} "
                f"of shape {images_NHW3.shape}. Resize them as in training."
            )
        # As the run's own scores were made, without keeping the memory of a server.
        with repeatable(seconds_matter=False):
            output = self.detector(torch.from_numpy(images_NHW3.copy()))
        names = [str(number) for number in range(len(images_NHW3))]
        scores = Scores(
            kind=self.detector.kind,
            grids={name: grid.float().cpu().numpy() for name, grid in output.grids.items()},
            constants=dict(self.detector.constants),
            paths=names,
            labels=np.zeros(len(names), bool),
            defect_types=names,
            input_size=size,
            image_scores=None if output.image_scores is None else output.image_scores.float().cpu().numpy(),
        )
        maps_NHW = anomaly_maps(scores, size)
        return {"score": image_scores(maps_NHW, scores).astype(np.float32), "map": maps_NHW}


mlflow.models.set_model(AnomalyModel())
