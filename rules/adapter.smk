"""
Adapter -> GGUF, for models that are served as an adapter beside their base's GGUF (`serve: adapter`).

OUTPUTS:
    results/{model}/gguf/{model}.adapter.gguf   the adapter, float32
    results/{model}/gguf/{model}.adapter.json   its record: size, sha256, architecture, alpha, ranks, norm of the update

The base's GGUFs are those of the model without adapter: the user's own, or one that is built under the name of the base's
folder, for all of its adapters. Nothing is merged.
"""


rule convert_adapter_to_gguf:
    """Convert the adapter with llama.cpp's converter, and prove that the update is the adapter's.

    Before the base is converted, since it says what cannot be served so.
    """
    input:
        plan=rules.plan_merge.output,
        weights=adapter_weights,
        converter=converter_files(),
        script=script("convert_adapter_to_gguf"),
        library=library("convert_adapter_to_gguf"),
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
        base=lambda wildcards: CONFIG.models[wildcards.model].base,
    message:
        "Converting the adapter of {wildcards.model} to GGUF"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --converter {params.converter:q} \
            --plan {input.plan:q} \
            --base {params.base:q} \
            --name {wildcards.model:q} \
            --seen {params.spec:q} \
            --output {output.gguf:q} \
            --record {output.record:q}
        """
