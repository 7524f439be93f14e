"""
Registered model -> the configuration of the RAG application that uses it.

REQUIRED INPUTS:
    rag.file of a model: the YAML that the application reads. It is edited in place and is no output: Snakemake removes those.

OUTPUTS:
    results/{model}/ollama/rag_config.json    what was written where, what stood there before, the backup
"""


rule write_rag_config:
    """Set the model's keys in the application's YAML, once the model is registered, checked and found as it should be.

    A value that was changed back by hand since is part of the params. What else is in the file starts nothing.
    """
    input:
        marker=marker_for_rag,
        checks=checks_before_rag,
        judged=judged_before_rag,
        plan=plan_of_rag_num_ctx,
    output:
        RAG_CONFIG,
    log:
        "logs/write_rag_config/{model}.log",
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
        ollama=1,
    params:
        spec=rag_spec,
        script=script("write_rag_config"),
        code=code_digest("write_rag_config"),
    message:
        "Telling the RAG application of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --marker {input.marker:q} \
            --spec {params.spec:q} \
            --output {output:q}
        """
