"""The authors' weights: one visible map from their names to ours, and the import of one of their checkpoints.

Their file holds `encoder_state_dict`, a list `decoder_state_dict` with one flow per scale, and `variance`, the
statistics network. Their names appear in this file only.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sanflow.errors import WeightsError

# One coupling block: theirs -> ours. Two names on the right: the columns of the subnet's first layer are split.
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


def statistics_state(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our statistics network's state from theirs.

    Raises:
        WeightsError: If a key is missing or has no place here.
    """
    _require_keys("the statistics network", theirs, STATISTICS_KEYS)
    return {ours: theirs[their] for their, ours in STATISTICS_KEYS.items()}


def flow_state(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our flow's state from theirs; it holds `mixing.order` or `mixing.matrix`, whichever they used.

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
    """Our tensors for one of their keys, in the order of `BLOCK_KEYS`; None where ours does not exist."""
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
    """[order, None] of a permutation matrix, [None, matrix] of another rotation."""
    if not torch.allclose(inverse_CC, matrix_CC.T, atol=1e-5):
        raise WeightsError("Expected w_perm_inv to be the transpose of w_perm, but it is not: the file is damaged.")
    order_C = matrix_CC.argmax(dim=1)
    if torch.equal(matrix_CC, torch.eye(len(order_C), dtype=matrix_CC.dtype)[order_C]) and len(order_C.unique()) == len(
        order_C
    ):
        return [order_C, None]
    if not torch.allclose(matrix_CC @ matrix_CC.T, torch.eye(len(order_C), dtype=matrix_CC.dtype), atol=1e-3):
        raise WeightsError("Expected w_perm to be a permutation or a rotation, but it is neither: the file is damaged.")
    return [None, matrix_CC]


def _require_keys(part: str, theirs: Mapping[str, Tensor], expected: Mapping[str, object]) -> None:
    missing, unknown = sorted(set(expected) - set(theirs)), sorted(set(theirs) - set(expected))
    if missing or unknown:
        raise WeightsError(
            f"Expected the keys of the authors' code in {part}, but {missing or 'none'} are missing and "
            f"{unknown or 'none'} are unknown; check that the file belongs to this method."
        )
