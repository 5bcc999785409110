# Shared by all rules: the checked configuration, and the plan, which computes inputs and params. There are no rules here.
#
# A job's command and params say what it computes. The environment says where and how it runs: device, caches, paths
# (sanflow/config/handed_on.py). So a change of the environment reruns nothing.
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

# A key of Snakemake, and the key by which the Snakefile passes the results folder to the report's text.
OWN_KEYS = {"pathvars", "results"}
# Beside this file, because another Snakefile may import this workflow as a module. If it does so from a hosting service, as
# snakedeploy arranges, config/ was copied to the folder in which snakemake runs.
HERE = workflow.current_basedir
CONFIG = Path(HERE.join("../../config").get_path_or_uri(secret_free=True) if HERE.is_local else "config")

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


# As set above, or by the Snakefile that imports this one.
RESULTS, DATA_ROOT = map(workflow.pathvars.apply, ("<results>", "<data>"))
RESULTS_FOLDER = in_place(RESULTS)
PLAN = Plan(BENCHMARK, JOBS, RESULTS, DATA_ROOT, in_place(""))
GPUS = dict(workflow.resource_settings.resources).get("gpu")
THREADS = threads_of_fit(
    workflow.resource_settings.cores,
    1 if GPUS is None else GPUS.value,
    SETTINGS.device,
    os.environ,
)
# With an object store the finished files are there. In RESULTS_FOLDER are states of trainings, tracking and benchmark.json.
STORE = workflow.storage_settings.default_storage_provider and workflow.storage_settings.default_storage_prefix
WHERE = (
    f"The results are in {STORE.rstrip('/')}/{RESULTS_FOLDER}. Copy them to {RESULTS_FOLDER} to look at them; then "
    f"`sanflow track publish {BENCHMARK_FILE} --results {RESULTS_FOLDER}` sends them to MLflow."
    if STORE
    else None
)
# A report shows finished figures only, because Snakemake makes no report if one figure is missing.
REPORTING = any(word.split("=")[0] == "--report" for word in sys.argv)

os.environ.update(
    handed_on(SETTINGS.model_copy(update={"data_root": in_place(DATA_ROOT)}), BENCHMARK_FILE, RESULTS_FOLDER),
    MLFLOW_DISABLE_TELEMETRY="true",
    # Find `sanflow` in the folder of the running snakemake, also if no environment was activated.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
)
