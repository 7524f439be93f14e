"""
Merged checkpoint -> GGUF -> quantized GGUFs, by llama.cpp's own converter and llama-quantize.

OUTPUTS:
    results/{model}/gguf/{model}.unquantized.gguf   in the type that loses nothing of the merge
    results/{model}/gguf/{model}.{quant}.gguf       one job a quantization
    results/{model}/gguf/{model}.{...}.json         each with its record: size, sha256, type, llama.cpp's version

The records are what later rules depend on; the GGUFs themselves are ancient().
"""


rule convert_to_gguf:
    """Convert the merged checkpoint with llama.cpp's converter."""
    input:
        shards=merged_shards,
        records=merge_records,
        plan=rules.plan_merge.output,
        manifest=rules.write_model_files.output.manifest,
        converter=converter_files(),
        script=script("convert_to_gguf"),
        library=library("convert_to_gguf"),
    output:
        gguf=kept("results/{model}/gguf/{model}.unquantized.gguf", CONFIG.keep_unquantized),
        record="results/{model}/gguf/{model}.unquantized.json",
    log:
        "logs/convert_to_gguf/{model}.log",
    benchmark:
        "benchmarks/convert_to_gguf/{model}.tsv"
    conda:
        "../envs/llama_cpp.yaml"
    resources:
        mem_mb=convert_mem_mb,
        disk_mb=convert_disk_mb,
    params:
        converter=lambda wildcards, input: input.converter[0],
        about=convert_time,
    message:
        "Converting {wildcards.model} to GGUF{params.about}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --converter {params.converter:q} \
            --plan {input.plan:q} \
            --manifest {input.manifest:q} \
            --name {wildcards.model:q} \
            --output {output.gguf:q} \
            --record {output.record:q}
        """


rule quantize:
    """Quantize with llama-quantize. An unquantized type is copied through it, which keeps its sha256 in Ollama."""
    input:
        gguf=ancient(rules.convert_to_gguf.output.gguf),
        record=rules.convert_to_gguf.output.record,
        plan=rules.plan_merge.output,
        imatrix=imatrix_for("results/{model}/gguf/{model}.imatrix.gguf"),
        matrix=imatrix_for("results/{model}/gguf/{model}.imatrix.json"),
        program=program_files("llama-quantize"),
        script=script("quantize"),
        library=library("quantize"),
    output:
        gguf=ensure("results/{model}/gguf/{model}.{quant}.gguf", non_empty=True),
        record="results/{model}/gguf/{model}.{quant}.json",
    log:
        "logs/quantize/{model}.{quant}.log",
    benchmark:
        "benchmarks/quantize/{model}.{quant}.tsv"
    conda:
        "../envs/llama_cpp.yaml"
    threads: THREADS
    resources:
        mem_mb=quantize_mem_mb,
        disk_mb=quantize_disk_mb,
    params:
        program=lambda wildcards, input: program_path("llama-quantize"),
        identity=program_version("llama-quantize"),
        about=quantize_time,
    message:
        "Quantizing {wildcards.model} to {wildcards.quant}{params.about}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --program {params.program:q} \
            --gguf {input.gguf:q} \
            --source-record {input.record:q} \
            --type {wildcards.quant:q} \
            --imatrix {input.imatrix:q} \
            --imatrix-record {input.matrix:q} \
            --output {output.gguf:q} \
            --record {output.record:q} \
            --threads {threads}
        """
