"""ollamake: from a base model and a PEFT adapter to models that Ollama serves, as config/config.yaml says.
`snakemake --cores 1 all` builds what is missing; `snakemake -n all` says what that is, and why."""

from snakemake.utils import min_version

min_version("9.27")


include: "rules/configuration.smk"


configfile: "config/config.yaml"


include: "rules/common.smk"


rule all:
    input:
        EVERYTHING,


include: "rules/demo.smk"
include: "rules/llama_cpp.smk"
include: "rules/hub.smk"
include: "rules/check.smk"
include: "rules/merge.smk"
include: "rules/bitsandbytes.smk"
include: "rules/plan.smk"
include: "rules/gguf.smk"
include: "rules/adapter.smk"
include: "rules/quality.smk"
include: "rules/ollama.smk"
include: "rules/answers.smk"
include: "rules/rag.smk"
include: "rules/serving.smk"
include: "rules/report.smk"
include: "rules/targets.smk"
include: "rules/messages.smk"
