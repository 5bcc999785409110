"""List the names of all tables and figures. The workflow derives its outputs from them.

This module must not load pandas or matplotlib, which are slow: the workflow imports it each time it starts.
"""

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
FIGURE_METRICS = HEADLINE
FIGURE_FORMATS = ("png", "pdf")
