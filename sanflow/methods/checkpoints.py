"""What a trained model is kept in: a literal dict of named parts, with the configuration inside.

The frozen encoder is not among them, only its identity; a model imported with an encoder that cannot be had anywhere
else carries it in `encoder_state`. A digest of the content goes with it, so that a damaged file is noticed.
"""

import dataclasses
import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sanflow.config import Experiment
from sanflow.encoders import Encoder, build_encoder
from sanflow.errors import DataError, IntegrityError, WeightsError
from sanflow.files import atomic_path, require_free_space
from sanflow.methods.flow.model import AnomalyFlow

FORMAT = "sanflow checkpoint 1"
REMEDY = "Delete it and run again; it will be remade."
# What torch.load and zipfile raise on bytes that are not a whole archive of plain values.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    AttributeError,
    TypeError,
    RuntimeError,
    MemoryError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained model and all that is needed to use it.

    Arguments:
        experiment: The configuration it was trained under.
        channels: Channels of each scale, in the order of the flows.
        seed: Seed of the run.
        input_size: (height, width) of the images, in pixels.
        encoder_identity: What decides the features: name, taps, padding, digest of the weights and so on.
        feature_scales: What each scale of the features is divided by; None for nothing.
        model_state: Named tensors of `AnomalyFlow`.
        encoder_state: Named tensors of the encoder, only where they cannot be had elsewhere.
        history: One mapping per epoch, as in train.json.
        provenance: JSON values; where it comes from.
        digest: SHA-256 of all of the above.
    """

    experiment: Experiment
    channels: list[int]
    seed: int
    input_size: tuple[int, int]
    encoder_identity: dict[str, Any]
    feature_scales: list[float] | None
    model_state: dict[str, Tensor]
    encoder_state: dict[str, Tensor] | None
    history: list[dict[str, Any]]
    provenance: dict[str, Any]
    digest: str

    def build_model(self) -> AnomalyFlow:
        """The trained model, on the CPU, in eval mode."""
        model = AnomalyFlow.from_experiment(self.channels, self.experiment, seed=None)
        model.load_state_dict(self.model_state)
        return model.eval()

    def build_encoder(self) -> Encoder:
        """The encoder the model was trained with, on the CPU.

        Raises:
            WeightsError: If its weights cannot be had, or those at hand are others.
        """
        experiment = self.experiment
        with tempfile.TemporaryDirectory() as folder:
            weights: str | Path = experiment.weights
            if self.encoder_state is not None:
                weights = Path(folder) / "encoder.pth"
                torch.save(self.encoder_state, weights)
            encoder = build_encoder(
                str(experiment.encoder),
                weights=weights,
                taps=self.encoder_identity.get("taps"),
                scales=experiment.scales,
                padding=self.encoder_identity.get("padding"),
                feature_scales=self.feature_scales,
                seed=self.encoder_identity.get("seed", 0),
            )
        expected, got = (identity.get("weights_sha256") for identity in (self.encoder_identity, encoder.identity))
        if expected != got:
            raise WeightsError(
                f"Expected the weights of {experiment.encoder} that the model was trained with (sha256 {expected}), "
                f"but got others (sha256 {got}). Give that file as `weights`, or train again."
            )
        return encoder


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    experiment: Experiment,
    encoder_identity: Mapping[str, Any],
    *,
    channels: Sequence[int],
    seed: int,
    input_size: tuple[int, int],
    feature_scales: Sequence[float] | None = None,
    encoder_state: Mapping[str, Tensor] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Write a checkpoint, whole or not at all.

    Arguments:
        path: The file.
        model: An `AnomalyFlow`, or one wrapped so that its state has the same names.
        experiment: Its configuration.
        encoder_identity: `encoder.identity`.
        channels: `encoder.channels`.
        seed: Seed of the run.
        input_size: (height, width) of the images, in pixels.
        feature_scales: What each scale of the features is divided by.
        encoder_state: The encoder's tensors, only where they cannot be had elsewhere.
        history: One mapping per epoch, JSON values.
        provenance: Where it comes from, JSON values.

    Returns:
        The digest of the content, as `load_checkpoint` gives it.

    Raises:
        StorageError: If the disk is full or the folder cannot be written.
    """
    facts = {
        "format": FORMAT,
        "experiment": experiment.model_dump(mode="json"),
        "channels": list(channels),
        "seed": seed,
        "input_size": list(input_size),
        "encoder_identity": dict(encoder_identity),
        "feature_scales": None if feature_scales is None else [float(scale) for scale in feature_scales],
        "history": [dict(epoch) for epoch in history],
        "provenance": dict(provenance or {}),
    }
    facts_json = json.dumps(facts, sort_keys=True)
    model_state = _on_cpu(model.state_dict())
    encoder_tensors = None if encoder_state is None else _on_cpu(encoder_state)
    digest = _content_digest(facts_json, model_state, encoder_tensors)
    content = {
        **json.loads(facts_json),
        "model_state": model_state,
        "encoder_state": encoder_tensors,
        "digest": digest,
    }
    n_bytes = sum(tensor.nbytes for tensor in (*model_state.values(), *(encoder_tensors or {}).values()))
    require_free_space(Path(path).parent, n_bytes, "a checkpoint")
    # Through Python's own file: torch's writer would report a full disk as a RuntimeError without a reason.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
    return digest


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, running no code from it.

    Raises:
        DataError: If there is no such file.
        IntegrityError: If it is damaged, or is no checkpoint of this version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(
            f"Expected a checkpoint at {path}, but there is none. Train first, or import the authors' weights."
        ) from error
    except DAMAGE as error:
        first_line = str(error).split("\n", 1)[0]
        raise IntegrityError(f"Expected a checkpoint in {path}, but it is damaged ({first_line}). {REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format", "without a format") if isinstance(content, dict) else type(content).__name__
        raise IntegrityError(
            f"Expected a file of format {FORMAT!r} in {path}, but got one {found!r}. "
            "A file of the authors' code enters by `sanflow import-official`."
        )
    tensors = {name: content.pop(name, None) for name in ("model_state", "encoder_state")}
    digest = content.pop("digest", None)
    try:
        intact = digest == _content_digest(json.dumps(content, sort_keys=True), **tensors)
    except DAMAGE:  # a name or a value is no longer what it was
        intact = False
    if not intact:
        raise IntegrityError(
            f"Expected the content of {path} to have the digest it carries, but it has another: "
            f"it is damaged or was changed by hand. {REMEDY}"
        )
    content.pop("format")
    try:
        experiment = Experiment.model_validate(content.pop("experiment"))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
        raise IntegrityError(
            f"Expected a configuration of this version of sanflow in {path}, but got {found}. {REMEDY}"
        ) from error
    height, width = content.pop("input_size")
    return Checkpoint(experiment=experiment, input_size=(height, width), digest=digest, **content, **tensors)


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _content_digest(
    facts_json: str, model_state: Mapping[str, Tensor], encoder_state: Mapping[str, Tensor] | None
) -> str:
    digest = hashlib.sha256(facts_json.encode())
    for part, state in (("model", model_state), ("encoder", encoder_state or {})):
        for name in sorted(state):
            tensor = state[name].contiguous()
            digest.update(f"{part} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
