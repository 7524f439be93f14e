"""
Adapter -> GGUF, for models that are served as an adapter beside their base's GGUF (`serve: adapter`).

OUTPUTS:
    results/{model}/gguf/{model}.adapter.gguf   the adapter, float32
    results/{model}/gguf/{model}.adapter.json   its record: size, sha256, architecture, alpha, ranks, norm of the update
    results/{model}/gguf/{model}.{quant}.gguf   with `ollama.from`: a link to the weights that Ollama has; beside it their record

The base's GGUFs are those of the model without adapter: the user's own, or one that is built under the name of the base's
folder, for all of its adapters; or one that Ollama has already. Nothing is merged.
"""


ruleorder: take_base_from_ollama > quantize


rule convert_adapter_to_gguf:
    """Convert the adapter with llama.cpp's converter, and prove that the update is the adapter's.

    Before the base is converted, since it says what cannot be served so.
    """
    input:
        plan=rules.plan_merge.output,
        weights=adapter_weights,
        converter=converter_files(),
    output:
        gguf=ADAPTER_GGUF,
        record=ADAPTER_RECORD,
    log:
        "logs/convert_adapter_to_gguf/{model}.log",
    benchmark:
        "benchmarks/convert_adapter_to_gguf/{model}.tsv"
    priority: 80
    conda:
        "../envs/llama_cpp.yaml"
    resources:
        mem_mb=adapter_mem_mb,
    params:
        spec=adapter_spec,
        converter=lambda wildcards, input: input.converter[0],
        base=lambda wildcards: folders_of(wildcards.model)[0],
        script=script("convert_adapter_to_gguf"),
        code=code_digest("convert_adapter_to_gguf"),
    message:
        "Converting the adapter of {wildcards.model} to GGUF"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --converter {params.converter:q} \
            --plan {input.plan:q} \
            --base {params.base:q} \
            --name {wildcards.model:q} \
            --seen {params.spec:q} \
            --output {output.gguf:q} \
            --record {output.record:q}
        """


rule take_base_from_ollama:
    """Take the weights of a model in Ollama for the base's, once its norms are those of the base."""
    input:
        plan=rules.plan_merge.output,
        weights=fetched_base,
    output:
        gguf="results/{model}/gguf/{model}.{quant}.gguf",
        record="results/{model}/gguf/{model}.{quant}.json",
    log:
        "logs/take_base_from_ollama/{model}.{quant}.log",
    benchmark:
        "benchmarks/take_base_from_ollama/{model}.{quant}.tsv"
    wildcard_constraints:
        model="|".join(map(re.escape, FROM_OLLAMA)) or "none",
    priority: 80
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=1000,
        ollama=1,
    params:
        spec=place_spec,
        source=lambda wildcards: FROM_OLLAMA[wildcards.model],
        timeout=lambda wildcards, input: CONFIG.timeout,
        script=script("take_base_from_ollama"),
        code=code_digest("take_base_from_ollama"),
    message:
        "Taking the weights of {params.source} for the base of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --from {params.source:q} \
            --type {wildcards.quant:q} \
            --plan {input.plan:q} \
            --spec {params.spec:q} \
            --name {wildcards.model:q} \
            --timeout {params.timeout} \
            --output {output.gguf:q} \
            --record {output.record:q}
        """
