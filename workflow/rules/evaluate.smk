# From scores to metrics, without a GPU.
#
# REQUIRED INPUTS: index.csv, scores.npz and (unless finished maps are read) train.json of a job
# OUTPUTS, in <results>/{dataset}/{category}/{experiment}/seed{seed}/ and its epoch{epoch}/:
#   metrics.json   every metric with its interval, costs, provenance
#   images.csv     one row per test image
#   curves.npz     ROC, PR and PRO curves


rule evaluate:
    """Fuse the scores to anomaly maps and measure them against the masks."""
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
        scores="<results>/{dataset}/{category}/{experiment}/seed{seed}/scores.npz",
        history=PLAN.training_history,
    output:
        metrics="<results>/{dataset}/{category}/{experiment}/seed{seed}/metrics.json",
        images="<results>/{dataset}/{category}/{experiment}/seed{seed}/images.csv",
        curves="<results>/{dataset}/{category}/{experiment}/seed{seed}/curves.npz",
    log:
        "<logs>/evaluate/{dataset}/{category}/{experiment}/seed{seed}.log",
    benchmark:
        "<benchmarks>/evaluate/{dataset}/{category}/{experiment}/seed{seed}.jsonl"
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_digest("evaluate"),
        config=PLAN.evaluation_settings,
        history=lambda wildcards, input: (["--history", input.history] if input.get("history") else []),
    shell:
        "sanflow evaluate --scores {input.scores:q} --experiment {wildcards.experiment:q}"
        " --output {output.metrics:q} --images {output.images:q} --curves {output.curves:q}"
        " {params.history:q} -- {input.index:q} > {log:q} 2>&1"


use rule evaluate as evaluate_epoch with:
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
        scores="<results>/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}/scores.npz",
        history=PLAN.training_history,
    output:
        metrics="<results>/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}/metrics.json",
        images="<results>/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}/images.csv",
        curves="<results>/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}/curves.npz",
    log:
        "<logs>/evaluate/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}.log",
    benchmark:
        "<benchmarks>/evaluate/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}.jsonl"
    params:
        code=code_digest("evaluate"),
        config=PLAN.evaluation_settings,
        history=lambda wildcards, input: ["--history", input.history],
