# From metrics to tables and figures, and the parts of them that `snakemake --report` shows.
#
# REQUIRED INPUTS: the outputs of evaluate.smk, for figures also index.csv, scores.npz and extras.npz
# OUTPUTS:
#   <results>/tables/{table}.{csv,md,tex,html}                   see docs/outputs.md for the columns
#   <results>/figures/{kind}/{dataset}/{category}.{png,pdf}
#   <results>/figures/dots/{metric}.{png,pdf}
#   <results>/explorer/index.html                                with its data and pictures in the same folder
from sanflow.report.names import CATEGORY_FIGURES, figure_metrics_of, tables_of

DATASETS = [dataset for dataset, _ in PLAN.categories()]
TABLES, FIGURE_METRICS = tables_of(DATASETS), figure_metrics_of(DATASETS)


rule tables:
    """Write all tables, each as CSV, Markdown, LaTeX and a page of HTML."""
    input:
        metrics=PLAN.files_of_jobs("metrics.json"),
        epochs=PLAN.metrics_of_epochs,
        curves=PLAN.curves_of_epochs,
    output:
        [f"<results>/tables/{name}.{ending}" for name in TABLES for ending in ("csv", "md", "tex")],
        *[
            report(
                f"<results>/tables/{name}.html",
                category="Tables",
                labels={"table": name.replace("_", " ")},
                caption="../report/table.rst",
            )
            for name in TABLES
        ],
    log:
        "<logs>/tables.log",
    benchmark:
        "<benchmarks>/tables.jsonl"
    localrule: True
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_digest("tables"),
        published=published_digest(),
        results=lambda wildcards, output: str(Path(output[0]).parents[1]),
    message:
        "Tables of all jobs"
    shell:
        "sanflow tables {params.results:q} > {log:q} 2>&1"


rule figures:
    """Draw all figures of one category."""
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
        metrics=PLAN.files_of_jobs("metrics.json"),
        images=PLAN.files_of_jobs("images.csv"),
        curves=PLAN.files_of_jobs("curves.npz"),
        scores=PLAN.files_of_jobs("scores.npz"),
        extras=PLAN.files_of_jobs("extras.npz", detectors_only=True),
        history=PLAN.files_of_jobs("train.json", detectors_only=True),
    output:
        [f"<results>/figures/{kind}/{{dataset}}/{{category}}.pdf" for kind in CATEGORY_FIGURES],
        *[
            report(
                f"<results>/figures/{kind}/{{dataset}}/{{category}}.png",
                category="Figures",
                subcategory=kind.replace("_", " "),
                labels={"data set": "{dataset}", "category": "{category}"},
                caption=f"../report/{kind}.rst",
            )
            for kind in CATEGORY_FIGURES
        ],
    log:
        "<logs>/figures/{dataset}/{category}.log",
    benchmark:
        "<benchmarks>/figures/{dataset}/{category}.jsonl"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_digest("figures"),
        results=lambda wildcards, output: str(Path(output[0]).parents[3]),
    message:
        "Figures of {wildcards.dataset}, {wildcards.category}"
    shell:
        "sanflow figures {params.results:q} --category {wildcards.dataset:q}/{wildcards.category:q} > {log:q} 2>&1"


rule dots:
    """Draw the headline metrics of all categories as dots, beside the published numbers."""
    input:
        metrics=PLAN.files_of_jobs("metrics.json"),
    output:
        [f"<results>/figures/dots/{metric}.pdf" for metric in FIGURE_METRICS],
        *[
            report(
                f"<results>/figures/dots/{metric}.png",
                category="Figures",
                subcategory="dots",
                labels={"data set": "all", "category": metric.replace("_", " ")},
                caption="../report/dots.rst",
            )
            for metric in FIGURE_METRICS
        ],
    log:
        "<logs>/dots.log",
    benchmark:
        "<benchmarks>/dots.jsonl"
    localrule: True
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_digest("figures"),
        published=published_digest(),
        results=lambda wildcards, output: str(Path(output[0]).parents[2]),
    message:
        "Dots of the headline metrics of all jobs"
    shell:
        "sanflow figures {params.results:q} --only dots > {log:q} 2>&1"


rule explorer:
    """Write the page to open: the headline table and every test image with its maps."""
    input:
        indices=lambda wildcards: [
            f"<results>/{dataset}/{category}/index.{ending}"
            for dataset, category in PLAN.categories()
            for ending in ("csv", "json")
        ],
        metrics=PLAN.files_of_jobs("metrics.json"),
        images=PLAN.files_of_jobs("images.csv"),
        scores=PLAN.files_of_jobs("scores.npz"),
    output:
        folder=directory("<results>/explorer"),
    log:
        "<logs>/explorer.log",
    benchmark:
        "<benchmarks>/explorer.jsonl"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_digest("explorer"),
        results=lambda wildcards, output: str(Path(output.folder).parent),
    message:
        "Explorer of all jobs"
    shell:
        "sanflow explore {params.results:q} --workers {threads} > {log:q} 2>&1"
