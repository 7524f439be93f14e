"""
Merged checkpoint -> GGUF -> quantized GGUFs, by llama.cpp's own converter and llama-quantize.

OUTPUTS:
    results/{model}/gguf/{model}.unquantized.gguf   in the type that loses nothing of the merge
    results/{model}/gguf/{model}.conversion.json    what was converted
    results/{model}/gguf/{model}.{quant}.gguf       one job a quantization
    results/{model}/gguf/{model}.{...}.json         each with its record: size, sha256, type
    results/{model}/gguf/{model}.{user}.released    where it is not kept: who needs the unquantized GGUF no more

The records are what later rules depend on; the GGUFs themselves are ancient(). That of the unquantized GGUF stays as it is
where the GGUF was not kept and is made once more for one more job: the same weights, so nothing else starts.
"""


rule convert_to_gguf:
    """Convert the merged checkpoint with llama.cpp's converter."""
    input:
        shards=merged_shards,
        records=merge_records,
        plan=rules.plan_merge.output,
        manifest=rules.write_model_files.output.manifest,
        converter=converter_files(),
    output:
        gguf=kept(UNQUANTIZED, CONFIG.keep_unquantized),
        record=CONVERSION,
    log:
        "logs/convert_to_gguf/{model}.log",
    benchmark:
        "benchmarks/convert_to_gguf/{model}.tsv"
    priority: by_turn
    conda:
        "../envs/llama_cpp.yaml"
    resources:
        mem_mb=convert_mem_mb,
        disk_mb=convert_disk_mb,
        streams=1,
    params:
        converter=lambda wildcards, input: input.converter[0],
        about=convert_time,
        script=script("convert_to_gguf"),
        code=code_digest("convert_to_gguf"),
    message:
        "Converting {wildcards.model} to GGUF{params.about}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --converter {params.converter:q} \
            --plan {input.plan:q} \
            --manifest {input.manifest:q} \
            --records {input.records:q} \
            --name {wildcards.model:q} \
            --output {output.gguf:q} \
            --record {output.record:q}
        """


rule record_conversion:
    """Say what the unquantized GGUF is; nothing is said anew where the same is converted once more."""
    input:
        conversion=conversion_to_record,
        plan=rules.plan_merge.output,
        weights=weights_made_here,
        manifest=rules.write_model_files.output.manifest,
        converter=converter_files(),
    output:
        UNQUANTIZED_RECORD,
    log:
        "logs/record_conversion/{model}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        spec=conversion_spec,
        script=script("record_conversion"),
        code=code_digest("record_conversion"),
    message:
        "Recording the unquantized GGUF of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --conversion {input.conversion:q} \
            --spec {params.spec:q} \
            --output {output:q}
        """


rule quantize:
    """Quantize with llama-quantize. An unquantized type is copied through it, which keeps its sha256 in Ollama."""
    input:
        gguf=unquantized_to_quantize,
        record=rules.record_conversion.output,
        plan=rules.plan_merge.output,
        imatrix=imatrix_for("results/{model}/gguf/{model}.imatrix.gguf"),
        matrix=imatrix_for("results/{model}/gguf/{model}.imatrix.json"),
        program=program_files("llama-quantize"),
    output:
        gguf=ensure("results/{model}/gguf/{model}.{quant}.gguf", non_empty=True),
        record="results/{model}/gguf/{model}.{quant}.json",
    log:
        "logs/quantize/{model}.{quant}.log",
    benchmark:
        "benchmarks/quantize/{model}.{quant}.tsv"
    priority: by_turn
    conda:
        "../envs/llama_cpp.yaml"
    threads: THREADS
    resources:
        mem_mb=quantize_mem_mb,
        disk_mb=quantize_disk_mb,
        streams=quantize_streams,
    params:
        gguf=UNQUANTIZED,
        program=lambda wildcards, input: program_path("llama-quantize"),
        spec=quantization_spec,
        about=quantize_time,
        script=script("quantize"),
        code=code_digest("quantize"),
    message:
        "Quantizing {wildcards.model} to {wildcards.quant}{params.about}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --program {params.program:q} \
            --gguf {params.gguf:q} \
            --source-record {input.record:q} \
            --type {wildcards.quant:q} \
            --imatrix {input.imatrix:q} \
            --imatrix-record {input.matrix:q} \
            --spec {params.spec:q} \
            --output {output.gguf:q} \
            --record {output.record:q} \
            --threads {threads}
        """


rule release_unquantized:
    """Hold the unquantized GGUF until one of its users is done, and see that it was the one that others were made from."""
    input:
        gguf=ancient(UNQUANTIZED),
        conversion=ancient(CONVERSION),
        record=ancient(UNQUANTIZED_RECORD),
        used=user_of_unquantized,
    output:
        touch("results/{model}/gguf/{model}.{user}.released"),
    log:
        "logs/release_unquantized/{model}.{user}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("release_unquantized"),
        code=code_digest("release_unquantized"),
    message:
        "The {wildcards.user} of {wildcards.model} needs the unquantized GGUF no more"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --conversion {input.conversion:q} \
            --record {input.record:q}
        """
