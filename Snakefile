"""ollamake: from a base model and a PEFT adapter to quantized models that Ollama serves.

    snakemake --cores 1 all     build what is missing or outdated
    snakemake -n all            say what would be built, and why
What is built stands in config/config.yaml or a file given with --configfile; see config/README.md.
"""

from snakemake.utils import min_version

min_version("9.19")


configfile: "config/config.yaml"


report: "rules/report/workflow.rst"


include: "rules/common.smk"


rule all:
    input:
        EVERYTHING,


include: "rules/demo.smk"
include: "rules/llama_cpp.smk"
include: "rules/check.smk"
include: "rules/merge.smk"
include: "rules/bitsandbytes.smk"
include: "rules/plan.smk"
include: "rules/gguf.smk"
include: "rules/quality.smk"
include: "rules/ollama.smk"
include: "rules/answers.smk"
include: "rules/report.smk"
include: "rules/targets.smk"
include: "rules/messages.smk"
