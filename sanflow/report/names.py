"""List the names of all tables and figures. The workflow derives its outputs from them.

This module must not load pandas or matplotlib, which are slow: the workflow imports it each time it starts.
"""

from collections.abc import Iterable

from sanflow.evaluation.headline import applies, headline_of
from sanflow.evaluation.metric_table import HEADLINE, METRICS

TABLES = (
    "overview",
    "intervals",
    *METRICS,
    *(f"published_{metric}" for metric in HEADLINE),
    "encoders",
    "ablation",
    "paired",
    "protocols",
    "groups",
    "epoch",
    "criterion",
    "operating_point",
    "cost",
)
TABLE_FORMATS = ("csv", "md", "tex", "html")

# Each figure has a module of its name in `sanflow/report/figures/`.
# Category figures are drawn once per category, metric figures once per headline metric.
CATEGORY_FIGURES = ("contact_sheet", "variance", "histograms", "curves", "latents", "training")
METRIC_FIGURES = ("dots",)
FIGURES = (*CATEGORY_FIGURES, *METRIC_FIGURES)
FIGURE_FORMATS = ("png", "pdf")


def tables_of(datasets: Iterable[str]) -> tuple[str, ...]:
    """Select the tables of a benchmark: all but those of metrics that are measured on none of its data sets.

    Example:
        >>> "aupro" in tables_of(["mvtec_loco"]), "spro_05" in tables_of(["mvtec_loco"])
        (False, True)
    """
    names = list(datasets)
    unmeasured = {metric for metric in METRICS if not any(applies(metric, name) for name in names)}
    return tuple(table for table in TABLES if table.removeprefix("published_") not in unmeasured)


def figure_metrics_of(datasets: Iterable[str]) -> tuple[str, ...]:
    """Return the headline metrics of a benchmark's data sets, each once.

    Example:
        >>> figure_metrics_of(["mvtec_ad", "mvtec_loco"])
        ('image_auroc', 'pixel_auroc', 'aupro', 'spro_05')
    """
    return tuple(dict.fromkeys(metric for name in datasets for metric in headline_of(name)))
