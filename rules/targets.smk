"""
Named targets, each a stage of the chain for all models of the configuration; `all` stands in the Snakefile.

    merged      merged checkpoints: safetensors, config, tokenizer; with the report of the merge
    gguf        quantized GGUFs
    modelfiles  Modelfiles with the GGUFs they name
    registered  models registered in Ollama, prompted as in training
    verify      not a stage: look deeply at everything that is registered, and change nothing
"""


rule merged:
    input:
        CHECKED,
        MERGED,
        MERGE_REPORTS,


rule gguf:
    input:
        CHECKED,
        GGUFS,


rule modelfiles:
    input:
        CHECKED,
        GGUFS,
        MODELFILES,


rule registered:
    input:
        CHECKED,
        MARKERS,
        REGISTERED_MODELS,
        TEMPLATE_CHECKS,


rule verify:
    """Compare every registered model with its marker, blob by blob; end with an error if one differs."""
    log:
        "logs/verify/registrations.log",
    localrule: True
    conda:
        "../envs/ollama.yaml"
    params:
        script=script("verify"),
        markers=MARKERS,
    message:
        "Verifying what is registered"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --markers {params.markers:q}
        """
