"""AU-sPRO by its definition: every distinct score is a threshold, every pixel is visited at each, nothing is rounded.

As MVTec's script defines it, but with all thresholds instead of a refined choice, and in fractions of whole numbers. It
shares no line with sanflow.evaluation.metrics.
"""

from fractions import Fraction
from itertools import pairwise


def slow_spro(images, limit: float) -> float:
    """Mean over the kinds of anomalies; `images` are (map, [(mask, saturation area), ...], kind or "")."""
    kinds = sorted({kind for _, _, kind in images if kind})
    return sum(slow_spro_of_kind([one for one in images if one[2] in ("", kind)], limit) for kind in kinds) / len(kinds)


def slow_spro_of_kind(images, limit: float) -> float:
    """Trapezoids up to the limit, the last one cut there by linear interpolation, divided by the limit."""
    end, area = Fraction(limit), Fraction(0)
    for (x0, y0), (x1, y1) in pairwise(_curve(images)):
        if x0 < min(x1, end):
            x = min(x1, end)
            area += (x - x0) * (y0 + y0 + (y1 - y0) * (x - x0) / (x1 - x0)) / 2
    return float(area / end)


def _curve(images) -> list[tuple[Fraction, Fraction]]:
    """(false-positive rate, mean saturated overlap) from (0, 0) over every distinct score."""
    pixels = [(row, column) for row in range(images[0][0].shape[0]) for column in range(images[0][0].shape[1])]
    outside, regions = [], []
    for one, drawn, _ in images:
        outside += [float(one[p]) for p in pixels if not any(mask[p] for mask, _ in drawn)]
        regions += [([float(one[p]) for p in pixels if mask[p]], area) for mask, area in drawn]
    curve = [(Fraction(0), Fraction(0))]
    for threshold in sorted({float(one[p]) for one, _, _ in images for p in pixels}, reverse=True):
        rate = Fraction(sum(score >= threshold for score in outside), len(outside))
        found = [
            min(Fraction(sum(score >= threshold for score in scores), area), Fraction(1)) for scores, area in regions
        ]
        curve.append((rate, sum(found, Fraction(0)) / len(found)))
    return curve
