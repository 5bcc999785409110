# The workflow is in workflow/Snakefile. This file is for those who name `Snakefile`, and lets Snakemake find profiles/ from
# any folder.
include: "workflow/Snakefile"


# An included file cannot say which rule is asked for by default.
if workflow.modifier.rule_whitelist is None:
    workflow.default_target = workflow.modifier.modify_rulename("all")
