"""
Merged checkpoint -> checkpoints that transformers and vLLM load quantized by bitsandbytes.

OUTPUTS:
    results/{model}/bitsandbytes_records/{precision}/plan.json                               how each tensor is stored
    results/{model}/bitsandbytes/{precision}/model-{shard}-of-{nshards}.safetensors          one job a shard
    results/{model}/bitsandbytes_records/{precision}/model-{shard}-of-{nshards}.json         what that job read and wrote
    results/{model}/bitsandbytes/{precision}/{config.json, tokenizer ...}                    everything beside the weights
    results/{model}/bitsandbytes/{precision}.json                                            what the checkpoint is
    results/{model}/quality/{precision}.json                                                 how far it is from the merged one
    results/{model}/bitsandbytes_records/{user}.released    where they are not kept: who needs the merged shards no more

{precision} is nf4 or int8. What bitsandbytes keeps beside a weight is always in the weight's own shard, so a checkpoint has as
many shards as the merged one, and each is made alone.
"""


rule plan_bitsandbytes:
    """Ask transformers which tensors it would quantize; refuse what cannot be, before the heavy jobs."""
    input:
        plan=rules.plan_merge.output,
        config=base_config,
    output:
        BITSANDBYTES_PLAN,
    log:
        "logs/plan_bitsandbytes/{model}.{precision}.log",
    priority: 90
    localrule: True
    conda:
        "../envs/bitsandbytes.yaml"
    threads: ALL_CORES
    resources:
        mem_mb=1500,
        alone=1,
    params:
        base=lambda wildcards, input: os.path.dirname(input.config),
        key="models.{model}.bitsandbytes",
        settings=bitsandbytes_weights_settings,
        script=script("plan_bitsandbytes"),
        code=code_digest("plan_bitsandbytes"),
    message:
        "Planning {wildcards.precision} of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --plan {input.plan:q} \
            --base {params.base:q} \
            --key {params.key:q} \
            --settings {params.settings:q} \
            --output {output:q}
        """


rule quantize_bitsandbytes:
    """Quantize one merged shard, a band of a tensor at a time, to what transformers and bitsandbytes would save."""
    input:
        shard=merged_to_quantize,
        merged=merged_record_to_quantize,
        plan=rules.plan_merge.output,
        layers=BITSANDBYTES_PLAN,
    output:
        shard=BITSANDBYTES_SHARD,
        record=BITSANDBYTES_RECORD,
    log:
        "logs/quantize_bitsandbytes/{model}/{precision}/{shard}-of-{nshards}.log",
    benchmark:
        "benchmarks/quantize_bitsandbytes/{model}/{precision}/{shard}-of-{nshards}.tsv"
    priority: by_turn
    conda:
        "../envs/bitsandbytes.yaml"
    threads: 1
    resources:
        mem_mb=bitsandbytes_mem_mb,
        disk_mb=bitsandbytes_disk_mb,
        streams=1,
    params:
        merged=MERGED_SHARD,
        spec=bitsandbytes_shard_spec,
        script=script("quantize_bitsandbytes"),
        code=code_digest("quantize_bitsandbytes"),
    message:
        "Quantizing shard {wildcards.shard} of {wildcards.nshards} of {wildcards.model} to {wildcards.precision}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --precision {wildcards.precision:q} \
            --layers {input.layers:q} \
            --shard {params.merged:q} \
            --merge-record {input.merged:q} \
            --spec {params.spec:q} \
            --output {output.shard:q} \
            --record {output.record:q}
        """


rule write_bitsandbytes_files:
    """Write config with the quantization, index, tokenizer and chat template; say what the checkpoint is."""
    input:
        records=bitsandbytes_records,
        shards=bitsandbytes_shards,
        layers=BITSANDBYTES_PLAN,
        manifest=rules.write_model_files.output.manifest,
    output:
        config="results/{model}/bitsandbytes/{precision}/config.json",
        index="results/{model}/bitsandbytes/{precision}/model.safetensors.index.json",
        record=BITSANDBYTES_CHECKPOINT,
    log:
        "logs/write_bitsandbytes_files/{model}.{precision}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/bitsandbytes.yaml"
    resources:
        mem_mb=1500,
    params:
        folder=lambda wildcards, output: os.path.dirname(output.config),
        settings=bitsandbytes_settings,
        script=script("write_bitsandbytes_files"),
        code=code_digest("write_bitsandbytes_files"),
    message:
        "Writing config and tokenizer of {wildcards.model} in {wildcards.precision}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --precision {wildcards.precision:q} \
            --layers {input.layers:q} \
            --settings {params.settings:q} \
            --manifest {input.manifest:q} \
            --records {input.records:q} \
            --output {params.folder:q} \
            --record {output.record:q}
        """


rule evaluate_bitsandbytes:
    """Measure a bitsandbytes checkpoint against the merged weights, both run by transformers on the CPU."""
    input:
        record=BITSANDBYTES_CHECKPOINT,
        shards=bitsandbytes_shards,
        merged=merged_to_compare,
        manifest=rules.write_model_files.output.manifest,
        plan=rules.plan_merge.output,
        unquantized=UNQUANTIZED_RECORD,
        text="results/{model}/quality/evaluation.txt",
        evaluation="results/{model}/quality/evaluation.json",
    output:
        QUALITY_OF_CHECKPOINT,
    log:
        "logs/evaluate_bitsandbytes/{model}.{precision}.log",
    benchmark:
        "benchmarks/evaluate_bitsandbytes/{model}.{precision}.tsv"
    priority: by_turn
    conda:
        "../envs/bitsandbytes.yaml"
    threads: THREADS
    resources:
        mem_mb=checkpoint_quality_mem_mb,
    params:
        checkpoint=lambda wildcards, input: input.record.removesuffix(".json"),
        merged=lambda wildcards, input: os.path.dirname(input.manifest),
        merge_records="results/{model}/merge_records",
        spec=checkpoint_measuring_spec,
        script=script("evaluate_bitsandbytes"),
        code=code_digest("evaluate_bitsandbytes"),
    message:
        "Evaluating {wildcards.model} {wildcards.precision}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --precision {wildcards.precision:q} \
            --checkpoint {params.checkpoint:q} \
            --record {input.record:q} \
            --merged {params.merged:q} \
            --merge-records {params.merge_records:q} \
            --unquantized-record {input.unquantized:q} \
            --text {input.text:q} \
            --text-record {input.evaluation:q} \
            --spec {params.spec:q} \
            --output {output:q} \
            --threads {threads}
        """


rule release_merged:
    """Hold the merged shards until one of their users beside the conversion is done."""
    input:
        shards=merged_shards,
        used=user_of_merged,
    output:
        touch("results/{model}/bitsandbytes_records/{user}.released"),
    log:
        "logs/release_merged/{model}.{user}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    message:
        "The {wildcards.user} of {wildcards.model} needs the merged shards no more"
    shell:
        r"""
        echo "{input.used} is there" >{log:q}
        """
