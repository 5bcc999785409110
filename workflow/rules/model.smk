# From an index to a checkpoint to scores: the steps that want a GPU.
#
# REQUIRED INPUTS: <results>/{dataset}/{category}/index.csv
# OUTPUTS, in <results>/{dataset}/{category}/{experiment}/seed{seed}/:
#   checkpoint.pt   trained here or imported from the authors' file
#   train.json      history, times, memory
#   scores.npz      score grids per scale, the waist of the benchmark; extras.npz what only figures need
#   kept/, epoch{epoch}/scores.npz, extras.npz    with keep_every: the epochs kept and their scores
#
# Training state is saved to <results>/state/, which is no output: Snakemake removes outputs before a job starts
# again, and a training that was killed goes on from its state.


rule train:
    """Train the flows (and the statistics network) of one category with one seed; goes on after a kill."""
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
        experiment=experiments_where(lambda experiment: experiment.trains and experiment.keep_every is None),
    threads: 4
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 720 * attempt,
    params:
        code=code_digest("train"),
        config=lambda wildcards: training_digest(experiment_of(wildcards).training_settings(wildcards.category)),
        state=f"{RESULTS}/state/{{dataset}}/{{category}}/{{experiment}}/seed{{seed}}",
        kept=[],
    shell:
        'exec sanflow gpu-exec --device "$SANFLOW_DEVICE" --slots-per-gpu "$SANFLOW_SLOTS_PER_GPU" --'
        ' sanflow train {input.index:q} --benchmark "$SANFLOW_BENCHMARK"'
        " --experiment {wildcards.experiment:q} --seed {wildcards.seed}"
        " --output {output.checkpoint:q} --history {output.history:q} --state {params.state:q} {params.kept:q}"
        ' --device "$SANFLOW_DEVICE" --cache "$SANFLOW_CACHE" --save-state-every "$SANFLOW_SAVE_STATE_EVERY"'
        f" --tracking {RESULTS}/tracking > {{log:q}} 2>&1"


use rule train as train_keeping with:
    output:
        checkpoint="<results>/{dataset}/{category}/{experiment}/seed{seed}/checkpoint.pt",
        history="<results>/{dataset}/{category}/{experiment}/seed{seed}/train.json",
        kept=directory("<results>/{dataset}/{category}/{experiment}/seed{seed}/kept"),
    wildcard_constraints:
        experiment=experiments_where(lambda experiment: experiment.trains and experiment.keep_every is not None),
    params:
        code=code_digest("train"),
        config=lambda wildcards: training_digest(experiment_of(wildcards).training_settings(wildcards.category)),
        state=f"{RESULTS}/state/{{dataset}}/{{category}}/{{experiment}}/seed{{seed}}",
        kept=lambda wildcards, output: ["--kept", output.kept],


rule import_official:
    """Turn the authors' weight file of a category into a checkpoint of ours."""
    input:
        index="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
    output:
        checkpoint="<results>/{dataset}/{category}/{experiment}/seed{seed}/checkpoint.pt",
        history="<results>/{dataset}/{category}/{experiment}/seed{seed}/train.json",
    log:
        "<logs>/import_official/{dataset}/{category}/{experiment}/seed{seed}.log",
    benchmark:
        "<benchmarks>/import_official/{dataset}/{category}/{experiment}/seed{seed}.jsonl"
    wildcard_constraints:
        experiment=experiments_where(lambda experiment: experiment.source == "official"),
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_digest("import_official"),
        file=lambda wildcards: experiment_of(wildcards).official_weights_for(wildcards.category),
        config=lambda wildcards: training_digest(experiment_of(wildcards).training_settings(wildcards.category)),
    shell:
        'sanflow import-official {params.file:q} --index {input.index:q} --benchmark "$SANFLOW_BENCHMARK"'
        " --experiment {wildcards.experiment:q} --seed {wildcards.seed}"
        " --output {output.checkpoint:q} --history {output.history:q} > {log:q} 2>&1"


rule score:
    """Score the test images: grids per scale at their own size, and the constants that calibrate them."""
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
        experiment=experiments_where(lambda experiment: experiment.method != "external"),
    threads: 4
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_digest("score"),
        # Needed no longer once the checkpoint has been read: removed here, not by `train`.
        state=[
            "--state",
            f"{RESULTS}/state/{{dataset}}/{{category}}/{{experiment}}/seed{{seed}}",
        ],
        checkpoint=lambda wildcards, input: input.checkpoint,
    shell:
        'exec sanflow gpu-exec --device "$SANFLOW_DEVICE" --slots-per-gpu "$SANFLOW_SLOTS_PER_GPU" --'
        " sanflow score {input.index:q} --checkpoint {params.checkpoint:q}"
        " --output {output.scores:q} --extras {output.extras:q} {params.state:q}"
        ' --device "$SANFLOW_DEVICE" --cache "$SANFLOW_CACHE" > {log:q} 2>&1'


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
        experiment=experiments_where(lambda experiment: experiment.trains and experiment.keep_every is not None),
    params:
        code=code_digest("score"),
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
        experiment=experiments_where(lambda experiment: experiment.method == "external"),
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_digest("score_external"),
        config=lambda wildcards: digest_of(experiment_of(wildcards).model_dump(include={"maps", "input_size"})),
        maps=lambda wildcards: listing_digest(
            experiment_of(wildcards).maps_for(wildcards.dataset, wildcards.category), times=True
        ),
    shell:
        'sanflow score-external {input.index:q} --benchmark "$SANFLOW_BENCHMARK"'
        " --experiment {wildcards.experiment:q} --output {output.scores:q} > {log:q} 2>&1"
