# The benchmark as a table of contents: configuration, rules, what is wanted in the end.
#
# What runs is said by config/config.yaml and the benchmark file it names; how and where, by a profile. All paths
# count from the folder in which snakemake is started (or from --directory).
from snakemake.utils import min_version

min_version("9.19")


configfile: f"{workflow.basedir}/config/config.yaml"


# Used with `--software-deployment-method apptainer` only; envs/Containerfile makes it.
container: "docker://ghcr.io/sanflow/sanflow:0.1.0"


include: "workflow/rules/common.smk"


# The report's text sees the configuration alone.
config["results"] = RESULTS


report: "workflow/report/workflow.rst"


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",
    benchmarks=f"{RESULTS}/benchmarks",
    data=DATA_ROOT,


wildcard_constraints:
    dataset=any_of(BENCHMARK.datasets),
    category=r"[^/]+",
    experiment=any_of(BENCHMARK.experiments),
    seed=r"\d+",
    epoch=r"\d+",


include: "workflow/rules/data.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    """Everything the benchmark promises: the metrics of each job, the tables, the figures and the explorer."""
    default_target: True
    input:
        metrics=PLAN.files_of_jobs("metrics.json"),
        epochs=PLAN.metrics_of_epochs,
        tables=rules.tables.output,
        dots=rules.dots.output,
        explorer=rules.explorer.output,
        figures=[
            f"{RESULTS}/figures/{kind}/{dataset}/{category}.{ending}"
            for dataset, category in PLAN.categories()
            for kind in CATEGORY_FIGURES
            for ending in ("png", "pdf")
        ],


# What a job would stumble over later stops the benchmark here. The mirror in MLflow is made before jobs fan out, and
# closed with the truth about how the benchmark ended. No rule depends on it, so neither a server that is away nor a
# deleted database reruns or stops anything.
onstart:
    shell("sanflow check {BENCHMARK_FILE:q} --results {RESULTS:q} --quiet")
    shell("sanflow track init {BENCHMARK_FILE:q} --results {RESULTS:q}")


onsuccess:
    models = ["--models"] if SETTINGS.tracking.log_models else []
    shell("sanflow track publish {BENCHMARK_FILE:q} --results {RESULTS:q} {models:q}")


onerror:
    shell("sanflow track publish {BENCHMARK_FILE:q} --results {RESULTS:q} --failed")
