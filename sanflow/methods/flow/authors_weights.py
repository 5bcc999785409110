"""Import a checkpoint of the authors, by an explicit map from their names to ours.

Their file holds `encoder_state_dict`, a list `decoder_state_dict` with one flow per scale, and `variance`, the
statistics network. Their names appear in this file only.
"""

import dataclasses
import logging
import os
import pickle
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanflow.data.images import load_images
from sanflow.device import choose_device, device_name, placed, repeatable, usable_precision
from sanflow.encoders import Encoder, build_encoder
from sanflow.encoders.weights import why_unreadable
from sanflow.errors import WeightsError
from sanflow.files import sha256_of_file
from sanflow.methods.cost import Cost
from sanflow.methods.fit import FitFiles
from sanflow.methods.flow.detector import measure_constants
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.settings import OfficialExperiment
from sanflow.methods.method import FitJob

logger = logging.getLogger(__name__)

ENCODER, FLOWS, STATISTICS = "encoder_state_dict", "decoder_state_dict", "variance"

# One coupling block: theirs -> ours. Two names on the right mean that the columns of the first layer are split.
BLOCK_KEYS: dict[str, tuple[str, ...]] = {
    "global_scale": ("global_scale",),
    "global_offset": ("global_offset",),
    "w_perm": ("mixing.order", "mixing.matrix"),  # a permutation is read as an index, anything else as a rotation
    "w_perm_inv": (),  # dropped: it is the transpose of w_perm, which is checked
    "subnet.0.weight": ("subnet.features_weight", "subnet.condition_weight"),
    "subnet.0.bias": ("subnet.hidden_bias",),
    "subnet.2.weight": ("subnet.output_weight",),
    "subnet.2.bias": ("subnet.output_bias",),
}
THEIR_BLOCK = re.compile(r"module_list\.(\d+)\.(.+)")
OUR_BLOCK = "blocks.module_list.{block}.{name}"

