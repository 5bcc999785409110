"""The compact encoder: a small convolutional network that ships with sanflow, distilled from a larger one.

Shapes: B images, C channels, H rows, W columns.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sanflow.errors import WeightsError
from sanflow.files import atomic_path, resource

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
STRIDES = (4, 8, 16)
STEM_WIDTH = 32
WIDTHS = (48, 96, 128)
DEPTHS = (2, 2, 1)
CHANNELS = (32, 64, 96)


class Convolution(nn.Sequential):
    """Convolution, batch norm (while it learns) and ReLU; with stride 1 its input is added before the ReLU."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
        self.residual = stride == 1 and inputs == outputs

    def forward(self, input: Tensor) -> Tensor:
        output = self.norm(self.conv(input))
        return torch.relu(output + input if self.residual else output)


class CompactEncoder(nn.Module):
    """Three stages at strides 4, 8 and 16, each read out by a 1 x 1 convolution.

    Arguments:
        channels: How many features each scale gives.
        batch_norm: True while it learns; a network that ships has its norms folded into the convolutions.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.channels = list(channels)
        self.strides = list(STRIDES)
        self.stem = Convolution(3, STEM_WIDTH, kernel=5, stride=2, batch_norm=batch_norm)
        self.stages = nn.ModuleList()
        self.heads = nn.ModuleList()
        width = STEM_WIDTH
        for outputs, depth, features in zip(WIDTHS, DEPTHS, channels, strict=True):
            down = Convolution(width, outputs, stride=2, batch_norm=batch_norm)
            same = [Convolution(outputs, outputs, batch_norm=batch_norm) for _ in range(depth)]
            self.stages.append(nn.Sequential(down, *same))
            self.heads.append(nn.Conv2d(outputs, features, 1))
            width = outputs

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Features at strides 4, 8 and 16, about unit scale, signed.

        Arguments:
            images_BCHW: RGB, normalised with `MEAN` and `STD`.
        """
        x_BCHW = self.stem(images_BCHW)
        features = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x_BCHW = stage(x_BCHW)
            features.append(head(x_BCHW))
        return features


def folded(encoder: CompactEncoder) -> CompactEncoder:
    """The same function in eval mode without batch norms: each one's scale and shift move into its convolution."""
    result = CompactEncoder(encoder.channels, batch_norm=False)
    state = {name: value for name, value in encoder.state_dict().items() if name.startswith("heads.")}
    for name, module in encoder.named_modules():
        if isinstance(module, Convolution) and isinstance(module.norm, nn.BatchNorm2d):
            norm = module.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            state[f"{name}.conv.weight"] = module.conv.weight * scale[:, None, None, None]
            state[f"{name}.conv.bias"] = norm.bias - norm.running_mean * scale
    result.load_state_dict({name: value.detach() for name, value in state.items()})
    return result.eval()


def save_compact(path: str | Path, encoder: CompactEncoder, card: dict[str, Any]) -> None:
    """Write a learned encoder as float16 safetensors; one encoder and card always give the same bytes.

    Arguments:
        path: The file.
        encoder: With or without batch norms.
        card: What it was made from; kept inside the file.
    """
    if any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        encoder = folded(encoder)
    tensors = {name: value.half().contiguous() for name, value in encoder.state_dict().items()}
    with atomic_path(path) as temporary:
        # One key only: safetensors writes several in an order that changes from run to run.
        save_file(tensors, temporary, metadata={"card": json.dumps(card, sort_keys=True)})


def shipped_weights() -> Path:
    """Where the weights that come with sanflow are."""
    return resource("encoders/compact.safetensors")


def load_compact(path: str | Path | None = None) -> CompactEncoder:
    """Load a compact encoder, ready to use (float32, eval mode).

    Arguments:
        path: A file that `sanflow distill` wrote; None: the one that comes with sanflow.

    Raises:
        WeightsError: If the file is missing, damaged or holds another network.
    """
    path = Path(path) if path is not None else shipped_weights()
    if not path.is_file():
        raise WeightsError(
            f"Expected the compact encoder's weights in {path}, but got no such file. "
            "Reinstall sanflow, or name a file that `sanflow distill` wrote."
        )
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"Expected a safetensors file in {path}, but it cannot be read ({error}). Fetch or distill it again."
        ) from error
    try:
        encoder = CompactEncoder([state[f"heads.{scale}.bias"].numel() for scale in range(len(STRIDES))])
        encoder.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(
            f"Expected a compact encoder in {path}, but its tensors are another network's ({error}). "
            "Name a file that `sanflow distill` wrote."
        ) from error
    return encoder.eval()


def card_of(path: str | Path) -> dict[str, Any]:
    """What a file of `save_compact` says about its making."""
    with safe_open(path, framework="pt") as file:
        return dict(json.loads((file.metadata() or {}).get("card", "{}")))
