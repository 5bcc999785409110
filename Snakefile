# The workflow is in workflow/Snakefile. This file is for those who name `Snakefile`, and lets Snakemake find profiles/.
include: "workflow/Snakefile"
