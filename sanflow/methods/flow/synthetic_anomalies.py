"""Synthetic anomalies, drawn on the fly: normal images with a rectangle or disc of another image, or a moved patch.

The few random numbers of a batch are drawn on the host from a separate generator (`draw`); all pixels are painted
in batches on the device (`paint`). So nothing waits for the device, and a drawing depends on its seed only, not on
the device or on earlier drawings.

Shapes: B images, n of them of one kind, C = 3 channels, H x W pixels, G x G the grid of masks, P x Q the largest scar.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sanflow.methods.flow.random_streams import Stream, random_of

KINDS = ("none", "rectangle", "disc", "scar")
GRID = 128
LARGEST_JITTER = 0.2
# An image that a foreign patch is cropped from is this much larger than the patch's own frame.
FOREIGN_ZOOM = 1.5
JITTER_OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass
class Drawing:
    """The random choices of one batch; every list is as long as there are images of its kind.

    Attributes:
        kinds: Index into `KINDS` of each image.
        foreign: For each rectangle and disc, in the order of the batch, which normal image its texture comes from.
        shapes: For each of those its outline on the grid: (kind, centre x, centre y, a, b, angle in radians), with a
            and b half the sides of a rectangle, or a the radius of a disc.
        mask_flips: For each of those whether its mask is mirrored left-right and top-bottom.
        crops: For each of those the top and left of its crop, as fractions of the room there is.
        crop_flips: For each of those whether its texture is mirrored left-right and top-bottom.
        scars: For each scar (height, width, top, left, angle in radians, centre y, centre x), in pixels.
        jitters: For each image that is painted: factors of brightness, contrast, saturation, and shift of hue.
        jitter_order: In which order the four are applied, the same for the batch.
    """

    kinds: list[int]
    foreign: list[int] = field(default_factory=list)
    shapes: list[tuple[int, float, float, float, float, float]] = field(default_factory=list)
    mask_flips: list[tuple[bool, bool]] = field(default_factory=list)
    crops: list[tuple[float, float]] = field(default_factory=list)
    crop_flips: list[tuple[bool, bool]] = field(default_factory=list)
    scars: list[tuple[int, int, int, int, float, float, float]] = field(default_factory=list)
    jitters: list[tuple[float, float, float, float]] = field(default_factory=list)
    jitter_order: list[int] = field(default_factory=lambda: [0, 1, 2, 3])

    @property
    def pasted(self) -> list[int]:
        """Places in the batch of the images with a rectangle or a disc."""
        return [place for place, kind in enumerate(self.kinds) if KINDS[kind] in {"rectangle", "disc"}]

    @property
    def scarred(self) -> list[int]:
        """Places in the batch of the images with a scar."""
        return [place for place, kind in enumerate(self.kinds) if KINDS[kind] == "scar"]


class SyntheticAnomalies:
    """Draws and paints the anomalies of one run.

    Arguments:
        size: Height and width of the images.
        n_images: Normal images that foreign texture can come from.
        seed: Of the run.

    Attributes:
        jitter: Strength of the colour jitter, drawn once per run from U(0, 0.2).

    Example:
        >>> anomalies = SyntheticAnomalies((64, 64), n_images=10, seed=0)
        >>> drawing = anomalies.draw(step=7, batch_size=4)
        >>> images_BCHW = torch.rand(4, 3, 64, 64)
        >>> foreign_nCHW = torch.rand(len(drawing.foreign), 3, 96, 96)
        >>> painted_BCHW, mask_B1HW = anomalies.paint(images_BCHW, foreign_nCHW, drawing)
        >>> mask_B1HW.shape
        torch.Size([4, 1, 64, 64])
    """

    def __init__(self, size: tuple[int, int], n_images: int, seed: int) -> None:
        self.size = size
        self.n_images = n_images
        self.seed = seed
        self.jitter = float(random_of(seed, Stream.JITTER, 0).random() * LARGEST_JITTER)

    @property
    def foreign_size(self) -> tuple[int, int]:
        """Height and width at which `paint` expects the foreign images."""
        return round(self.size[0] * FOREIGN_ZOOM), round(self.size[1] * FOREIGN_ZOOM)

    def draw(self, step: int, batch_size: int) -> Drawing:
        """Draw the random choices of the batch of one step.

        Arguments:
            step: Counted from the start of the training; the same step gives the same drawing.
            batch_size: Number of images.
        """
        random = random_of(self.seed, Stream.ANOMALIES, step)
        drawing = Drawing(kinds=[int(kind) for kind in random.randint(len(KINDS), size=batch_size)])
        for place in range(batch_size):
            kind = KINDS[drawing.kinds[place]]
            if kind == "none":
                continue
            if kind == "scar":
                drawing.scars.append(self._draw_scar(random))
            else:
                drawing.foreign.append(int(random.randint(self.n_images)))
                drawing.shapes.append(_draw_rectangle(random) if kind == "rectangle" else _draw_disc(random))
                drawing.mask_flips.append((bool(random.randint(2)), bool(random.randint(2))))
                drawing.crops.append((random.random_sample(), random.random_sample()))
                drawing.crop_flips.append((bool(random.randint(2)), bool(random.randint(2))))
            brightness, contrast, saturation = 1 + self.jitter * random.uniform(-1, 1, size=3)
            drawing.jitters.append((brightness, contrast, saturation, self.jitter * random.uniform(-1, 1)))
        drawing.jitter_order = [int(place) for place in random.permutation(4)]
        return drawing

    def _draw_scar(self, random: np.random.RandomState) -> tuple[int, int, int, int, float, float, float]:
        height, width = self.size
        scar_height = random.randint(max(height // 128, 1), max(height // 16, 1) + 1)
        scar_width = random.randint(max(width // 64, 1), max(width // 8, 1) + 1)
        top = random.randint(height - scar_height + 1)
        left = random.randint(width - scar_width + 1)
        angle = math.radians(random.uniform(-45, 45))
        half_height, half_width = _half_extent(scar_width / 2, scar_height / 2, angle)
        centre_y = random.uniform(min(half_height, height / 2), max(height - half_height, height / 2))
        centre_x = random.uniform(min(half_width, width / 2), max(width - half_width, width / 2))
        return scar_height, scar_width, top, left, angle, centre_y, centre_x

    def paint(self, images_BCHW: Tensor, foreign_nCHW: Tensor | None, drawing: Drawing) -> tuple[Tensor, Tensor]:
        """Paint the drawing over normal images.

        Arguments:
            images_BCHW: Images in [0, 1].
            foreign_nCHW: The images `drawing.foreign`, of `foreign_size`, in [0, 1]; may be None if there are none.
            drawing: From `draw`.

        Returns:
            New images in [0, 1] and the mask_B1HW in [0, 1] of how much of a pixel is foreign.

        Raises:
            ValueError: If the images are not of `size`, or the foreign ones not of `foreign_size`.
        """
        self._check(images_BCHW, foreign_nCHW, drawing)
        painted_BCHW = images_BCHW.clone()
        mask_B1HW = images_BCHW.new_zeros(len(images_BCHW), 1, *self.size)
        pasted, scarred = drawing.pasted, drawing.scarred
        is_scar = [KINDS[kind] == "scar" for kind in drawing.kinds if KINDS[kind] != "none"]
        if pasted and foreign_nCHW is not None:
            jitters = [jitter for jitter, scar in zip(drawing.jitters, is_scar, strict=True) if not scar]
            mask_n1HW = self._grid_masks(drawing, images_BCHW)
            texture_nCHW = colour_jitter(self._crops(foreign_nCHW, drawing), jitters, drawing.jitter_order)
            for row, place in enumerate(pasted):
                mask_B1HW[place] = mask_n1HW[row]
                painted_BCHW[place] = images_BCHW[place].lerp(texture_nCHW[row], mask_n1HW[row])
        if scarred:
            jitters = [jitter for jitter, scar in zip(drawing.jitters, is_scar, strict=True) if scar]
            for row, place in enumerate(scarred):
                scar = drawing.scars[row]
                texture_CHW, mask_1HW = self._scar(images_BCHW[place], scar, jitters[row], drawing.jitter_order)
                mask_B1HW[place] = mask_1HW
                painted_BCHW[place] = torch.where(mask_1HW > 0, texture_CHW, images_BCHW[place])
        return painted_BCHW, mask_B1HW

    def _check(self, images_BCHW: Tensor, foreign_nCHW: Tensor | None, drawing: Drawing) -> None:
        expected = (len(drawing.kinds), 3, *self.size)
        if tuple(images_BCHW.shape) != expected:
            raise ValueError(f"Expected images of shape {expected}, but got {tuple(images_BCHW.shape)}.")
        expected = (len(drawing.foreign), 3, *self.foreign_size)
        if drawing.foreign and (foreign_nCHW is None or tuple(foreign_nCHW.shape) != expected):
            found = None if foreign_nCHW is None else tuple(foreign_nCHW.shape)
            raise ValueError(f"Expected foreign images of shape {expected}, but got {found}.")

    def _grid_masks(self, drawing: Drawing, like: Tensor) -> Tensor:
        """Draw rectangles and discs: on the grid, blurred as PIL's BLUR, enlarged, mirrored."""
        # One transfer for all numbers; the rest stays on the device.
        numbers_n6 = torch.tensor(drawing.shapes, dtype=like.dtype).to(like.device, non_blocking=True)
        kind, centre_x, centre_y, a, b, angle = (column[:, None, None] for column in numbers_n6.unbind(dim=1))
        cells = torch.arange(GRID, device=like.device, dtype=like.dtype) + 0.5
        dx, dy = cells[None, None, :] - centre_x, cells[None, :, None] - centre_y
        along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        rectangle_nGG = (along.abs() <= a) & (across.abs() <= b)
        disc_nGG = dx.square() + dy.square() <= a.square()
        mask_n1GG = torch.where(kind == KINDS.index("disc"), disc_nGG, rectangle_nGG).to(like.dtype)[:, None]
        mask_n1GG = blur(mask_n1GG)
        mask_n1HW = F.interpolate(mask_n1GG, size=(2 * GRID, 2 * GRID), mode="bicubic", antialias=True).clamp(0, 1)
        if self.size != (2 * GRID, 2 * GRID):
            mask_n1HW = F.interpolate(mask_n1HW, size=self.size, mode="bilinear", antialias=True)
        return _flipped(mask_n1HW, drawing.mask_flips)

    def _crops(self, foreign_nCHW: Tensor, drawing: Drawing) -> Tensor:
        height, width = self.size
        room_y, room_x = foreign_nCHW.shape[2] - height, foreign_nCHW.shape[3] - width
        crops = []
        for image_CHW, (of_y, of_x) in zip(foreign_nCHW, drawing.crops, strict=True):
            top, left = int(of_y * (room_y + 1)), int(of_x * (room_x + 1))
            crops.append(image_CHW[:, top : top + height, left : left + width])
        return _flipped(torch.stack(crops), drawing.crop_flips)

    def _scar(
        self,
        image_CHW: Tensor,
        scar: tuple[int, int, int, int, float, float, float],
        jitter: tuple[float, float, float, float],
        order: list[int],
    ) -> tuple[Tensor, Tensor]:
        """Make a patch of the image, jittered, rotated and placed, hard-edged; also return its place."""
        scar_height, scar_width, top, left, angle, centre_y, centre_x = scar
        patch_CPQ = image_CHW[:, top : top + scar_height, left : left + scar_width]
        patch_CPQ = colour_jitter(patch_CPQ[None], [jitter], order)[0]
        height, width = self.size
        dy = torch.arange(height, device=image_CHW.device, dtype=image_CHW.dtype)[:, None] + (0.5 - centre_y)
        dx = torch.arange(width, device=image_CHW.device, dtype=image_CHW.dtype) + (0.5 - centre_x)
        along = dx * math.cos(angle) + dy * math.sin(angle) + scar_width / 2
        across = dy * math.cos(angle) - dx * math.sin(angle) + scar_height / 2
        inside_HW = (along >= 0) & (along < scar_width) & (across >= 0) & (across < scar_height)
        column = along.floor().long().clamp(0, scar_width - 1)
        row = across.floor().long().clamp(0, scar_height - 1)
        return patch_CPQ[:, row, column], inside_HW[None].to(image_CHW.dtype)


