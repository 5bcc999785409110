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
from sanflow.methods.method import DetectorMethod, MapMaker, MapSource
from sanflow.pipeline.benchmark import benchmark_path, load_benchmark
from sanflow.pipeline.plan import Plan, any_of, published_digest, threads_of_fit
from sanflow.pipeline.preflight import categories_of
from sanflow.provenance import code_digest

# Snakemake's own key, and what the report's text is told.
OWN_KEYS = {"pathvars", "results"}
# Beside this checkout's Snakefile, which another one may import as a module.
CONFIG = Path(workflow.current_basedir.join("../../config").get_path_or_uri(secret_free=True))

try:
    SETTINGS = settings_from({key: value for key, value in config.items() if key not in OWN_KEYS})
    BENCHMARK_FILE = str(benchmark_path(SETTINGS.benchmark, CONFIG / "benchmarks").absolute())
    BENCHMARK = load_benchmark(BENCHMARK_FILE)
    JOBS = list(BENCHMARK.jobs(categories_of(BENCHMARK)))
except SanflowError as error:
    raise WorkflowError(str(error))


def in_place(path):
    """Return where a path of the rules is: below the `prefix` under which another Snakefile imports this one."""
    return workflow.modifier.path_modifier.replace_prefix(path)


pathvars:
    results=f"results/{Path(BENCHMARK_FILE).stem}",
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",
    data=SETTINGS.data_root,


# As above, or as the Snakefile that imports this one says.
RESULTS, DATA_ROOT = map(workflow.pathvars.apply, ("<results>", "<data>"))
RESULTS_FOLDER = in_place(RESULTS)
PLAN = Plan(BENCHMARK, JOBS, RESULTS, DATA_ROOT, in_place(""))
THREADS = threads_of_fit(
    workflow.resource_settings.cores,
    dict(workflow.resource_settings.resources).get("gpu", 1),
    SETTINGS.device,
    os.environ,
)
# A report shows what is finished: one missing figure would keep Snakemake from making it.
REPORTING = any(word.split("=")[0] == "--report" for word in sys.argv)

os.environ.update(
    handed_on(SETTINGS.model_copy(update={"data_root": in_place(DATA_ROOT)}), BENCHMARK_FILE, RESULTS_FOLDER),
    MLFLOW_DISABLE_TELEMETRY="true",
    # `sanflow` is found beside the snakemake that runs, also where no environment was activated.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
)
