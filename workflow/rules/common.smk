# What the rules share: the configuration, checked, and small functions for their inputs and params. No rules.
#
# What a job computes stands in its command and its params. Where and how it runs (device, caches, paths) is handed on
# in the environment, so that a change of it reruns nothing.
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from sanflow.config import benchmark_path, load_benchmark, settings_from
from sanflow.errors import SanflowError
from sanflow.pipeline.preflight import categories_of
from sanflow.provenance import code_digest, digest_of, listing_digest, training_digest

try:
    SETTINGS = settings_from(config)
    BENCHMARK_FILE = str(benchmark_path(SETTINGS.benchmark, Path(workflow.basedir, "config", "benchmarks")).absolute())
    BENCHMARK = load_benchmark(BENCHMARK_FILE)
    JOBS = list(BENCHMARK.jobs(categories_of(BENCHMARK)))
except SanflowError as error:
    raise WorkflowError(str(error))

RESULTS = f"results/{Path(BENCHMARK_FILE).stem}"
DATA_ROOT = SETTINGS.data_root

os.environ.update(
    SANFLOW_BENCHMARK=BENCHMARK_FILE,
    SANFLOW_DATA_ROOT=DATA_ROOT,
    SANFLOW_DEVICE=SETTINGS.device,
    SANFLOW_CACHE=str(SETTINGS.cache_folder),
    SANFLOW_CACHE_GIGABYTES=str(SETTINGS.cache.max_gigabytes),
    SANFLOW_OFFLINE="1" if SETTINGS.offline else "",
    SANFLOW_SAVE_STATE_EVERY=str(SETTINGS.save_state_every_seconds),
    SANFLOW_SLOTS_PER_GPU=str(SETTINGS.slots_per_gpu),
    SANFLOW_TRACKING_URI=SETTINGS.tracking.uri or "",
    MLFLOW_DISABLE_TELEMETRY="true",
    # `sanflow` is found beside the snakemake that runs, also where no environment was activated.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
)

FOLDERS = {job: f"{RESULTS}/{job.dataset}/{job.category}/{job.experiment}/seed{job.seed}" for job in JOBS}


def any_of(names):
    """A pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, names)) or r"(?!)"


def experiments_where(condition):
    """A pattern of the experiments that fulfil a condition."""
    return any_of(name for name, experiment in BENCHMARK.experiments.items() if condition(experiment))


def experiment_of(wildcards):
    return BENCHMARK.experiments[wildcards.experiment]


def marker_of(wildcards):
    """The marker of a complete data set, or nothing for one that lies where its owner keeps it."""
    root = BENCHMARK.datasets[wildcards.dataset].root
    return [] if root else f"{DATA_ROOT}/{wildcards.dataset}/.sanflow.json"


def listing_of(wildcards):
    """Digest of the owner's listing: of the category's folder, or of all where categories have no folders."""
    root = BENCHMARK.datasets[wildcards.dataset].root
    own = Path(root or "", wildcards.category)
    return listing_digest(own if own.is_dir() else root) if root else None


def training_history_of(wildcards):
    """train.json of a job, which one scored from the maps of another tool has not."""
    folder = f"{RESULTS}/{wildcards.dataset}/{wildcards.category}/{wildcards.experiment}/seed{wildcards.seed}"
    return [] if experiment_of(wildcards).method == "external" else f"{folder}/train.json"


def files_of_jobs(name, ours_only=False):
    """A function that gives this file of every job: of those of its category, or of all where there is no wildcard."""
    return lambda wildcards: [
        f"{folder}/{name}"
        for job, folder in FOLDERS.items()
        if all(wildcards.get(key) in (None, getattr(job, key)) for key in ("dataset", "category"))
        and not (ours_only and BENCHMARK.experiments[job.experiment].method == "external")
    ]


def metrics_of_epochs(wildcards):
    """metrics.json of every epoch that `keep_every` keeps."""
    return [
        f"{folder}/epoch{epoch:02d}/metrics.json"
        for job, folder in FOLDERS.items()
        for epoch in BENCHMARK.experiments[job.experiment].kept_epochs
    ]
