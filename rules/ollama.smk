"""
Quantized GGUF -> a model in Ollama, verified.

OUTPUTS:
    results/{model}/ollama/template.json                 how conversations are written, and on what that is proven
    results/{model}/ollama/{quant}/Modelfile             for people, and for `ollama create -f`
    results/{model}/ollama/{quant}/create_request.json   the same as the request that registers it
    results/{model}/ollama/{quant}/registered.json       the registration marker, checked against the server or store
    ollama://results/.../registered.json                 the registered model itself, as the server or store has it now
    results/{model}/ollama/template_check.json           the prompts that the registered model is given, against the tokenizer's

System prompt and parameters reach only Modelfile and registration: changing them touches no weight.
"""


rule choose_template:
    """Find a TEMPLATE for Ollama that says what the tokenizer's chat template says, and prove it."""
    input:
        manifest=rules.write_model_files.output.manifest,
        record=unquantized_record,
    output:
        "results/{model}/ollama/template.json",
    log:
        "logs/choose_template/{model}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        policy=template_spec,
        script=script("choose_template"),
        code=code_digest("choose_template"),
    message:
        "Choosing the template of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model-files {input.manifest:q} \
            --record {input.record:q} \
            --policy - \
            --output {output:q} \
            <<<{params.policy:q}
        """


rule write_modelfile:
    """Write the Modelfile and the create request from one record: system prompt, parameters, template."""
    input:
        manifest=rules.write_model_files.output.manifest,
        template=rules.choose_template.output,
        plan=plan_of_num_ctx,
    output:
        modelfile="results/{model}/ollama/{quant}/Modelfile",
        request="results/{model}/ollama/{quant}/create_request.json",
    log:
        "logs/write_modelfile/{model}.{quant}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        spec=modelfile_spec,
        gguf=weights_served,
        adapter=adapter_served,
        script=script("write_modelfile"),
        code=code_digest("write_modelfile"),
    message:
        "Writing the Modelfile of {wildcards.model} {wildcards.quant}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model-files {input.manifest:q} \
            --template {input.template:q} \
            --plan {input.plan:q} \
            --gguf {params.gguf:q} \
            --adapter {params.adapter:q} \
            --modelfile {output.modelfile:q} \
            --request {output.request:q} \
            <<<{params.spec:q}
        """


rule register:
    """Register the model in Ollama, then check that Ollama holds exactly what was asked for.

    One at a time: Ollama has no locks, and parallel creates lose blobs.
    """
    input:
        gguf=weights_served,
        record=record_served,
        adapter=adapter_served,
        adapter_record=adapter_record,
        request=rules.write_modelfile.output.request,
        verdict=verdict_before_registration,
    output:
        marker=report(
            MARKER,
            caption="report/marker.rst",
            category="7 Registration",
            subcategory="{model}",
            labels={"content": "marker (JSON)", "model": "{model}", "quantization": "{quant}"},
        ),
        registered=REGISTERED_MODEL,
    log:
        "logs/register/{model}.{quant}.log",
    benchmark:
        "benchmarks/register/{model}.{quant}.tsv"
    priority: by_turn
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
        ollama=1,
    params:
        spec=place_spec,
        timeout=lambda wildcards, input: CONFIG.timeout,
        script=script("register"),
        code=code_digest("register"),
    message:
        "Registering {wildcards.model} {wildcards.quant} in Ollama"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --request {input.request:q} \
            --gguf {input.gguf:q} \
            --record {input.record:q} \
            --adapter {input.adapter:q} \
            --adapter-record {input.adapter_record:q} \
            --spec {params.spec:q} \
            --timeout {params.timeout} \
            --output {output.marker:q}
        touch {output.registered:q}
        """


rule check_template:
    """Compare the prompts that the registered model is given with those of the tokenizer, text and token ids.

    Of the smallest quantization: all have the same tokenizer and template. A new system prompt does not start it.
    """
    input:
        template=rules.choose_template.output,
        manifest=rules.write_model_files.output.manifest,
        record=smallest_quantization(WEIGHTS_RECORD),
        marker=marker_to_check,
        judged=judged_before_check,
        gguf=ancient(smallest_quantization(WEIGHTS)),
        tokenize=lambda wildcards: program_files("llama-tokenize"),
    output:
        TEMPLATE_CHECK,
    log:
        "logs/check_template/{model}.log",
    benchmark:
        "benchmarks/check_template/{model}.tsv"
    priority: by_turn
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=1500,
        ollama=1,
    params:
        spec=template_check_spec,
        timeout=lambda wildcards, input: CONFIG.timeout,
        tokenize=lambda wildcards, input: program_path("llama-tokenize"),
        serve=lambda wildcards, input: program_if_found("llama-server"),
        script=script("check_template"),
        code=code_digest("check_template"),
    message:
        "Checking how {wildcards.model} is prompted"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --marker {input.marker:q} \
            --template {input.template:q} \
            --model-files {input.manifest:q} \
            --record {input.record:q} \
            --gguf {input.gguf:q} \
            --tokenize {params.tokenize:q} \
            --serve {params.serve:q} \
            --spec {params.spec:q} \
            --timeout {params.timeout} \
            --output {output:q}
        """
