"""Batches of augmented crops, a pure function of seed and step, so that a resumed run sees what it would have seen.

Shapes: B images, C = 3 channels, H rows, W columns; values in [0, 1].
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from sanflow.distillation.images import program_image

LUMA = (0.299, 0.587, 0.114)
MOST_MAGNIFIED, MOST_SHRUNK = 0.55, 3.0  # source pixels per crop pixel
LEVELS = 3  # each image is kept at full, half and quarter size, because a crop that shrinks must not alias


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform random numbers in [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


class Crops:
    """Draws crops of photographs and of program-made images, half of each.

    Arguments:
        photographs: uint8 RGB arrays of any size; may be empty.
        n_program_images: How many images a program makes.
        size: Side of a crop in pixels.
        seed: Of the program-made images and of every batch.
        held_out: Draw from the right sixth of the photographs, which training never shows, and from other
            program-made images.
    """

    def __init__(
        self, photographs: Sequence[np.ndarray], n_program_images: int, size: int, seed: int, *, held_out: bool = False
    ) -> None:
        self.size = size
        self.seed = seed + (1_000_003 if held_out else 0)
        edges = [image.shape[1] * 5 // 6 for image in photographs]
        columns = [slice(edge, None) if held_out else slice(edge) for edge in edges]
        parts = [image[:, part] for image, part in zip(photographs, columns, strict=True)]
        self.photographs = [_pyramid(part) for part in parts]
        self.program_images = [
            _pyramid(program_image(self.seed, number, photographs=parts)) for number in range(n_program_images)
        ]
        areas = torch.tensor([min(part.shape[0] * part.shape[1], 512**2) for part in parts], dtype=torch.float64)
        self.chances = areas.sqrt()

    def batch(self, step: int, batch_size: int) -> Tensor:
        """The batch of one step.

        Arguments:
            step: From 0; the same step gives the same batch.
            batch_size: B.

        Returns:
            (B, 3, size, size) in [0, 1].
        """
        entropy = np.random.SeedSequence((self.seed, step)).generate_state(1, np.uint64)[0]
        generator = Generator().manual_seed(int(entropy >> np.uint64(1)))
        images_BCHW = torch.stack([self._crop(generator) for _ in range(batch_size)])
        images_BCHW = _mixed(images_BCHW, generator)
        images_BCHW = _recoloured(images_BCHW, generator)
        return _degraded(images_BCHW, generator).clamp_(0, 1)

    def _crop(self, generator: Generator) -> Tensor:
        """A rotated, scaled, flipped square of one image; reflected where it leaves the image."""
        if self.photographs and (not self.program_images or torch.rand((), generator=generator) < 0.5):
            levels = self.photographs[int(torch.multinomial(self.chances, 1, generator=generator))]
        else:
            levels = self.program_images[int(torch.randint(len(self.program_images), (), generator=generator))]
        height, width = levels[0].shape[1:]
        # Source pixels per crop pixel; no crop shows much more than the whole image.
        largest = max(min(MOST_SHRUNK, 1.2 * min(height, width) / self.size), MOST_MAGNIFIED + 0.01)
        zoom = math.exp(uniform(generator, math.log(MOST_MAGNIFIED), math.log(largest)).item())
        level = min(max(round(math.log2(zoom)), 0), len(levels) - 1)
        angle = uniform(generator, -math.pi, math.pi).item() if torch.rand((), generator=generator) < 0.5 else 0.0
        flip_x, flip_y = (1 - 2 * int(torch.randint(2, (), generator=generator)) for _ in range(2))
        aspect = math.exp(0.15 * torch.randn((), generator=generator).item())
        half_x, half_y = zoom * self.size / width * aspect, zoom * self.size / height / aspect
        centre_x, centre_y = (
            uniform(generator, -max(1 - half, 0), max(1 - half, 0) + 1e-6).item() for half in (half_x, half_y)
        )
        cosine, sine = math.cos(angle), math.sin(angle)
        ratio = height / width
        theta = torch.tensor(
            [
                [flip_x * cosine * half_x, -sine * half_x, centre_x],
                [flip_x * sine * half_x / ratio, flip_y * cosine * half_y, centre_y],
            ]
        )
        grid = F.affine_grid(theta[None], [1, 3, self.size, self.size], align_corners=False)
        return F.grid_sample(levels[level][None], grid, padding_mode="reflection", align_corners=False)[0]


def _pyramid(image: np.ndarray) -> list[Tensor]:
    levels = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255]
    while len(levels) < LEVELS and min(levels[-1].shape[1:]) >= 64:
        levels.append(F.avg_pool2d(levels[-1][None], 2)[0])
    return levels


def _blobs(n: int, size: int, generator: Generator) -> Tensor:
    """Masks (n, 1, size, size) in [0, 1]: smooth noise above a threshold, or a rectangle."""
    masks = torch.zeros(n, 1, size, size)
    for i in range(n):
        if torch.rand((), generator=generator) < 0.5:
            cells = int(torch.randint(3, 7, (), generator=generator))
            noise = F.interpolate(torch.randn(1, 1, cells, cells, generator=generator), (size, size), mode="bicubic")[0]
            sharpness = math.exp(uniform(generator, 0, 3.5).item())
            masks[i] = torch.sigmoid(4 * sharpness * (noise - uniform(generator, 0.2, 1.0)))
        else:
            extent = (uniform(generator, 0.08, 0.7, 2) * size).long().clamp(min=3)
            top, left = (int(torch.randint(size - int(side) + 1, (), generator=generator)) for side in extent)
            masks[i, :, top : top + int(extent[0]), left : left + int(extent[1])] = 1
    return masks


def _lines(n: int, size: int, generator: Generator) -> Tensor:
    """Masks (n, 1, size, size) in [0, 1]: a straight or bent line of one to six pixels."""
    axis = torch.arange(size) - size / 2
    angle = uniform(generator, 0, math.pi, n, 1, 1)
    along = axis[None, :, None] * angle.sin() + axis[None, None, :] * angle.cos()
    across = axis[None, :, None] * angle.cos() - axis[None, None, :] * angle.sin()
    offset, width = uniform(generator, -0.4, 0.4, n, 1, 1) * size, uniform(generator, 0.5, 3, n, 1, 1)
    bend = uniform(generator, -1, 1, n, 1, 1) / size
    ends = uniform(generator, 0.1, 0.7, n, 1, 1) * size
    distance = (across - offset - bend * along * along).abs()
    return ((width + 0.5 - distance).clamp(0, 1) * (ends - along.abs()).clamp(0, 1))[:, None]


def _mixed(images_BCHW: Tensor, generator: Generator) -> Tensor:
    """Give a part of the images a piece of another one, a line, a tint or a blurred spot: unlike things meet."""
    n, _, size, _ = images_BCHW.shape
    kind_B = torch.rand(n, generator=generator)
    donors_BCHW = images_BCHW.roll(1, 0)
    blobs_B1HW, lines_B1HW = _blobs(n, size, generator), _lines(n, size, generator)
    colours_BC11 = torch.rand(n, 3, 1, 1, generator=generator)
    sigma = uniform(generator, 1.0, 4.0).item()
    strength_B111 = uniform(generator, 0.3, 1.0, n, 1, 1, 1)
    result_BCHW = images_BCHW.clone()
    for low, high, mask_B1HW, filling in (
        (0.00, 0.20, blobs_B1HW, lambda chosen: donors_BCHW[chosen]),
        (0.20, 0.30, lines_B1HW * strength_B111, lambda chosen: colours_BC11[chosen]),
        (0.30, 0.37, blobs_B1HW * strength_B111, lambda chosen: colours_BC11[chosen]),
        (0.37, 0.44, blobs_B1HW, lambda chosen: _gaussian_blur(images_BCHW[chosen], sigma)),
    ):
        chosen = (kind_B >= low) & (kind_B < high)
        if chosen.any():
            result_BCHW[chosen] += mask_B1HW[chosen] * (filling(chosen) - images_BCHW[chosen])
    return result_BCHW


def _recoloured(images_BCHW: Tensor, generator: Generator) -> Tensor:
    """Brightness, contrast, gamma, saturation and white balance; four in ten lose their colour, a few are inverted."""
    n = len(images_BCHW)
    luma = torch.tensor(LUMA)[None, :, None, None]
    grey_B1HW = (images_BCHW * luma).sum(1, keepdim=True)
    saturation = uniform(generator, 0, 1.4, n, 1, 1, 1)
    saturation[torch.rand(n, generator=generator) < 0.4] = 0
    balance = 1 + 0.15 * torch.randn(n, 3, 1, 1, generator=generator) * (saturation > 0)
    images_BCHW = (grey_B1HW + saturation * (images_BCHW - grey_B1HW)) * balance
    inverted = torch.rand(n, generator=generator) < 0.08
    images_BCHW[inverted] = 1 - images_BCHW[inverted]
    images_BCHW = images_BCHW.clamp(1e-4, 1) ** torch.exp(0.35 * torch.randn(n, 1, 1, 1, generator=generator))
    mean = images_BCHW.mean((1, 2, 3), keepdim=True)
    contrast = torch.exp(0.4 * torch.randn(n, 1, 1, 1, generator=generator)).clamp(0.25, 2.5)
    shift = 0.12 * torch.randn(n, 1, 1, 1, generator=generator)
    return mean + contrast * (images_BCHW - mean) + shift


def _degraded(images_BCHW: Tensor, generator: Generator) -> Tensor:
    """Blur a fifth of the images, add noise to a fifth."""
    n = len(images_BCHW)
    blur, noise = torch.rand(2, n, generator=generator) < 0.2
    sigma = uniform(generator, 0.4, 2.0).item()
    if blur.any():
        images_BCHW[blur] = _gaussian_blur(images_BCHW[blur], sigma)
    amount = uniform(generator, 0.0, 0.1, int(noise.sum()), 1, 1, 1)
    images_BCHW[noise] += amount * torch.randn(images_BCHW[noise].shape, generator=generator)
    return images_BCHW


def _gaussian_blur(images_BCHW: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None, None]
    # As images of one channel: torch's grouped convolutions are many times slower on a CPU.
    planes = F.pad(images_BCHW, (radius,) * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(planes, kernel), kernel.transpose(2, 3)).view_as(images_BCHW)
