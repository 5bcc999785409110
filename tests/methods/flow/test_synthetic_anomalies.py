"""Synthetic anomalies: as Pillow draws them, with the chances and sizes of the method, from the seed alone."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as T

from sanflow.methods.flow.synthetic_anomalies import GRID, KINDS, SyntheticAnomalies, blur, colour_jitter
from tests.reference import plain_anomalies

SIZES = [(128, 128), (256, 256), (96, 160)]


def images(n: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth uint8 colour images (n, H, W, 3)."""
    random = np.random.RandomState(seed)
    coarse = torch.from_numpy(random.rand(n, 3, 9, 9).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
    return (smooth * 255).round().byte().permute(0, 2, 3, 1).numpy()


def tensor(images_NHW3: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images_NHW3).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_painted_as_pillow_paints(size):
    anomalies = SyntheticAnomalies(size, n_images=5, seed=1)
    normal, foreign = images(8, size), images(5, anomalies.foreign_size, seed=2)
    seen = set()
    for step in range(4):
        drawing = anomalies.draw(step, 8)
        chosen = tensor(foreign[drawing.foreign])
        painted_BCHW, mask_B1HW = anomalies.paint(tensor(normal), chosen, drawing)
        found = (painted_BCHW * 255).permute(0, 2, 3, 1).numpy()
        factors, order = list(drawing.jitters), drawing.jitter_order
        row = scar_row = 0
        for place, kind in enumerate(drawing.kinds):
            seen.add(KINDS[kind])
            mask_HW = mask_B1HW[place, 0].numpy()
            if KINDS[kind] == "none":
                assert not mask_HW.any()
                assert np.abs(found[place] - normal[place]).max() < 1e-3
                continue
            jitter = factors.pop(0)
            if KINDS[kind] == "scar":
                expected, inside = plain_anomalies.scarred(normal[place], drawing.scars[scar_row], jitter, order)
                assert (mask_HW.astype(bool) != inside).mean() < 2e-4  # a pixel on the edge, if any
                agree = mask_HW.astype(bool) == inside
                scar_row += 1
            else:
                mask = plain_anomalies.shape_mask(drawing.shapes[row], drawing.mask_flips[row], size)
                # Of the cells on the edge a few fall to the other side; half a cell of shift would give 0.01.
                assert (np.abs(mask_HW - mask) > 2 / 255).mean() < 0.04
                assert np.abs(mask_HW - mask).mean() < 3e-3
                expected = plain_anomalies.pasted(
                    normal[place], foreign[drawing.foreign[row]], mask_HW, drawing.crops[row],
                    drawing.crop_flips[row], jitter, order,
                )  # fmt: skip
                agree = np.ones(size, bool)
                row += 1
            # Pillow rounds to bytes after each of four colour operations, and keeps hue in 8 bits.
            difference = np.abs(found[place] - expected)[agree]
            assert difference.mean() < 1.0
            assert np.quantile(difference, 0.999) < 10
    assert seen == set(KINDS)


@pytest.mark.parametrize("place", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_each_colour_operation_is_torchvision_s(place):
    operation = [T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue][place]
    images_nCHW = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images_nCHW[0, :, :4] = 0.5  # grey: no hue
    for factor in (0.8, 1.2) if place < 3 else (-0.2, 0.13):
        factors = [1.0, 1.0, 1.0, 0.0]
        factors[place] = factor
        found = colour_jitter(images_nCHW, [tuple(factors)] * 3, [0, 1, 2, 3])
        torch.testing.assert_close(found, operation(images_nCHW, factor), atol=2e-6, rtol=0)


def test_each_image_has_factors_of_its_own():
    images_nCHW = torch.full((2, 3, 4, 4), 0.5)
    found = colour_jitter(images_nCHW, [(0.8, 1.0, 1.0, 0.0), (1.2, 1.0, 1.0, 0.0)], [3, 2, 1, 0])
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.6])


def test_blur_is_pillow_s():
    from PIL import Image, ImageFilter

    mask = (np.random.RandomState(0).rand(20, 30) > 0.5).astype(np.uint8) * 255
    expected = np.asarray(Image.fromarray(mask).filter(ImageFilter.BLUR))
    found = blur(torch.from_numpy(mask)[None, None].float())[0, 0].numpy()
    assert np.abs(found - expected).max() <= 0.5 + 1e-4