def _draw_rectangle(random: np.random.RandomState) -> tuple[int, float, float, float, float, float]:
    while True:
        long_side, short_side = random.randint(32, 128), random.randint(8, 23)
        angle = math.radians(random.uniform(-90, 90))
        half_height, half_width = _half_extent(long_side / 2, short_side / 2, angle)
        if max(half_height, half_width) < GRID / 2:
            break
    centre_x = random.uniform(half_width, GRID - half_width)
    centre_y = random.uniform(half_height, GRID - half_height)
    return KINDS.index("rectangle"), centre_x, centre_y, long_side / 2, short_side / 2, angle


def _draw_disc(random: np.random.RandomState) -> tuple[int, float, float, float, float, float]:
    centre_x, centre_y = random.uniform(10, 118, size=2)
    return KINDS.index("disc"), centre_x, centre_y, random.uniform(10, 15), 0.0, 0.0


def _half_extent(half_width: float, half_height: float, angle: float) -> tuple[float, float]:
    """Compute half the height and width of the box around a rotated rectangle."""
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    return half_width * sine + half_height * cosine, half_width * cosine + half_height * sine


def _flipped(images_nCHW: Tensor, flips: list[tuple[bool, bool]]) -> Tensor:
    rows = []
    for image_CHW, (left_right, top_bottom) in zip(images_nCHW, flips, strict=True):
        axes = [axis for axis, wanted in ((2, left_right), (1, top_bottom)) if wanted]
        rows.append(image_CHW.flip(axes) if axes else image_CHW)
    return torch.stack(rows)


