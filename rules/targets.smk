"""
Named targets, each a stage of the chain for all models of the configuration; `all` stands in the Snakefile.

    plan          what fits, how large, how long; works before the weights of the base are here
    merged        merged checkpoints: safetensors, config, tokenizer; with the report of the merge
    bitsandbytes  checkpoints that transformers and vLLM load, quantized by bitsandbytes
    gguf          quantized GGUFs
    quality       what quantization loses, measured and judged
    modelfiles    Modelfiles with the GGUFs they name
    registered    models registered in Ollama, prompted as in training
    rag           RAG applications' configurations with the registered models in them
    serving       files for vLLM and TGI, with the weights that these read
    verify        not a stage: read everything that was built, read or registered, byte by byte, and change nothing
"""


rule plan:
    """Print the plans of all models."""
    input:
        files=PLANS,
        plans=expand(PLAN, model=PLANNED),
        times=expand("results/{model}/times.json", model=PLANNED),
    log:
        "logs/plan/plans.log",
    localrule: True
    conda:
        "../envs/ollama.yaml"
    params:
        types=quantizations_named(),
        script=script("plan"),
        code=code_digest("plan"),
    message:
        "What fits"
    shell:
        r"""
        if [ -t 1 ]; then export COLUMNS=$(tput cols); fi
        exec &> >(tee {log:q})
        python {params.script:q} \
            --plans {input.plans:q} \
            --times {input.times:q} \
            --types {params.types:q}
        """


rule merged:
    input:
        CHECKED,
        MERGED,
        MERGE_REPORTS,


rule bitsandbytes:
    input:
        CHECKED,
        BITSANDBYTES,
        USED_MERGED,


rule gguf:
    input:
        CHECKED,
        GGUFS,
        QUANTIZED,


rule quality:
    input:
        CHECKED,
        QUALITY,
        QUANTIZED,
        COMPARED,
        USED_MERGED if any(CONFIG.models[name].bitsandbytes.evaluate for name, _ in CHECKPOINTS) else [],
        VERDICTS,
        [f"results/{name}/quality.html" for name in MEASURED],


rule modelfiles:
    input:
        CHECKED,
        GGUFS,
        QUANTIZED,
        MODELFILES,


rule registered:
    input:
        CHECKED,
        QUANTIZED,
        MARKERS,
        REGISTERED_MODELS,
        TEMPLATE_CHECKS,


rule rag:
    input:
        CHECKED,
        MARKERS,
        REGISTERED_MODELS,
        TEMPLATE_CHECKS,
        RAG_CONFIGS,


rule serving:
    input:
        CHECKED,
        SERVING,
        SERVED_WEIGHTS,


rule verify:
    """Read all that was built, what it was built from and what is registered; end with an error if anything differs."""
    log:
        "logs/verify/build.log",
    localrule: True
    conda:
        "../envs/ollama.yaml"
    params:
        script=script("verify"),
        results=expand("results/{model}", model=TURNS),
        markers=markers_so_far(),
    message:
        "Verifying what is built and registered"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --results {params.results:q} \
            --markers {params.markers:q} \
            --programs resources/llama.cpp
        """
