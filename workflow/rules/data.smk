# Data sets: download or make each once, then list the images of every category.
#
# REQUIRED INPUTS: none; mirrors and checksums are in resources/datasets.yaml
# OUTPUTS:
#   <data>/{dataset}/.sanflow.json                       marker of a complete data set, written last
#   <results>/{dataset}/{category}/index.{csv,json}      images, masks, labels, sizes, hashes


rule download:
    """Fetch, check and unpack a data set, or make the built-in one."""
    output:
        # Data sets stay where they are, also if an object store holds the results.
        marker=local("<data>/{dataset}/.sanflow.json"),
    log:
        "<logs>/download/{dataset}.log",
    benchmark:
        "<benchmarks>/download/{dataset}.jsonl"
    localrule: True
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        # A download is checked by its hash, so its code does not matter. A built-in data set depends on the code that makes it.
        code=lambda wildcards: (code_digest("download") if wildcards.dataset == "photo_textures" else None),
    shell:
        "sanflow download -- {wildcards.dataset:q} > {log:q} 2>&1"


rule index:
    """List and check the images and masks of a category; every later step reads only this list."""
    input:
        marker=lambda wildcards: local(PLAN.marker(wildcards)),
    output:
        table="<results>/{dataset}/{category}/index.csv",
        facts="<results>/{dataset}/{category}/index.json",
    log:
        "<logs>/index/{dataset}/{category}.log",
    benchmark:
        "<benchmarks>/index/{dataset}/{category}.jsonl"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_digest("index"),
        config=PLAN.data_settings,
        listing=PLAN.listing,
    shell:
        "sanflow index --output {output.table:q} -- {wildcards.dataset:q} {wildcards.category:q} > {log:q} 2>&1"
