"""
Merged checkpoint -> checkpoints that transformers and vLLM load quantized by bitsandbytes.

OUTPUTS:
    results/{model}/bitsandbytes/{precision}/model-{shard}-of-{nshards}.safetensors          one job a shard
    results/{model}/bitsandbytes_records/{precision}/model-{shard}-of-{nshards}.json         what that job read and wrote
    results/{model}/bitsandbytes/{precision}/{config.json, tokenizer ...}                    everything beside the weights
    results/{model}/bitsandbytes/{precision}.json                                            what the checkpoint is

{precision} is nf4 or int8. What bitsandbytes keeps beside a weight is always in the weight's own shard, so a checkpoint has as
many shards as the merged one, and each is made alone.
"""


rule quantize_bitsandbytes:
    """Quantize one merged shard, a band of a tensor at a time, to what transformers and bitsandbytes would save."""
    input:
        shard=ancient(MERGED_SHARD),
        merged=MERGE_RECORD,
        plan=rules.plan_merge.output,
        config=base_config,
        script=script("quantize_bitsandbytes"),
        library=library("quantize_bitsandbytes"),
    output:
        shard=BITSANDBYTES_SHARD,
        record=BITSANDBYTES_RECORD,
    log:
        "logs/quantize_bitsandbytes/{model}/{precision}/{shard}-of-{nshards}.log",
    benchmark:
        "benchmarks/quantize_bitsandbytes/{model}/{precision}/{shard}-of-{nshards}.tsv"
    conda:
        "../envs/bitsandbytes.yaml"
    threads: 1
    resources:
        mem_mb=bitsandbytes_mem_mb,
        disk_mb=bitsandbytes_disk_mb,
    params:
        base=lambda wildcards, input: os.path.dirname(input.config),
        key="models.{model}.bitsandbytes",
        settings=bitsandbytes_weights_spec,
    message:
        "Quantizing shard {wildcards.shard} of {wildcards.nshards} of {wildcards.model} to {wildcards.precision}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --precision {wildcards.precision:q} \
            --plan {input.plan:q} \
            --base {params.base:q} \
            --key {params.key:q} \
            --settings {params.settings:q} \
            --shard {input.shard:q} \
            --merge-record {input.merged:q} \
            --output {output.shard:q} \
            --record {output.record:q}
        """


rule write_bitsandbytes_files:
    """Write config with the quantization, index, tokenizer and chat template; say what the checkpoint is."""
    input:
        records=bitsandbytes_records,
        shards=bitsandbytes_shards,
        plan=rules.plan_merge.output,
        manifest=rules.write_model_files.output.manifest,
        script=script("write_bitsandbytes_files"),
        library=library("write_bitsandbytes_files"),
    output:
        config="results/{model}/bitsandbytes/{precision}/config.json",
        index="results/{model}/bitsandbytes/{precision}/model.safetensors.index.json",
        record="results/{model}/bitsandbytes/{precision}.json",
    log:
        "logs/write_bitsandbytes_files/{model}.{precision}.log",
    conda:
        "../envs/bitsandbytes.yaml"
    resources:
        mem_mb=1500,
    params:
        folder=lambda wildcards, output: os.path.dirname(output.config),
        key="models.{model}.bitsandbytes",
        settings=bitsandbytes_spec,
    message:
        "Writing config and tokenizer of {wildcards.model} in {wildcards.precision}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --precision {wildcards.precision:q} \
            --plan {input.plan:q} \
            --key {params.key:q} \
            --settings {params.settings:q} \
            --manifest {input.manifest:q} \
            --records {input.records:q} \
            --output {params.folder:q} \
            --record {output.record:q}
        """
