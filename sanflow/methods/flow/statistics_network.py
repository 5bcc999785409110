"""The statistics network: it predicts from an image the distribution of the base's variance at every pixel.

Shapes: B images of 3 channels, H x W pixels, 64 hidden channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanflow.device import autocast
from sanflow.methods.flow.batch_norm import BatchNorm2d
from sanflow.methods.flow.distributions import InverseGamma, UnitVariance

HIDDEN_CHANNELS = 64
HIDDEN_LAYERS = 3


class StatisticsNetwork(nn.Module):
    """Image to (ln alpha, ln beta) at image resolution; shared by all scales.

    conv - ReLU - 3 x [conv - BatchNorm - ReLU], plus the first ReLU's output, - conv. All convolutions are 3 x 3,
    zero-padded, without bias.

    Arguments:
        seed: Of the initial weights; the global generator is neither read nor moved. None: draw none, because a state
            will be loaded.

    Example:
        >>> StatisticsNetwork()(torch.zeros(2, 3, 8, 6)).log_alpha.shape
        torch.Size([2, 8, 6])
    """

    def __init__(self, seed: int | None = 0) -> None:
        super().__init__()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.first = _convolution(3, HIDDEN_CHANNELS, generator)
        self.hidden = nn.ModuleList(
            _convolution(HIDDEN_CHANNELS, HIDDEN_CHANNELS, generator) for _ in range(HIDDEN_LAYERS)
        )
        self.norms = nn.ModuleList(BatchNorm2d(HIDDEN_CHANNELS) for _ in range(HIDDEN_LAYERS))
        self.last = _convolution(HIDDEN_CHANNELS, 2, generator)

    def forward(self, images_B3HW: Tensor, stride: tuple[int, int] = (1, 1)) -> InverseGamma:
        """Predict the parameters of every pixel, or of those that a coarser grid reads.

        Arguments:
            images_B3HW: Normalised for the encoder.
            stride: Only every so many rows and columns, from the first, go through the last layer.

        Returns:
            Parameters of shape (B, ceil(H / stride[0]), ceil(W / stride[1])).
        """
        # ReLUs write over their inputs, which no gradient reads.
        first = F.relu(self.first(images_B3HW), inplace=True)
        hidden = first
        for convolution, norm in zip(self.hidden, self.norms, strict=True):
            hidden = F.relu(norm(convolution(hidden)), inplace=True)
        # With 8 bits, neighbouring logarithms differ by percents: the last layer keeps full precision under autocast.
        with autocast("fp32", images_B3HW.device):
            last_in = (hidden + first).to(self.last.weight.dtype)
            log_alpha, log_beta = F.conv2d(last_in, self.last.weight, stride=stride, padding=1).unbind(dim=1)
        return InverseGamma(log_alpha, log_beta)


class FixedBase(nn.Module):
    """The base that does not depend on the image: N(0, I) everywhere."""

    def forward(self, images_B3HW: Tensor, stride: tuple[int, int] = (1, 1)) -> UnitVariance:
        """Return the same base for every image."""
        return UnitVariance()


def _convolution(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Conv2d:
    """Make a 3 x 3 convolution, zero-padded, no bias, torch's default initial weights drawn from `generator`."""
    convolution: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 3, padding=1, bias=False)
    if generator is not None:
        bound = (9 * inputs) ** -0.5
        nn.init.uniform_(convolution.weight, -bound, bound, generator=generator)
    return convolution