def blur(mask_n1HW: Tensor) -> Tensor:
    """Blur as PIL's `ImageFilter.BLUR`: the mean of a 5 x 5 ring of 16 pixels; two pixels of border do not change.

    Example:
        >>> mask_11HW = torch.zeros(1, 1, 7, 7)
        >>> mask_11HW[0, 0, 4, 4] = 16.0
        >>> blur(mask_11HW)[0, 0, 2].tolist()
        [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    ring = torch.full((1, 1, 5, 5), 1 / 16, device=mask_n1HW.device, dtype=mask_n1HW.dtype)
    ring[..., 1:4, 1:4] = 0
    blurred = mask_n1HW.clone()
    blurred[..., 2:-2, 2:-2] = F.conv2d(mask_n1HW, ring)
    return blurred


def colour_jitter(images_nCHW: Tensor, factors: list[tuple[float, float, float, float]], order: list[int]) -> Tensor:
    """Change brightness, contrast, saturation and hue, each image by its own factors.

    Arguments:
        images_nCHW: Images in [0, 1].
        factors: For each image the factors of brightness, contrast and saturation (1 changes nothing) and the shift
            of hue as a fraction of the circle (0 changes nothing).
        order: In which order the four operations are applied, places in `JITTER_OPERATIONS`.

    Returns:
        Images in [0, 1], as torchvision's `adjust_*` functions give them.

    Example:
        >>> colour_jitter(torch.full((1, 3, 1, 1), 0.5), [(1.2, 1.0, 1.0, 0.0)], [0, 1, 2, 3]).flatten()
        tensor([0.6000, 0.6000, 0.6000])
    """
    factors_n4 = torch.tensor(factors, dtype=images_nCHW.dtype).to(images_nCHW.device, non_blocking=True)
    brightness, contrast, saturation, hue = (column[:, None, None, None] for column in factors_n4.unbind(dim=1))
    for operation in order:
        if JITTER_OPERATIONS[operation] == "brightness":
            images_nCHW = (images_nCHW * brightness).clamp(0, 1)
        elif JITTER_OPERATIONS[operation] == "contrast":
            mean_n111 = _grey(images_nCHW).mean(dim=(1, 2, 3), keepdim=True)
            images_nCHW = mean_n111.lerp(images_nCHW, contrast).clamp(0, 1)
        elif JITTER_OPERATIONS[operation] == "saturation":
            images_nCHW = _grey(images_nCHW).lerp(images_nCHW, saturation).clamp(0, 1)
        else:
            images_nCHW = _shift_hue(images_nCHW, hue)
    return images_nCHW


def _grey(images_nCHW: Tensor) -> Tensor:
    red, green, blue = images_nCHW.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _shift_hue(images_nCHW: Tensor, shift: Tensor) -> Tensor:
    r"""Turn the hue of HSV. A channel is V (1 - S max(0, min(k, 4 - k, 1))) with k = (n + 6 hue) mod 6, n = 5, 3, 1."""
    largest, smallest = images_nCHW.amax(dim=1), images_nCHW.amin(dim=1)
    chroma = largest - smallest
    red, green, blue = images_nCHW.unbind(dim=1)
    divisor = torch.where(chroma == 0, 1, chroma)
    sixths = torch.where(
        largest == red,
        (green - blue) / divisor,
        torch.where(largest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths = sixths + 6 * shift[:, 0]
    channels = []
    for place in (5, 3, 1):
        k = (place + sixths) % 6
        channels.append(largest - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)
