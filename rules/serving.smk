"""
Plan -> files that serve the model with vLLM or Text Generation Inference, where `serving` asks for them.

OUTPUTS:
    results/{model}/serve/{checkpoint}/vllm.yaml               for `vllm serve --config`
    results/{model}/serve/{checkpoint}/compose.yaml            for `docker compose --profile vllm` (or tgi)
    results/{model}/serve/{checkpoint}/tokenizer_config.json   the chat template in the form that TGI reads
    results/{model}/serve/{checkpoint}/serving.json            the same for programs: arguments, context, whether it fits

{checkpoint} is merged, nf4, int8 or adapter. No weight is read: a retrained adapter changes nothing here.
"""


rule write_serving_files:
    """Write the arguments of a server: names, paths, GPUs, length and memory by the plan, sampling defaults."""
    input:
        plan=PLAN,
        merge_plan=rules.plan_merge.output,
        manifest=rules.write_model_files.output.manifest,
        files=small_files,
        checkpoint=checkpoint_to_serve,
    output:
        vllm="results/{model}/serve/{checkpoint}/vllm.yaml",
        compose="results/{model}/serve/{checkpoint}/compose.yaml",
        tokenizer="results/{model}/serve/{checkpoint}/tokenizer_config.json",
        record=SERVING_RECORD,
    log:
        "logs/write_serving_files/{model}.{checkpoint}.log",
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=500,
    params:
        spec=serving_spec,
        contents=small_contents,
        script=script("write_serving_files"),
        code=code_digest("write_serving_files"),
    message:
        "Writing how to serve {wildcards.model} from {wildcards.checkpoint}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --name {wildcards.model:q} \
            --checkpoint {wildcards.checkpoint:q} \
            --plan {input.plan:q} \
            --merge-plan {input.merge_plan:q} \
            --model-files {input.manifest:q} \
            --output {output.record:q} \
            <<<{params.spec:q}
        """
