"""Mirror of the files in MLflow: what a job tells of itself, kept in an outbox until a server has it.

Role: `open_tracker` gives each job its run; a server that is away warns and never fails a job.
Layer: parts; depends on errors and files. MLflow is imported only when something is sent.
"""

from sanflow.tracking.tracker import MlflowTracker, NullTracker, Status, Tracker, job_tracker, open_tracker
from sanflow.tracking.uris import masked

__all__ = ["MlflowTracker", "NullTracker", "Status", "Tracker", "job_tracker", "masked", "open_tracker"]
