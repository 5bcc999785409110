"""Compute the inputs, patterns and params of the workflow's rules: digests of what decides a job's result.

A function with the argument `wildcards` takes those of a rule: `dataset`, `category`, `experiment`, `seed`, as far as
the rule has them.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sanflow.config.experiment import DetectorExperiment, Experiment
from sanflow.data.content import category_digest, content_digest
from sanflow.data.registry import dataset_entry
from sanflow.errors import DeviceError
from sanflow.files import resource, sha256_of_file
from sanflow.methods.method import DetectorMethod, MapMaker, MapSource, Method
from sanflow.methods.registry import methods
from sanflow.pipeline.benchmark import Benchmark, Job, benchmark_path, load_benchmark
from sanflow.pipeline.gpus import gpu_pool
from sanflow.pipeline.preflight import categories_of
from sanflow.provenance import code_digest, digest_of, fit_digest, modules_digest

# Of a job on a GPU or a cluster: for reading images and for starting work on the GPU.
THREADS_BESIDE_GPU = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """A benchmark as the workflow sees it.

    Arguments:
        benchmark: From `load_benchmark`.
        jobs: All its cells.
        results: Folder of its results, as the rules name it.
        data_root: Folder of downloaded data sets.
        prefix: What Snakemake puts before the paths of the rules, where another Snakefile imports them as a module.
    """

    benchmark: Benchmark
    jobs: list[Job]
    results: str
    data_root: str
    prefix: str = ""

    @property
    def content_memo(self) -> Path:
        """File of what is known of the content of the user's files, so that unchanged ones are not read again."""
        return Path(self.prefix, self.results, "state", "content.json")

    def experiments_of(self, kind: type[Method], *, keeping: bool | None = None) -> str:
        """Return a pattern of the experiments whose method is of a kind.

        Arguments:
            kind: `DetectorMethod`, `MapSource` or `MapMaker`.
            keeping: Only those that keep epochs, or only those that do not; None for both.
        """
        return any_of(
            name
            for name, experiment in self.benchmark.experiments.items()
            if isinstance(methods()[experiment.method], kind) and keeping in (None, bool(experiment.kept_epochs))
        )

    def experiment(self, wildcards: Any) -> Experiment:
        """Return the experiment of a job."""
        return self.benchmark.experiments[wildcards.experiment]

    def detector(self, wildcards: Any) -> DetectorMethod:
        """Return the method of a job that is fitted."""
        method = methods()[self.experiment(wildcards).method]
        assert isinstance(method, DetectorMethod)
        return method

    def map_maker(self, wildcards: Any) -> MapMaker:
        """Return the method of a job that makes maps."""
        method = methods()[self.experiment(wildcards).method]
        assert isinstance(method, MapMaker)
        return method

    def fit_code(self, wildcards: Any) -> str:
        """Compute the digest of the code of a fit."""
        return modules_digest(self.detector(wildcards).fit_modules)

    def score_code(self, wildcards: Any) -> str:
        """Compute the digest of the code of a scoring."""
        return code_digest("score", self.detector(wildcards).load_modules)

    def fit_memory_mb(self, wildcards: Any) -> int:
        """Estimate the memory of a fit, in MB."""
        return self._detector_settings(wildcards).fit_memory_mb(wildcards.dataset, wildcards.category)

    def score_memory_mb(self, wildcards: Any) -> int:
        """Estimate the memory of a scoring, in MB."""
        return self._detector_settings(wildcards).score_memory_mb(wildcards.dataset, wildcards.category)

    def fit_command(self, wildcards: Any) -> list[str]:
        """Return the words with which the command of a fit begins; see `placed_command`."""
        return placed_command("train", self.detector(wildcards).fit_needs_gpu)

    def score_command(self, wildcards: Any) -> list[str]:
        """Return the words with which the command of a scoring begins; see `placed_command`."""
        return placed_command("score", self.detector(wildcards).scoring_needs_gpu)

    def make_command(self, wildcards: Any) -> list[str]:
        """Return the words with which the command that makes maps begins; see `placed_command`."""
        return placed_command("make-maps", self.map_maker(wildcards).make_needs_gpu)

    def make_code(self, wildcards: Any) -> str:
        """Compute the digest of the code that makes maps and reads them."""
        return code_digest("score_external", self.map_maker(wildcards).make_modules)

    def fit_settings(self, wildcards: Any) -> str:
        """Compute the digest of the settings of a fit, and of the files they name."""
        return fit_digest(self.experiment(wildcards), wildcards.dataset, wildcards.category)

    def evaluation_settings(self, wildcards: Any) -> str:
        """Compute the digest of the keys that matter to an evaluation alone."""
        return digest_of(self.experiment(wildcards).model_dump(include={"evaluate_at", "label"}))

    def maps(self, wildcards: Any) -> str:
        """Compute the digest of the files in a job's folder of finished maps."""
        experiment = self.experiment(wildcards)
        method = methods()[experiment.method]
        assert isinstance(method, MapSource)
        folder = experiment.files_for(wildcards.dataset, wildcards.category)[method.maps_key]
        return content_digest([Path(folder)], self.content_memo)

    def marker(self, wildcards: Any) -> list[str]:
        """Return the marker of a complete data set; nothing for one that lies where its owner keeps it."""
        root = self.benchmark.datasets[wildcards.dataset].root
        return [] if root else [f"{self.data_root}/{wildcards.dataset}/.sanflow.json"]

    def data_settings(self, wildcards: Any) -> str:
        """Compute the digest of the user's choice of a data set and of its entry in the registry."""
        choice = self.benchmark.datasets[wildcards.dataset]
        known: dict[str, Any] = {"choice": choice.model_dump(exclude={"categories", "mirrors"})}
        if choice.kind == "registered":
            # Where it is fetched from and what it is called decide no index.
            entry = dataset_entry(wildcards.dataset)
            about = {"title", "licence", "homepage", "citation", "documented_by", "mirrors", "manual", "size"}
            known["entry"] = entry.model_dump(exclude={*about, "categories", "file_name", "unpacked_bytes"})
            counts = entry.categories.get(wildcards.category)
            known["counts"] = None if counts is None else counts.model_dump()
        return digest_of(known)

    def listing(self, wildcards: Any) -> str | None:
        """Compute the digest of the owner's files: of a category's folder, or of all where there is no such folder."""
        root = self.benchmark.datasets[wildcards.dataset].root
        if not root:
            return None
        return category_digest(root, wildcards.category, self.content_memo, dataset=wildcards.dataset)

    def training_history(self, wildcards: Any) -> list[str]:
        """Return train.json of a job; nothing where finished maps are read."""
        if isinstance(methods()[self.experiment(wildcards).method], MapSource):
            return []
        job = Job(wildcards.dataset, wildcards.category, wildcards.experiment, int(wildcards.seed))
        return [f"{self.results}/{job.folder}/train.json"]

    def files_of_jobs(self, name: str, *, detectors_only: bool = False) -> Callable[[Any], list[str]]:
        """Return a function that gives a file of every job: of those of its category, or of all without a wildcard."""
        return lambda wildcards: [
            f"{self.results}/{job.folder}/{name}"
            for job in self.jobs
            if all(wildcards.get(key) in (None, getattr(job, key)) for key in ("dataset", "category"))
            and not (detectors_only and not self._is_fitted(job))
        ]

    def metrics_of_epochs(self, wildcards: Any) -> list[str]:
        """Return metrics.json of every kept epoch."""
        return [
            f"{self.results}/{job.folder}/epoch{epoch:02d}/metrics.json"
            for job in self.jobs
            for epoch in self.benchmark.experiments[job.experiment].kept_epochs
        ]

    def curves_of_epochs(self, wildcards: Any) -> list[str]:
        """Return curves.npz of every job that keeps epochs, and of these epochs: a table compares their resamples."""
        return [
            f"{self.results}/{folder}/curves.npz"
            for job in self.jobs
            if (epochs := self.benchmark.experiments[job.experiment].kept_epochs)
            for folder in (job.folder, *(f"{job.folder}/epoch{epoch:02d}" for epoch in epochs))
        ]

    def categories(self) -> list[tuple[str, str]]:
        """Return data set and category of all jobs, each once."""
        return list(dict.fromkeys((job.dataset, job.category) for job in self.jobs))

    def _detector_settings(self, wildcards: Any) -> DetectorExperiment:
        experiment = self.experiment(wildcards)
        assert isinstance(experiment, DetectorExperiment)
        return experiment

    def _is_fitted(self, job: Job) -> bool:
        return isinstance(methods()[self.benchmark.experiments[job.experiment].method], DetectorMethod)


