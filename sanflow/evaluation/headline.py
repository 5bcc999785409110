"""Choose the metrics of a data set: its headline, and which metrics of regions apply to it."""

from sanflow.data.registry import load_registry
from sanflow.evaluation.metric_table import HEADLINE, METRICS, UNSATURATED


def headline_of(dataset: str) -> tuple[str, ...]:
    """Return the headline metrics of a data set; the last one is the metric of regions that its authors report.

    Example:
        >>> headline_of("mvtec_loco"), headline_of("my_parts")
        (('image_auroc', 'pixel_auroc', 'spro_05'), ('image_auroc', 'pixel_auroc', 'aupro'))
    """
    entry = load_registry().get(dataset)
    return HEADLINE if entry is None else (*HEADLINE[:-1], entry.region_metric)


def applies(metric: str, dataset: str) -> bool:
    """Return whether a metric is measured on a data set: regions are measured with saturation thresholds or without.

    Example:
        >>> applies("aupro", "mvtec_loco"), applies("spro_05", "mvtec_loco"), applies("spro_05", "mvtec_ad")
        (False, True, False)
    """
    saturated = METRICS[headline_of(dataset)[-1]].level == "region"
    return metric not in UNSATURATED if saturated else METRICS[metric].level != "region"