def test_kinds_are_equally_likely_and_sizes_in_their_ranges():
    anomalies = SyntheticAnomalies((256, 256), n_images=7, seed=3)
    assert 0 <= anomalies.jitter <= 0.2
    drawings = [anomalies.draw(step, 100) for step in range(40)]
    counts = np.bincount(np.concatenate([drawing.kinds for drawing in drawings]), minlength=4)
    assert np.abs(counts / 4000 - 0.25).max() < 0.03
    foreign = np.concatenate([drawing.foreign for drawing in drawings])
    assert set(foreign) == set(range(7))
    shapes = np.concatenate([drawing.shapes for drawing in drawings])
    discs, rectangles = shapes[shapes[:, 0] == 2], shapes[shapes[:, 0] == 1]
    assert discs[:, 1:3].min() >= 10
    assert discs[:, 1:3].max() <= 118
    assert discs[:, 3].min() >= 10
    assert discs[:, 3].max() <= 15
    assert rectangles[:, 3].min() == 16.0
    assert rectangles[:, 3].max() <= 63.5
    assert rectangles[:, 4].min() == 4.0
    assert rectangles[:, 4].max() == 11.0
    assert np.abs(rectangles[:, 5]).max() <= math.pi / 2
    for _, x, y, a, b, angle in rectangles:
        reach_x = a * abs(math.cos(angle)) + b * abs(math.sin(angle))
        reach_y = a * abs(math.sin(angle)) + b * abs(math.cos(angle))
        assert reach_x - 1e-9 <= x <= GRID - reach_x + 1e-9
        assert reach_y - 1e-9 <= y <= GRID - reach_y + 1e-9
    scars = np.concatenate([drawing.scars for drawing in drawings])
    assert (scars[:, 0].min(), scars[:, 0].max()) == (2, 16)
    assert (scars[:, 1].min(), scars[:, 1].max()) == (4, 32)
    assert np.abs(scars[:, 4]).max() <= math.pi / 4
    jitters = np.concatenate([drawing.jitters for drawing in drawings])
    assert np.abs(jitters - [1, 1, 1, 0]).max() <= anomalies.jitter
    assert {tuple(drawing.jitter_order) for drawing in drawings} != {(0, 1, 2, 3)}


def test_a_drawing_depends_on_seed_and_step_alone():
    one, other = SyntheticAnomalies((64, 64), 5, seed=4), SyntheticAnomalies((64, 64), 5, seed=4)
    one.draw(0, 4)
    assert one.draw(9, 4) == other.draw(9, 4)
    assert one.draw(9, 4) != other.draw(10, 4)
    assert one.draw(9, 4) != SyntheticAnomalies((64, 64), 5, seed=5).draw(9, 4)


def test_painting_leaves_its_input_alone_and_stays_in_range():
    anomalies = SyntheticAnomalies((64, 96), 5, seed=0)
    normal, foreign = torch.rand(16, 3, 64, 96), torch.rand(5, 3, *anomalies.foreign_size)
    before = normal.clone()
    drawing = anomalies.draw(0, 16)
    painted_BCHW, mask_B1HW = anomalies.paint(normal, foreign[drawing.foreign], drawing)
    assert torch.equal(normal, before)
    for values in (painted_BCHW, mask_B1HW):
        assert values.min() >= 0
        assert values.max() <= 1
    untouched = (mask_B1HW == 0).expand_as(painted_BCHW)
    assert torch.equal(painted_BCHW[untouched], normal[untouched])


def test_wrong_shapes_are_refused():
    anomalies = SyntheticAnomalies((64, 64), 5, seed=0)
    drawing = next(drawing for step in range(99) if (drawing := anomalies.draw(step, 2)).foreign)
    with pytest.raises(ValueError, match=r"Expected images of shape \(2, 3, 64, 64\)"):
        anomalies.paint(torch.zeros(2, 3, 32, 32), None, drawing)
    with pytest.raises(ValueError, match=r"Expected foreign images of shape .* but got None"):
        anomalies.paint(torch.zeros(2, 3, 64, 64), None, drawing)
