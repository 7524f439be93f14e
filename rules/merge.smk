"""
Base + adapter -> merged checkpoint.

REQUIRED INPUTS:
    the base: a folder of safetensors shards with config and tokenizer
    the adapters: PEFT folders (none: the shards of the base are taken as they are)

OUTPUTS:
    results/{model}/merge_plan.json                                       which tensor of which shard gets which edit
    results/{model}/merged/model-{shard}-of-{nshards}.safetensors         one job a shard
    results/{model}/merge_records/model-{shard}-of-{nshards}.json         what that job read, did and wrote
    results/{model}/merge_report.{json, svg}                              how large the updates are, what of them is stored
    results/{model}/merged/{config.json, tokenizer ..., model_files.json} everything beside the weights

Weights of the user's are ancient(): their times start nothing. What was read is known by size and time, and by sha256
when those differ, and stands in `spec`.
"""


rule plan_merge:
    """Decide from headers alone which edit reaches which tensor; refuse what cannot be merged, before the heavy jobs."""
    input:
        files=small_files,
        weights=all_headers,
    output:
        "results/{model}/merge_plan.json",
    log:
        "logs/plan_merge/{model}.log",
    priority: 90
    localrule: True
    conda:
        "../envs/torch.yaml"
    threads: ALL_CORES
    resources:
        mem_mb=1000,
        alone=1,
    params:
        spec=plan_spec,
        contents=small_contents,
        script=script("plan_merge"),
        code=code_digest("plan_merge"),
    message:
        "Planning the merge of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --spec {params.spec:q} \
            --output {output:q}
        """


rule merge_shard:
    """Merge the adapter into one shard: float32 arithmetic, rounded once, streamed."""
    input:
        plan=rules.plan_merge.output,
        weights=shard_weights,
    output:
        shard=kept("results/{model}/merged/model-{shard}-of-{nshards}.safetensors", CONFIG.keep_merged),
        record="results/{model}/merge_records/model-{shard}-of-{nshards}.json",
    log:
        "logs/merge_shard/{model}/{shard}-of-{nshards}.log",
    benchmark:
        "benchmarks/merge_shard/{model}/{shard}-of-{nshards}.tsv"
    priority: by_turn
    conda:
        "../envs/torch.yaml"
    threads: merge_threads
    resources:
        mem_mb=merge_mem_mb,
        disk_mb=merge_disk_mb,
        streams=1,
    params:
        spec=shard_spec,
        about=merge_time,
        known=known_digests,
        script=script("merge_shard"),
        code=code_digest("merge_shard"),
    message:
        "Merging shard {wildcards.shard} of {wildcards.nshards} of {wildcards.model}{params.about}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --plan {input.plan:q} \
            --shard model-{wildcards.shard}-of-{wildcards.nshards}.safetensors \
            --seen {params.spec:q} \
            --known {params.known:q} \
            --output {output.shard:q} \
            --record {output.record:q} \
            --threads {threads}
        """


rule write_merge_report:
    """Sum up the merge in figures and a picture; warn of updates that the rounding took."""
    input:
        plan=rules.plan_merge.output,
        records=merge_records,
    output:
        report=report(
            "results/{model}/merge_report.json",
            caption="report/merge_report.rst",
            category="3 Merge",
            subcategory="{model}",
            labels={"content": "figures (JSON)", "model": "{model}"},
        ),
        picture=report(
            "results/{model}/merge_report.svg",
            caption="report/merge_picture.rst",
            category="3 Merge",
            subcategory="{model}",
            labels={"content": "picture", "model": "{model}"},
        ),
    log:
        "logs/write_merge_report/{model}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("write_merge_report"),
        code=code_digest("write_merge_report"),
    message:
        "Summing up the merge of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model {wildcards.model:q} \
            --plan {input.plan:q} \
            --records {input.records:q} \
            --report {output.report:q} \
            --picture {output.picture:q}
        """


rule write_model_files:
    """Write config, index, tokenizer and chat template: the adapter's where it brings its own, else the base's."""
    input:
        plan=rules.plan_merge.output,
        files=small_files,
    output:
        config="results/{model}/merged/config.json",
        index="results/{model}/merged/model.safetensors.index.json",
        manifest="results/{model}/merged/model_files.json",
    log:
        "logs/write_model_files/{model}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=500,
    params:
        spec=source_spec,
        contents=small_contents,
        script=script("write_model_files"),
        code=code_digest("write_model_files"),
    message:
        "Writing config and tokenizer of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --spec {params.spec:q} \
            --plan {input.plan:q} \
            --manifest {output.manifest:q}
        """
