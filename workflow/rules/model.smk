# From an index to a checkpoint and then to scores: the steps that may use a GPU.
#
# REQUIRED INPUTS: <results>/{dataset}/{category}/index.csv
# OUTPUTS, in <results>/{dataset}/{category}/{experiment}/seed{seed}/:
#   checkpoint.pt   the fitted detector
#   train.json      history, times, memory; of make_maps: the cost only
#   scores.npz      score grids per scale, from which everything else is computed; extras.npz: data for figures only
#   kept/, epoch{epoch}/scores.npz, extras.npz    with keep_every: the epochs kept and their scores
#
# Training state is saved to <results>/state/, which is no output: Snakemake removes outputs before a job starts
# again, and a training that was killed resumes from its state.


rule train:
    """Fit the detector of one category with one seed; resumes after a kill."""
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
    output:
        checkpoint="<results>/{dataset}/{category}/{experiment}/seed{seed}/checkpoint.pt",
        history="<results>/{dataset}/{category}/{experiment}/seed{seed}/train.json",
    log:
        "<logs>/train/{dataset}/{category}/{experiment}/seed{seed}.log",
    benchmark:
        "<benchmarks>/train/{dataset}/{category}/{experiment}/seed{seed}.jsonl"
    wildcard_constraints:
        experiment=PLAN.experiments_of(DetectorMethod, keeping=False),
    threads: THREADS
    resources:
        gpu=lambda wildcards: int(PLAN.detector(wildcards).fit_needs_gpu),
        mem_mb=lambda wildcards, attempt: PLAN.fit_memory_mb(wildcards) * attempt,
        runtime=lambda wildcards, attempt: 720 * attempt,
    params:
        code=PLAN.fit_code,
        command=PLAN.fit_command,
        config=PLAN.fit_settings,
        state=f"{RESULTS_FOLDER}/state/{{dataset}}/{{category}}/{{experiment}}/seed{{seed}}",
        kept=[],
    shell:
        "exec {params.command:q}"
        " --experiment {wildcards.experiment:q} --seed {wildcards.seed}"
        " --output {output.checkpoint:q} --history {output.history:q} --state {params.state:q} {params.kept:q}"
        " -- {input.index:q} > {log:q} 2>&1"


use rule train as train_keeping with:
    output:
        checkpoint="<results>/{dataset}/{category}/{experiment}/seed{seed}/checkpoint.pt",
        history="<results>/{dataset}/{category}/{experiment}/seed{seed}/train.json",
        kept=directory("<results>/{dataset}/{category}/{experiment}/seed{seed}/kept"),
    wildcard_constraints:
        experiment=PLAN.experiments_of(DetectorMethod, keeping=True),
    params:
        code=PLAN.fit_code,
        command=PLAN.fit_command,
        config=PLAN.fit_settings,
        state=f"{RESULTS_FOLDER}/state/{{dataset}}/{{category}}/{{experiment}}/seed{{seed}}",
        kept=lambda wildcards, output: ["--kept", output.kept],


rule score:
    """Score the test images: grids per scale at their own size."""
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
        checkpoint="<results>/{dataset}/{category}/{experiment}/seed{seed}/checkpoint.pt",
    output:
        scores="<results>/{dataset}/{category}/{experiment}/seed{seed}/scores.npz",
        extras="<results>/{dataset}/{category}/{experiment}/seed{seed}/extras.npz",
    log:
        "<logs>/score/{dataset}/{category}/{experiment}/seed{seed}.log",
    benchmark:
        "<benchmarks>/score/{dataset}/{category}/{experiment}/seed{seed}.jsonl"
    wildcard_constraints:
        experiment=PLAN.experiments_of(DetectorMethod),
    threads: THREADS
    resources:
        gpu=lambda wildcards: int(PLAN.detector(wildcards).scoring_needs_gpu),
        mem_mb=lambda wildcards, attempt: PLAN.score_memory_mb(wildcards) * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=PLAN.score_code,
        command=PLAN.score_command,
        # Removed here, not by `train`: it is needed until the checkpoint has been read.
        state=[
            "--state",
            f"{RESULTS_FOLDER}/state/{{dataset}}/{{category}}/{{experiment}}/seed{{seed}}",
        ],
        checkpoint=lambda wildcards, input: input.checkpoint,
    shell:
        "exec {params.command:q} --checkpoint {params.checkpoint:q}"
        " --output {output.scores:q} --extras {output.extras:q} {params.state:q}"
        " -- {input.index:q} > {log:q} 2>&1"


use rule score as score_epoch with:
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
        kept="<results>/{dataset}/{category}/{experiment}/seed{seed}/kept",
    output:
        scores="<results>/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}/scores.npz",
        extras="<results>/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}/extras.npz",
    log:
        "<logs>/score/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}.log",
    benchmark:
        "<benchmarks>/score/{dataset}/{category}/{experiment}/seed{seed}/epoch{epoch}.jsonl"
    wildcard_constraints:
        experiment=PLAN.experiments_of(DetectorMethod, keeping=True),
    params:
        code=PLAN.score_code,
        command=PLAN.score_command,
        state=[],
        checkpoint=lambda wildcards, input: f"{input.kept}/epoch{wildcards.epoch}.pt",


rule score_external:
    """Read the anomaly maps that another tool made of the test images."""
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
    output:
        scores="<results>/{dataset}/{category}/{experiment}/seed{seed}/scores.npz",
    log:
        "<logs>/score_external/{dataset}/{category}/{experiment}/seed{seed}.log",
    benchmark:
        "<benchmarks>/score_external/{dataset}/{category}/{experiment}/seed{seed}.jsonl"
    wildcard_constraints:
        experiment=PLAN.experiments_of(MapSource),
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_digest("score_external"),
        config=PLAN.fit_settings,
        maps=PLAN.maps,
    shell:
        "sanflow score-external --experiment {wildcards.experiment:q} --seed {wildcards.seed}"
        " --output {output.scores:q} -- {input.index:q} > {log:q} 2>&1"


rule make_maps:
    """Run another tool on neutral copies of the images and read the anomaly maps that it makes."""
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
    output:
        scores="<results>/{dataset}/{category}/{experiment}/seed{seed}/scores.npz",
        history="<results>/{dataset}/{category}/{experiment}/seed{seed}/train.json",
    log:
        "<logs>/make_maps/{dataset}/{category}/{experiment}/seed{seed}.log",
    benchmark:
        "<benchmarks>/make_maps/{dataset}/{category}/{experiment}/seed{seed}.jsonl"
    wildcard_constraints:
        experiment=PLAN.experiments_of(MapMaker),
    threads: THREADS
    resources:
        gpu=lambda wildcards: int(PLAN.map_maker(wildcards).make_needs_gpu),
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 720 * attempt,
    params:
        code=PLAN.make_code,
        command=PLAN.make_command,
        config=PLAN.fit_settings,
        work=f"{RESULTS_FOLDER}/state/{{dataset}}/{{category}}/{{experiment}}/seed{{seed}}",
    shell:
        "exec {params.command:q} --experiment {wildcards.experiment:q} --seed {wildcards.seed}"
        " --output {output.scores:q} --history {output.history:q} --work {params.work:q}"
        " -- {input.index:q} > {log:q} 2>&1"
