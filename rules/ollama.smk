"""
Quantized GGUF -> a model in Ollama.

OUTPUTS:
    results/{model}/ollama/{quant}/Modelfile             for people, and for `ollama create -f`
    results/{model}/ollama/{quant}/create_request.json   the same as the request that registers it
    results/{model}/ollama/{quant}/registered.json       the registration marker, checked against the server or store

System prompt and parameters reach only these rules: changing them touches no weight.
"""


rule write_modelfile:
    """Write the Modelfile and the create request from one record: system prompt, parameters, template."""
    input:
        manifest=rules.write_model_files.output.manifest,
        script=script("write_modelfile"),
        library=library("write_modelfile"),
    output:
        modelfile="results/{model}/ollama/{quant}/Modelfile",
        request="results/{model}/ollama/{quant}/create_request.json",
    log:
        "logs/write_modelfile/{model}.{quant}.log",
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        spec=modelfile_spec,
        gguf="results/{model}/gguf/{model}.{quant}.gguf",
    message:
        "Writing the Modelfile of {wildcards.model} {wildcards.quant}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --model-files {input.manifest:q} \
            --spec {params.spec:q} \
            --gguf {params.gguf:q} \
            --modelfile {output.modelfile:q} \
            --request {output.request:q}
        """


rule register:
    """Register the model in Ollama, then check that Ollama holds exactly what was asked for.

    One at a time: Ollama has no locks, and parallel creates lose blobs.
    """
    input:
        gguf=ancient(rules.quantize.output.gguf),
        record=rules.quantize.output.record,
        request=rules.write_modelfile.output.request,
        script=script("register"),
        library=library("register"),
    output:
        "results/{model}/ollama/{quant}/registered.json",
    log:
        "logs/register/{model}.{quant}.log",
    benchmark:
        "benchmarks/register/{model}.{quant}.tsv"
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
        ollama=1,
    params:
        spec=register_spec,
    message:
        "Registering {wildcards.model} {wildcards.quant} in Ollama"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --request {input.request:q} \
            --gguf {input.gguf:q} \
            --record {input.record:q} \
            --spec {params.spec:q} \
            --output {output:q}
        """
