"""The names of all tables and figures, from which the workflow lists its outputs.

Importing this module loads neither pandas nor matplotlib, because the workflow does so each time it starts.
"""

from sanflow.evaluation.metric_table import HEADLINE, METRICS

TABLES = (
    "overview",
    *METRICS,
    *(f"published_{metric}" for metric in HEADLINE),
    "encoders",
    "ablation",
    "paired",
    "protocols",
    "oracle_epoch",
    "operating_point",
    "cost",
)
TABLE_FORMATS = ("csv", "md", "tex", "html")

# Each is a file of its name in `sanflow/report/figures/`: drawn once per category, or once per headline metric.
CATEGORY_FIGURES = ("contact_sheet", "variance", "histograms", "curves", "latents", "training")
METRIC_FIGURES = ("dots",)
FIGURES = (*CATEGORY_FIGURES, *METRIC_FIGURES)
FIGURE_METRICS = HEADLINE
FIGURE_FORMATS = ("png", "pdf")