def finished_metrics(benchmark: str, results: Path) -> list[Path]:
    """List the metrics.json files of a benchmark's jobs and kept epochs that exist, in the order of the benchmark.

    Arguments:
        benchmark: Its name in config/benchmarks/ or its path.
        results: Folder of its results.
    """
    chosen = load_benchmark(benchmark_path(benchmark))
    plan = Plan(chosen, list(chosen.jobs(categories_of(chosen))), str(results), data_root="")
    files = [*plan.files_of_jobs("metrics.json")({}), *plan.metrics_of_epochs({})]
    return [Path(file) for file in files if Path(file).exists()]


def placed_command(command: str, needs_gpu: bool) -> list[str]:
    """Return the words that start a command of sanflow on a GPU of its own, or on the CPU if it needs none.

    Snakemake counts no GPU for a command that needs none, so it must neither claim one nor use that of another job.

    Example:
        >>> placed_command("train", needs_gpu=True)
        ['sanflow', 'gpu-exec', '--', 'sanflow', 'train']
        >>> placed_command("train", needs_gpu=False)
        ['sanflow', 'train', '--device', 'cpu']
    """
    return ["sanflow", "gpu-exec", "--", "sanflow", command] if needs_gpu else ["sanflow", command, "--device", "cpu"]


def threads_of_fit(cores: int | None, jobs_at_once: int, device: str, environment: Mapping[str, str]) -> int:
    """Choose the threads of a job that trains or scores.

    On a CPU they share the cores that Snakemake may use. On a GPU few are needed, and the cores that are left evaluate
    other jobs meanwhile. OMP_NUM_THREADS wins where the user has set it.

    Arguments:
        cores: Of Snakemake (`--cores`); None where a cluster runs the jobs.
        jobs_at_once: How many such jobs run at the same time (`--resources gpu=...`).
        device: `auto`, `cuda` or `cpu`.
        environment: Of Snakemake.

    Example:
        >>> threads_of_fit(16, 2, "cpu", {})
        8
        >>> threads_of_fit(16, 2, "cpu", {"OMP_NUM_THREADS": "3"})
        3
    """
    asked = environment.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if cores is None or device == "cuda" or (device == "auto" and _has_gpu(environment)):
        return THREADS_BESIDE_GPU
    return max(1, cores // max(1, jobs_at_once))


def _has_gpu(environment: Mapping[str, str]) -> bool:
    try:
        return bool(gpu_pool(environment))
    except DeviceError:  # there is one that cannot be used: the first job reports it
        return True


def any_of(names: Iterable[str]) -> str:
    """Return a pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, names)) or r"(?!)"


def published_digest() -> str:
    """Compute the digest of the published numbers, which tables and dots show."""
    return sha256_of_file(resource("published.csv"))