BATCH_NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
STATISTICS_KEYS: dict[str, str] = {
    "layer1.weight": "first.weight",
    **{f"dncnn.{3 * layer}.weight": f"hidden.{layer}.weight" for layer in range(3)},
    **{f"dncnn.{3 * layer + 1}.{key}": f"norms.{layer}.{key}" for layer in range(3) for key in BATCH_NORM_KEYS},
    "last_layer.weight": "last.weight",
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """One of the authors' checkpoints in our terms.

    Arguments:
        model: The flows and the statistics network, in eval mode.
        encoder: The encoder of their file, or the equal pretrained one.
        encoder_state: Their encoder's tensors if the pretrained ones are not found or differ; else None.
        report: The parts that were read and those that were not, JSON values.
    """

    model: AnomalyFlow
    encoder: Encoder
    encoder_state: dict[str, Tensor] | None
    report: dict[str, Any]


def fit(job: FitJob) -> None:
    """Import the authors' file of a category instead of training: method `official`.

    The constants that calibrate the scores are measured on the training images.

    Raises:
        WeightsError: If the file is missing or damaged, or does not fit the experiment.
    """
    device = choose_device(job.device)
    cost = Cost(device)
    precision = usable_precision(job.experiment.precision, device)
    files = FitFiles(job, device_name(device), precision)
    path = job.experiment.files_for(job.index.dataset, job.index.category)["official_weights"]
    with repeatable():
        with cost.phase("setup"):
            imported = import_official(path, job.experiment)
        parameters = sum(parameter.numel() for parameter in imported.model.parameters())
        files.introduce({"parameters": parameters})
        images_NHW3 = load_images(job.training, "train", job.input_size, cache=job.cache)
        model, encoder = placed(imported.model, device), placed(imported.encoder, device)
        files.write_checkpoint(
            job.outputs.checkpoint,
            model.state_dict(),
            constants=measure_constants(model, encoder, images_NHW3, job.input_size, precision),
            encoder=encoder,
            encoder_state=imported.encoder_state,
            facts={"channels": encoder.channels},
            details={"import": imported.report},
        )
    files.write_record(cost, {"parameters": parameters, "import": imported.report, "encoder": encoder.identity})
    report = imported.report
    logger.info("%s: encoder %s, %s.", path, report["encoder"], report.get("why", "nothing kept of it"))
    for key in report["unused_keys"]:
        logger.info("  unused: %s", key)


def import_official(path: str | os.PathLike[str], experiment: OfficialExperiment) -> Imported:
    """Read a checkpoint of the authors' code as the model that `experiment` describes; no code of it is run.

    Arguments:
        path: Their file for one category.
        experiment: Its encoder, scales, position channels, coupling blocks, permutation and base must be theirs.

    Raises:
        WeightsError: If the file is missing or damaged, or does not fit the experiment; says where.
    """
    content = _read(path)
    parts = {ENCODER, FLOWS} | ({STATISTICS} if experiment.base == "predicted" else set())
    if missing := sorted(parts - set(content)):
        raise WeightsError(
            f"Expected the keys {sorted(parts)} in {path}, but {missing} are missing; it has "
            f"{sorted(map(str, content))}. Check that the file is a checkpoint of the authors' code."
        )
    flows = [flow_state(theirs) for theirs in content[FLOWS]]
    _require_experiment(experiment, flows)
    encoder, encoder_state, encoder_report = _import_encoder(content[ENCODER], experiment)
    first_scale = OUR_BLOCK.format(block=0, name="global_scale")
    _require_equal("channels", encoder.channels, [len(flow[first_scale]) for flow in flows])

    state = {f"flows.{scale}.{key}": value for scale, flow in enumerate(flows) for key, value in flow.items()}
    if STATISTICS in parts:
        state |= {f"base.{key}": value for key, value in statistics_state(content[STATISTICS]).items()}
    model = AnomalyFlow.from_experiment(encoder.channels, experiment, seed=None)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"Expected weights that fit the experiment in {path}, but {error}") from error
    report = {
        "file": str(path),
        "file_sha256": sha256_of_file(path),
        "unused_keys": sorted(str(key) for key in set(content) - parts)
        + sorted(f"{ENCODER}.{key}" for key in encoder_report.pop("ignored"))
        + [f"{FLOWS}[{scale}].{key}" for scale, flow in enumerate(content[FLOWS]) for key in flow if _dropped(key)],
        **encoder_report,
    }
    return Imported(model.eval(), encoder, encoder_state, report)


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(
            f"Expected the authors' weights at {path}, but there is no such file. Check `official_weights`."
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"Expected {path} to be a whole file of tensors and nothing else, but reading it failed: "
            f"{why_unreadable(path, error)} Fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"Expected a dictionary of named parts in {path}, but got a {type(content).__name__}.")
    return content


def _import_encoder(
    theirs: dict[str, Tensor], experiment: OfficialExperiment
) -> tuple[Encoder, dict[str, Tensor] | None, dict[str, Any]]:
    """Import the encoder; also return its tensors if a checkpoint must contain them, and a report."""
    settings: dict[str, Any] = {
        "taps": experiment.taps,
        "scales": experiment.scales,
        "padding": experiment.padding,
        "tile_size": experiment.tile_size,
        "tile_overlap": experiment.tile_overlap,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "encoder.pth"
        torch.save(theirs, file)
        encoder = build_encoder(str(experiment.encoder), weights=file, **settings)
    own_digest = encoder.identity["weights_sha256"]
    report = {"ignored": encoder.identity.get("ignored", []), "encoder_sha256": own_digest}
    try:
        reference = build_encoder(str(experiment.encoder), weights=experiment.weights, **settings)
    except WeightsError as error:
        return encoder, theirs, report | {"encoder": "from the file", "why": f"no other is at hand: {error}"}
    if (digest := reference.identity["weights_sha256"]) == own_digest:
        return reference, None, report | {"encoder": "equal to the pretrained one"}
    why = f"{experiment.weights} weights of {experiment.encoder} differ: sha256 {digest}"
    return encoder, theirs, report | {"encoder": "from the file", "why": why}


def _require_experiment(experiment: OfficialExperiment, flows: list[dict[str, Tensor]]) -> None:
    """Compare the architecture that the flows' names and shapes show with the experiment's."""
    first_condition = OUR_BLOCK.format(block=0, name="subnet.condition_weight")
    mixings = {key.rsplit(".", 1)[1] for flow in flows for key in flow if ".mixing." in key}
    _require_equal(
        "position_channels",
        [experiment.position_channels],
        sorted({flow[first_condition].shape[1] for flow in flows}),
    )
    _require_equal(
        "coupling_blocks",
        [experiment.coupling_blocks],
        sorted({sum(key.endswith(".global_scale") for key in flow) for flow in flows}),
    )
    _require_equal(
        "permutation",
        [experiment.permutation],
        sorted({"order": "index", "matrix": "rotation"}[key] for key in mixings),
    )


def _require_equal(name: str, expected: list[Any], theirs: list[Any]) -> None:
    if theirs != expected:
        raise WeightsError(
            f"Expected {name} {expected} as the experiment says, but the authors' file has {theirs}. "
            "Change the experiment, or give the file that belongs to it."
        )


def _dropped(key: str) -> bool:
    match = THEIR_BLOCK.fullmatch(key)
    return match is not None and not BLOCK_KEYS[match[2]]


def statistics_state(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert their statistics network's state to ours.

    Raises:
        WeightsError: If a key is missing or has no place here.
    """
    _require_keys("the statistics network", theirs, STATISTICS_KEYS)
    return {ours: theirs[their] for their, ours in STATISTICS_KEYS.items()}


def flow_state(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert their flow's state to ours, with `mixing.order` or `mixing.matrix`, whichever they used.

    Raises:
        WeightsError: If a key is missing or has no place here, or a mixing is neither a permutation nor a rotation.
    """
    blocks: dict[int, dict[str, Tensor]] = {}
    for key, value in theirs.items():
        match = THEIR_BLOCK.fullmatch(key)
        if match is None:
            raise WeightsError(f"Expected keys module_list.<block>.<name> in a flow, but got {key!r}.")
        blocks.setdefault(int(match[1]), {})[match[2]] = value
    if sorted(blocks) != list(range(len(blocks))):
        raise WeightsError(f"Expected coupling blocks 0, 1, ... in a flow, but got {sorted(blocks)}.")
    ours = {}
    for block, values in sorted(blocks.items()):
        _require_keys(f"coupling block {block}", values, BLOCK_KEYS)
        for their, names in BLOCK_KEYS.items():
            for name, tensor in zip(names, _converted(their, values), strict=True):
                if tensor is not None:
                    ours[OUR_BLOCK.format(block=block, name=name)] = tensor
    return ours


def _converted(their: str, block: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Convert one of their keys to our tensors, in the order of `BLOCK_KEYS`; None where ours does not exist."""
    value = block[their]
    if their in {"global_scale", "global_offset"}:
        return [value.flatten()]
    if their == "w_perm":
        return _mixing(value, block["w_perm_inv"])
    if their == "w_perm_inv":
        return []
    if their == "subnet.0.weight":
        channels = block["w_perm"].shape[0]
        return list(value.split([channels - channels // 2, value.shape[1] - channels + channels // 2], dim=1))
    return [value]


def _mixing(matrix_CC: Tensor, inverse_CC: Tensor) -> list[Tensor | None]:
    """Return [order, None] of a permutation matrix, [None, matrix] of another rotation."""
    if not torch.allclose(inverse_CC, matrix_CC.T, atol=1e-5):
        raise WeightsError("Expected w_perm_inv to be the transpose of w_perm, but it is not: the file is damaged.")
    identity_CC = torch.eye(len(matrix_CC), dtype=matrix_CC.dtype)
    order_C = matrix_CC.argmax(dim=1)
    if torch.equal(matrix_CC, identity_CC[order_C]) and len(order_C.unique()) == len(order_C):
        return [order_C, None]
    if not torch.allclose(matrix_CC @ matrix_CC.T, identity_CC, atol=1e-3):
        raise WeightsError("Expected w_perm to be a permutation or a rotation, but it is neither: the file is damaged.")
    return [None, matrix_CC]


def _require_keys(part: str, theirs: Mapping[str, Tensor], expected: Mapping[str, object]) -> None:
    missing, unknown = sorted(set(expected) - set(theirs)), sorted(set(theirs) - set(expected))
    if missing or unknown:
        raise WeightsError(
            f"Expected the keys of the authors' code in {part}, but {missing or 'none'} are missing and "
            f"{unknown or 'none'} are unknown; check that the file belongs to this method."
        )
