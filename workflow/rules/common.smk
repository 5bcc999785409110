# What the rules share: the configuration, checked, and the plan that they ask. No rules.
#
# What a job computes is in its command and its params. Where and how it runs (device, caches, paths) is handed on in the
# environment (sanflow/config/handed_on.py), so that a change of it reruns nothing.
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from sanflow.config.handed_on import handed_on
from sanflow.config.settings import settings_from
from sanflow.errors import SanflowError
from sanflow.methods.method import DetectorMethod, MapSource
from sanflow.pipeline.benchmark import benchmark_path, load_benchmark
from sanflow.pipeline.plan import Plan, any_of, published_digest
from sanflow.pipeline.preflight import categories_of
from sanflow.provenance import code_digest

try:
    SETTINGS = settings_from(config)
    BENCHMARK_FILE = str(benchmark_path(SETTINGS.benchmark, Path(workflow.basedir, "config", "benchmarks")).absolute())
    BENCHMARK = load_benchmark(BENCHMARK_FILE)
    JOBS = list(BENCHMARK.jobs(categories_of(BENCHMARK)))
except SanflowError as error:
    raise WorkflowError(str(error))

RESULTS = f"results/{Path(BENCHMARK_FILE).stem}"
DATA_ROOT = SETTINGS.data_root
PLAN = Plan(BENCHMARK, JOBS, RESULTS, DATA_ROOT)

os.environ.update(
    handed_on(SETTINGS, BENCHMARK_FILE, RESULTS),
    MLFLOW_DISABLE_TELEMETRY="true",
    # `sanflow` is found beside the snakemake that runs, also where no environment was activated.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
)
