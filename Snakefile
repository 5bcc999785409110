# An overview of the benchmark: configuration, rules, and the final outputs.
#
# config/config.yaml and the benchmark file that it names say what runs; a profile says how and where. All paths
# are relative to the folder in which snakemake is started (or to --directory).
from snakemake.utils import min_version

min_version("9.19")


configfile: workflow.current_basedir.join("config/config.yaml").get_path_or_uri(secret_free=False)


# Used with `--software-deployment-method apptainer` only; envs/Containerfile makes it.
container: "docker://ghcr.io/sanflow/sanflow:0.1.0"


include: "workflow/rules/common.smk"


# The report's text can read the configuration only.
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
    """Ask for all outputs of the benchmark: metrics of each job, tables, figures and the explorer."""
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
    # Replaces the list of all files above, which is a line of 30,000 characters for the paper's benchmark.
    message:
        "The benchmark: metrics of all jobs, tables, figures, explorer"


# Errors that can be known before the first job stop the benchmark here. The runs in MLflow are made before jobs start at the
# same time, and get the benchmark's final status at the end. No rule depends on MLflow, so a server that cannot be reached,
# or a deleted database, neither stops a job nor makes it run again.
onstart:
    shell("sanflow check {BENCHMARK_FILE:q} --results {RESULTS_FOLDER:q} --quiet")
    shell("sanflow track init {BENCHMARK_FILE:q} --results {RESULTS_FOLDER:q}")


onsuccess:
    models = ["--models"] if SETTINGS.tracking.log_models else []
    shell("sanflow track publish {BENCHMARK_FILE:q} --results {RESULTS_FOLDER:q} {models:q}")


# Snakemake runs no handlers of modules: a workflow that imports this one must call the commands itself.
onerror:
    shell("sanflow finished {RESULTS_FOLDER:q} || true")
    shell("sanflow track publish {BENCHMARK_FILE:q} --results {RESULTS_FOLDER:q} --failed")
