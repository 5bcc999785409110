"""AUPRO and AUPIMO by their definitions: every distinct score is a threshold, every pixel is visited at each.

Rates, overlaps and areas are fractions of whole numbers, so nothing is rounded but the last division (and, for
AUPIMO, the logarithms). Regions come from a flood fill. It shares no line with sanflow.evaluation.metrics.
"""

import math
from fractions import Fraction
from itertools import pairwise

STEPS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def flood_regions(mask) -> list[list[tuple[int, int]]]:
    """Pixels of each region; neighbours by edge or corner are of one region."""
    left = {(r, c) for r in range(mask.shape[0]) for c in range(mask.shape[1]) if mask[r, c]}
    regions = []
    while left:
        frontier = [left.pop()]
        region = list(frontier)
        while frontier:
            row, column = frontier.pop()
            for down, right in STEPS:
                pixel = (row + down, column + right)
                if pixel in left:
                    left.remove(pixel)
                    frontier.append(pixel)
                    region.append(pixel)
        regions.append(region)
    return regions


def slow_pro_curve(maps, masks) -> list[tuple[Fraction, Fraction]]:
    """(false-positive rate, mean region overlap) from (0, 0) over every distinct score to (1, 1)."""
    pairs = list(zip(maps, masks, strict=True))
    regions = [[float(one[p]) for p in region] for one, mask in pairs for region in flood_regions(mask)]
    outside = [float(one[p]) for one, mask in pairs for p in _pixels(mask) if not mask[p]]
    curve = [(Fraction(0), Fraction(0))]
    for threshold in _every_score(maps):
        rate = Fraction(sum(score >= threshold for score in outside), len(outside))
        overlaps = [Fraction(sum(score >= threshold for score in region), len(region)) for region in regions]
        curve.append((rate, sum(overlaps, Fraction(0)) / len(regions)))
    return curve


def slow_aupro(maps, masks, limit: float = 0.3) -> float:
    """Trapezoids up to the limit, the last one cut there by linear interpolation, divided by the limit."""
    end = Fraction(limit)
    area = Fraction(0)
    curve = slow_pro_curve(maps, masks)
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 >= end or x0 == x1:
            continue
        x = min(x1, end)
        y = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        area += (x - x0) * (y0 + y) / 2
    return float(area / end)


def slow_aupimo(maps, masks, lower: float, upper: float) -> list[float]:
    """Per image: the integral of its overlap over the logarithm of the mean rate on normal images, NaN if normal."""
    normals = [one for one, mask in zip(maps, masks, strict=True) if not mask.any()]
    results = []
    for one, mask in zip(maps, masks, strict=True):
        if not mask.any():
            results.append(math.nan)
            continue
        inside = [float(one[p]) for p in _pixels(mask) if mask[p]]
        curve = [(0.0, 0.0)]
        for threshold in _every_score(maps):
            rates = [Fraction(int((normal >= threshold).sum()), normal.size) for normal in normals]
            overlap = Fraction(sum(score >= threshold for score in inside), len(inside))
            curve.append((float(sum(rates, Fraction(0)) / len(rates)), float(overlap)))
        area = 0.0
        for (x0, y0), (x1, y1) in pairwise(curve):
            a, b = max(x0, lower), min(x1, upper)
            if a < b:
                slope = (y1 - y0) / (x1 - x0)
                area += (y0 - slope * x0) * math.log(b / a) + slope * (b - a)
        results.append(area / math.log(upper / lower))
    return results


def _pixels(mask):
    return [(r, c) for r in range(mask.shape[0]) for c in range(mask.shape[1])]


def _every_score(maps) -> list[float]:
    """Distinct scores, highest first."""
    return sorted({float(score) for one in maps for score in one.ravel()}, reverse=True)
