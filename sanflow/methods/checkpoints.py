"""Write and read checkpoints: a literal dict of named parts, with the settings inside.

The frozen encoder is not among them, only its identity. If an encoder's weights are in no other file, they are kept in
`encoder_state`. A digest of the content is included, so that a damaged file is detected.
"""

import dataclasses
import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from sanflow.encoders import Encoder, build_encoder
from sanflow.errors import DataError, IntegrityError, WeightsError
from sanflow.files import atomic_path, require_free_space
from sanflow.methods.registry import detector_method, methods
from sanflow.provenance import Provenance

FORMAT = "sanflow checkpoint 2"
REMEDY = "Delete it and run again; it will be remade."
# Exceptions of torch.load and zipfile for bytes that are not a complete archive of plain values.
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
    """A fitted detector and everything that is needed to use it.

    Arguments:
        experiment: The settings it was fitted under, of its method's own model.
        input_size: (height, width) of the images, in pixels.
        state: Named tensors of the method.
        constants: Name of a grid -> the constant that calibrates it; empty if the method has none.
        provenance: What it is and where it comes from.
        facts: Other values that the method needs to be built again, JSON values.
        encoder_state: Named tensors of the encoder, only if they are in no other file.
        history: One mapping per epoch, as in train.json.
        held_out: Scores of good parts that the fit did not see (`scores`, `map_maxima` and where they are from); None
            if there are none.
        digest: SHA-256 of all of the above; "" until it was written.
    """

    experiment: Any
    input_size: tuple[int, int]
    state: dict[str, Tensor]
    constants: dict[str, float]
    provenance: Provenance
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    encoder_state: dict[str, Tensor] | None = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    held_out: dict[str, Any] | None = None
    digest: str = ""

    def build_encoder(self) -> Encoder:
        """Build the encoder that the detector was fitted with, on the CPU.

        Raises:
            WeightsError: If its weights cannot be found, or others are found.
        """
        experiment, identity = self.experiment, self.provenance.encoder or {}
        with tempfile.TemporaryDirectory() as folder:
            weights: str | Path = experiment.weights
            if self.encoder_state is not None:
                weights = Path(folder) / "encoder.pth"
                torch.save(self.encoder_state, weights)
            encoder = build_encoder(
                str(experiment.encoder),
                weights=weights,
                taps=identity.get("taps"),
                scales=experiment.scales,
                padding=identity.get("padding"),
                feature_scales=identity.get("feature_scales"),
                tile_size=experiment.tile_size,
                tile_overlap=experiment.tile_overlap,
                seed=identity.get("seed", 0),
            )
        expected, got = (known.get("weights_sha256") for known in (identity, encoder.identity))
        if expected != got:
            raise WeightsError(
                f"Expected the weights of {experiment.encoder} that the detector was fitted with (sha256 {expected}), "
                f"but got others (sha256 {got}). Give that file as `weights`, or train again."
            )
        return encoder


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> str:
    """Write a checkpoint, whole or not at all.

    Returns:
        The digest of the content, as `load_checkpoint` gives it.

    Raises:
        StorageError: If the disk is full or the folder cannot be written.
    """
    facts = {
        "format": FORMAT,
        "experiment": checkpoint.experiment.model_dump(mode="json"),
        "input_size": list(checkpoint.input_size),
        "constants": {name: float(value) for name, value in checkpoint.constants.items()},
        "provenance": checkpoint.provenance.to_dict(),
        "facts": checkpoint.facts,
        "history": checkpoint.history,
        "held_out": checkpoint.held_out,
    }
    facts_json = json.dumps(facts, sort_keys=True)
    state = _on_cpu(checkpoint.state)
    encoder_state = None if checkpoint.encoder_state is None else _on_cpu(checkpoint.encoder_state)
    digest = _content_digest(facts_json, state, encoder_state)
    content = {**json.loads(facts_json), "state": state, "encoder_state": encoder_state, "digest": digest}
    n_bytes = sum(tensor.nbytes for tensor in (*state.values(), *(encoder_state or {}).values()))
    require_free_space(Path(path).parent, n_bytes, "a checkpoint")
    # Write through a Python file, because torch's writer reports a full disk as a RuntimeError without a reason.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
    return digest


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, running no code from it.

    Raises:
        DataError: If there is no such file.
        ConfigError: If it is of a method that is not installed.
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
            f"Expected a file of format {FORMAT!r} in {path}, but got one {found!r}. A file of the authors' code is "
            "read by `method: official`."
        )
    tensors = {name: content.pop(name, None) for name in ("state", "encoder_state")}
    digest = content.pop("digest", None)
    try:
        intact = digest == _content_digest(json.dumps(content, sort_keys=True), **tensors)
    except DAMAGE:  # a name or a value has been changed
        intact = False
    if not intact:
        raise IntegrityError(
            f"Expected the content of {path} to have the digest that it states, but it has another: "
            f"it is damaged or was changed by hand. {REMEDY}"
        )
    height, width = content["input_size"]
    return Checkpoint(
        experiment=_experiment_of(content["experiment"], path),
        input_size=(height, width),
        provenance=Provenance.from_dict(content["provenance"]),
        digest=digest,
        **{name: content[name] for name in ("constants", "facts", "history", "held_out")},
        **tensors,
    )


def _experiment_of(settings: Mapping[str, Any], path: str | os.PathLike[str]) -> Any:
    """Read the settings of a checkpoint into the model of their method."""
    name = str(settings.get("method"))
    if name not in methods():
        raise IntegrityError(
            f"Expected a checkpoint of one of the methods {', '.join(methods())} in {path}, but got one of {name!r}. "
            "Install the package that adds this method."
        )
    try:
        return detector_method(name).settings.model_validate(settings)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
        raise IntegrityError(
            f"Expected a configuration of this version of sanflow in {path}, but got {found}. {REMEDY}"
        ) from error


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _content_digest(facts_json: str, state: Mapping[str, Tensor], encoder_state: Mapping[str, Tensor] | None) -> str:
    digest = hashlib.sha256(facts_json.encode())
    for part, tensors in (("model", state), ("encoder", encoder_state or {})):
        for name in sorted(tensors):
            tensor = tensors[name].contiguous()
            digest.update(f"{part} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
