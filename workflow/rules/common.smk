# What the rules share: the configuration, checked, and small functions for their inputs and params. No rules.
#
# What a job computes is in its command and its params. Where and how it runs (device, caches, paths) is handed on in the
# environment (sanflow/config/handed_on.py), so that a change of it reruns nothing.
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from sanflow.config.handed_on import handed_on
from sanflow.config.settings import settings_from
from sanflow.data.registry import dataset_entry
from sanflow.errors import SanflowError
from sanflow.files import resource, sha256_of_file
from sanflow.methods.method import DetectorMethod, MapSource
from sanflow.methods.registry import METHODS
from sanflow.pipeline.benchmark import benchmark_path, load_benchmark
from sanflow.pipeline.preflight import categories_of
from sanflow.provenance import code_digest, digest_of, fit_digest, listing_digest, modules_digest

try:
    SETTINGS = settings_from(config)
    BENCHMARK_FILE = str(benchmark_path(SETTINGS.benchmark, Path(workflow.basedir, "config", "benchmarks")).absolute())
    BENCHMARK = load_benchmark(BENCHMARK_FILE)
    JOBS = list(BENCHMARK.jobs(categories_of(BENCHMARK)))
except SanflowError as error:
    raise WorkflowError(str(error))

RESULTS = f"results/{Path(BENCHMARK_FILE).stem}"
DATA_ROOT = SETTINGS.data_root
RUN = "<results>/{dataset}/{category}/{experiment}/seed{seed}"

os.environ.update(
    handed_on(SETTINGS, BENCHMARK_FILE, RESULTS),
    MLFLOW_DISABLE_TELEMETRY="true",
    # `sanflow` is found beside the snakemake that runs, also where no environment was activated.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
)


def any_of(names):
    """A pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, names)) or r"(?!)"


def experiments_of(kind, keeping=None):
    """A pattern of the experiments whose method is of a kind, and which keep epochs or not."""
    return any_of(
        name
        for name, experiment in BENCHMARK.experiments.items()
        if isinstance(METHODS[experiment.method], kind) and keeping in (None, bool(experiment.kept_epochs))
    )


def experiment_of(wildcards):
    return BENCHMARK.experiments[wildcards.experiment]


def method_of(wildcards):
    return METHODS[experiment_of(wildcards).method]


def fit_digest_of(wildcards):
    return fit_digest(experiment_of(wildcards), wildcards.dataset, wildcards.category)


def evaluation_digest_of(wildcards):
    """Digest of the keys that matter to an evaluation alone."""
    return digest_of(experiment_of(wildcards).model_dump(include={"evaluate_at", "label"}))


def maps_of(wildcards):
    """The folder of finished maps of a job."""
    return experiment_of(wildcards).files_for(wildcards.dataset, wildcards.category)[method_of(wildcards).maps_key]


def marker_of(wildcards):
    """The marker of a complete data set, or nothing for one that lies where its owner keeps it."""
    root = BENCHMARK.datasets[wildcards.dataset].root
    return [] if root else f"{DATA_ROOT}/{wildcards.dataset}/.sanflow.json"


def data_digest_of(wildcards):
    """Digest of what is known of a data set: the user's choice of it and its entry in the registry."""
    choice = BENCHMARK.datasets[wildcards.dataset]
    entry = dataset_entry(wildcards.dataset) if choice.kind == "registered" else None
    known = {"category": wildcards.category, "choice": choice.model_dump(exclude={"categories", "mirrors"})}
    if entry is not None:
        known["entry"] = entry.model_dump(include={"layout", "probe", "mask_above"})
        known["counts"] = entry.categories.get(wildcards.category)
    return digest_of(known)


def listing_of(wildcards):
    """Digest of the owner's listing: of the category's folder, or of all where categories have no folders."""
    root = BENCHMARK.datasets[wildcards.dataset].root
    own = Path(root or "", wildcards.category)
    return listing_digest(own if own.is_dir() else root) if root else None


def published_digest():
    """Digest of the published numbers, which tables and dots show."""
    return sha256_of_file(resource("published.csv"))


def training_history_of(wildcards):
    """train.json of a job, which one with finished maps has not."""
    if not isinstance(method_of(wildcards), DetectorMethod):
        return []
    return f"{RESULTS}/{wildcards.dataset}/{wildcards.category}/{wildcards.experiment}/seed{wildcards.seed}/train.json"


def files_of_jobs(name, detectors_only=False):
    """A function that gives this file of every job: of those of its category, or of all where there is no wildcard."""
    return lambda wildcards: [
        f"{RESULTS}/{job.folder}/{name}"
        for job in JOBS
        if all(wildcards.get(key) in (None, getattr(job, key)) for key in ("dataset", "category"))
        and not (
            detectors_only and not isinstance(METHODS[BENCHMARK.experiments[job.experiment].method], DetectorMethod)
        )
    ]


def metrics_of_epochs(wildcards):
    """metrics.json of every kept epoch."""
    return [
        f"{RESULTS}/{job.folder}/epoch{epoch:02d}/metrics.json"
        for job in JOBS
        for epoch in BENCHMARK.experiments[job.experiment].kept_epochs
    ]
