"""The metrics, one entry each. Evaluation, intervals, tables, figures and tracking all read this table.

A metric added here is in metrics.json under every prefix, and has an interval and a table; a test checks that
docs/metrics.md has a line for it. Its formula is written once, in terms of measures that exist twice: as floats, exact
for the whole set (`RankedMeasures`, `PixelMeasures`, `SaturatedMeasures`), and as arrays (B,) with one value per
bootstrap resample (`Resampled`, `ResampledKinds`).

Importing this module imports no other, not even numpy, because the workflow reads names from it at each start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

AUPRO_LIMIT = 0.3  # false-positive rate up to which MVTec AD integrates
AUPRO_STRICT_LIMIT = 0.05
AUPIMO_RANGE = (1e-5, 1e-4)  # false-positive rates on normal images


Level = Literal["image", "pixel", "region"]


@dataclass(frozen=True)
class Metric:
    """One metric; a fraction, higher is better.

    Arguments:
        title: Its name in tables and figures.
        level: What it ranks: image scores, pixel scores, or pixel scores at the images' own size in regions that have
            a saturation threshold.
        formula: How it follows from the measures of its level: `auroc()`, `average_precision()`, `f1_max()`; of pixels
            also `region_overlap(limit)` and `image_overlap(lower, upper)`; of regions `saturated_overlap(limit)` alone.
        headline: Whether it is one of the few that summaries show.
        interval: Whether its bootstrap interval is computed; the formula must then hold for resamples too.
    """

    title: str
    level: Level
    formula: Callable[[Any], Any]
    headline: bool = False
    interval: bool = True


METRICS: dict[str, Metric] = {
    "image_auroc": Metric("Image AUROC", "image", lambda found: found.auroc(), headline=True),
    "pixel_auroc": Metric("Pixel AUROC", "pixel", lambda found: found.auroc(), headline=True),
    "aupro": Metric("AUPRO", "pixel", lambda found: found.region_overlap(AUPRO_LIMIT), headline=True),
    "image_ap": Metric("Image AP", "image", lambda found: found.average_precision()),
    "image_f1_max": Metric("Image F1-max", "image", lambda found: found.f1_max()),
    "pixel_ap": Metric("Pixel AP", "pixel", lambda found: found.average_precision()),
    "pixel_f1_max": Metric("Pixel F1-max", "pixel", lambda found: found.f1_max()),
    "aupro_05": Metric(
        f"AUPRO at {AUPRO_STRICT_LIMIT}", "pixel", lambda found: found.region_overlap(AUPRO_STRICT_LIMIT)
    ),
    "aupimo": Metric("AUPIMO", "pixel", lambda found: found.image_overlap(*AUPIMO_RANGE)),
    "spro_01": Metric("AU-sPRO at 0.01", "region", lambda found: found.saturated_overlap(0.01)),
    "spro_05": Metric("AU-sPRO at 0.05", "region", lambda found: found.saturated_overlap(0.05)),
    "spro_10": Metric("AU-sPRO at 0.1", "region", lambda found: found.saturated_overlap(0.1)),
    "spro_30": Metric("AU-sPRO at 0.3", "region", lambda found: found.saturated_overlap(0.3)),
    "spro_100": Metric("AU-sPRO at 1", "region", lambda found: found.saturated_overlap(1.0)),
}
# Per-region overlap is measured one way only: a region of MVTec LOCO counts as found from its saturation threshold on.
UNSATURATED = ("aupro", "aupro_05")
HEADLINE = tuple(name for name, metric in METRICS.items() if metric.headline)


def metrics_of(level: Level) -> dict[str, Metric]:
    """Select the metrics of one level, in the order of the table."""
    return {name: metric for name, metric in METRICS.items() if metric.level == level}
