# The benchmark as a table of contents: configuration, rules, what is wanted in the end.
#
# What runs is said by config/config.yaml and the benchmark file it names; how and where, by a profile. All paths
# count from the folder in which snakemake is started (or from --directory).
from snakemake.utils import min_version

min_version("9.19")


configfile: workflow.current_basedir.join("config/config.yaml").get_path_or_uri(secret_free=False)


# Used with `--software-deployment-method apptainer` only; envs/Containerfile makes it.
container: "docker://ghcr.io/sanflow/sanflow:0.1.0"


include: "workflow/rules/common.smk"


# The report's text sees the configuration alone.
config["results"] = RESULTS_FOLDER
if Path(RESULTS_FOLDER, "explorer", "summary.html").exists():

    report: "workflow/report/workflow.rst"


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
            f"<results>/figures/{kind}/{dataset}/{category}.{ending}"
            for dataset, category in PLAN.categories()
            for kind in CATEGORY_FIGURES
            for ending in ("png", "pdf")
            if not REPORTING or Path(RESULTS_FOLDER, "figures", kind, dataset, f"{category}.{ending}").exists()
        ],
    # Shown in place of all the files above, which are one line of 30,000 characters for the paper's benchmark.
    message:
        "The benchmark: metrics of all jobs, tables, figures, explorer"


# What a job would stumble over later stops the benchmark here. The mirror in MLflow is made before jobs fan out, and
# closed with the truth about how the benchmark ended. No rule depends on it, so neither a server that is away nor a
# deleted database reruns or stops anything.
onstart:
    shell("sanflow check {BENCHMARK_FILE:q} --results {RESULTS_FOLDER:q} --quiet")
    shell("sanflow track init {BENCHMARK_FILE:q} --results {RESULTS_FOLDER:q}")


onsuccess:
    models = ["--models"] if SETTINGS.tracking.log_models else []
    shell("sanflow track publish {BENCHMARK_FILE:q} --results {RESULTS_FOLDER:q} {models:q}")


# Modules have no handlers: a workflow that imports this one calls the commands itself, if it wants them.
onerror:
    shell("sanflow finished {RESULTS_FOLDER:q} || true")
    shell("sanflow track publish {BENCHMARK_FILE:q} --results {RESULTS_FOLDER:q} --failed")
