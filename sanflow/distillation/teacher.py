"""What the student learns: a teacher's features, on the student's grids, standardised and reduced.

Shapes: B images, C teacher channels, K kept channels, N locations, H rows, W columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sanflow.encoders.compact import STRIDES
from sanflow.encoders.encoder import Encoder
from sanflow.errors import ConfigError


class AlignedTeacher:
    """A frozen encoder whose grids are cut so that each location looks at the centre of the student's cell.

    A network without padding (SqueezeNet) gives 30 x 30 features of a 128 x 128 image where the student gives
    32 x 32. So the image is first extended by reflection, by the margin that brings the centres together best, and
    each grid is cut.

    Arguments:
        encoder: Gives one feature map per student stride.

    Raises:
        ConfigError: If the encoder has other strides than the student.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder.to(memory_format=torch.channels_last)
        self.mean = torch.tensor(encoder.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(encoder.std).view(1, 3, 1, 1)
        if tuple(encoder.strides) != STRIDES:
            raise ConfigError(
                f"Expected a teacher with features at strides {STRIDES}, as the student's, "
                f"but got {tuple(encoder.strides)}. Choose other layers with --taps."
            )
        self.margin, self.firsts = best_margin(first_centres(encoder))
        self.after = self.margin
        # A network without padding may need more behind the image than before it.
        while any(map_.shape[-1] * stride < 64 for stride, map_ in zip(STRIDES, self._probe(), strict=True)):
            self.after += 1

    def _probe(self) -> list[Tensor]:
        return self(torch.zeros(1, 3, 64, 64))

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> list[Tensor]:
        """Feature maps (B, C, size / stride, size / stride) for the student's strides; images in [0, 1]."""
        margins = (self.margin, self.after) * 2
        x_BCHW = F.pad((images_BCHW - self.mean) / self.std, margins, mode="reflect")
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        grids = []
        for stride, first, features_BCHW in zip(STRIDES, self.firsts, self.encoder(x_BCHW), strict=True):
            last = first + images_BCHW.shape[-1] // stride
            grids.append(features_BCHW[..., first:last, first:last])
        return grids


def first_centres(encoder: Encoder, size: int = 192) -> list[float]:
    """Measure where each feature map looks: the pixel that its location 0 is centred on.

    The centre of a location is the mean of the pixels' places, weighted by the squared gradient of its features for
    them, at the middle of an image of noise; from there the stride leads back to location 0.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, size, size, generator=generator).requires_grad_()
    pixels = torch.arange(size, dtype=torch.float64)
    # The network itself, because an Encoder computes no gradients.
    outputs = encoder.network(images)
    centres = []
    for layout, output in zip(encoder.layouts, outputs, strict=True):
        features_BCHW = layout.to_map(output, (size, size))
        middle = features_BCHW.shape[-1] // 2
        (gradient,) = torch.autograd.grad(features_BCHW[..., middle].pow(2).sum(), images, retain_graph=True)
        weight = gradient.double().pow(2).sum((0, 1, 2))
        centres.append(float((weight * pixels).sum() / weight.sum()) - middle * layout.stride)
    return centres


def best_margin(centres: list[float]) -> tuple[int, list[int]]:
    """The margin of an image that brings a teacher's centres to those of the student's cells, and where grids start.

    Arguments:
        centres: First centre of each teacher grid, in pixels of its input, for the student's strides.

    Returns:
        The margin in pixels; per grid the index of the location for the student's first cell.

    Example:
        >>> best_margin([5.0, 9.0, 17.0])
        (7, [1, 0, 0])
    """
    best: tuple[float, int, list[int]] = (float("inf"), 0, [])
    for margin in range(2 * max(STRIDES) + 1):
        firsts, worst = [], 0.0
        for stride, centre in zip(STRIDES, centres, strict=True):
            wanted = margin + (stride - 1) / 2
            first = max(round((wanted - centre) / stride), 0)
            firsts.append(first)
            worst = max(worst, abs(centre + first * stride - wanted) / stride)
        if worst < best[0] - 1e-3:
            best = (worst, margin, firsts)
    return best[1], best[2]


@dataclass
class Reduction:
    """Affine map of one scale's teacher features to the student's targets: standardise, project, rescale.

    Arguments:
        mean_C, std_C: Of each teacher channel.
        components_CK: Leading eigenvectors of the channels' correlation matrix, each divided by the fourth root of
            its variance (half whitened: strong directions stay stronger, weak ones are not lost in the loss), all
            together scaled to unit mean variance.
        explained: Share of the standardised features' variance within the K components.
    """

    mean_C: Tensor
    std_C: Tensor
    components_CK: Tensor
    explained: float

    def __call__(self, features_BCHW: Tensor) -> Tensor:
        """Targets (B, K, H, W)."""
        weight_KC = (self.components_CK / self.std_C[:, None]).T
        bias_K = -(weight_KC @ self.mean_C)
        return F.conv2d(features_BCHW, weight_KC[..., None, None], bias_K)


def fit_reductions(batches: Iterable[list[Tensor]], channels: list[int]) -> list[Reduction]:
    """Fit one reduction per scale.

    Arguments:
        batches: Lists of feature maps (B, C, H, W), one per scale.
        channels: K of each scale.

    Raises:
        ConfigError: If a scale shall keep more channels than the teacher has.
    """
    counts = [0] * len(channels)
    sums: list[Tensor] = []
    products: list[Tensor] = []
    for maps in batches:
        for scale, features_BCHW in enumerate(maps):
            x_NC = features_BCHW.movedim(1, -1).flatten(0, -2)
            if len(sums) == scale:
                sums.append(torch.zeros(x_NC.shape[1], dtype=torch.float64))
                products.append(torch.zeros(x_NC.shape[1], x_NC.shape[1], dtype=torch.float64))
            counts[scale] += len(x_NC)
            sums[scale] += x_NC.sum(0).double()
            products[scale] += (x_NC.T @ x_NC).double()
    return [_reduction(*parts) for parts in zip(counts, sums, products, channels, strict=True)]


def _reduction(count: int, sum_C: Tensor, product_CC: Tensor, kept: int) -> Reduction:
    if kept > len(sum_C):
        raise ConfigError(
            f"Expected at most {len(sum_C)} channels, which is what the teacher has at this scale, but got {kept}. "
            "Lower --channels."
        )
    mean_C = sum_C / count
    covariance_CC = product_CC / count - torch.outer(mean_C, mean_C)
    # A channel that never fires would divide by zero.
    std_C = covariance_CC.diagonal().clamp(min=1e-8).sqrt()
    variance_C, vectors_CC = torch.linalg.eigh(covariance_CC / torch.outer(std_C, std_C))
    variance_K, vectors_CK = variance_C.flip(0)[:kept].clamp(min=1e-8), vectors_CC.flip(1)[:, :kept]
    # An eigenvector's sign is arbitrary and differs between libraries: make its largest entry positive.
    vectors_CK = vectors_CK * vectors_CK.gather(0, vectors_CK.abs().argmax(0, keepdim=True)).sign()
    scale_K = variance_K**-0.25 / variance_K.sqrt().mean().sqrt()
    explained = float(variance_K.sum() / variance_C.sum())
    return Reduction(mean_C.float(), std_C.float(), (vectors_CK * scale_K).float(), explained)
