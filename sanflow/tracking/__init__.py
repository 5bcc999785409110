"""Show runs in MLflow, from the files of their results folder.

A training is logged while it runs, if the server can be reached; `sync` logs the rest from the files.
Layer: parts; depends on benchmark_json, errors and files. MLflow is imported only when something is sent.
"""

from sanflow.tracking.tracker import Tracker, job_tracker
from sanflow.tracking.uris import URI_VARIABLE, masked

__all__ = ["URI_VARIABLE", "Tracker", "job_tracker", "masked"]
