"""
The first job of every model: find what cannot work before anything heavy starts.

OUTPUTS:
    results/{model}/inputs.json    what was found: base, adapter, disk needed and free, tools, where to register
"""


rule check_inputs:
    """Check base, adapter, disk, tools and server; seconds.

    No other rule waits for its file, so that a new quantization is checked without merging again. It comes first all
    the same: it has the highest priority and takes all cores, so nothing else runs until it has passed.
    """
    input:
        files=users_small_files,
    output:
        "results/{model}/inputs.json",
    log:
        "logs/check_inputs/{model}.log",
    priority: 100
    localrule: True
    conda:
        "../envs/torch.yaml"
    threads: ALL_CORES
    resources:
        mem_mb=1000,
        alone=1,
    params:
        spec=check_spec,
        now=check_now,
        read=lambda wildcards, input: [file for file in map(str, input.files) if not file.endswith(WEIGHT_SUFFIXES)],
        contents=small_contents,
        script=script("check_inputs"),
        code=code_digest("check_inputs"),
    message:
        "Checking the inputs of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model {wildcards.model:q} \
            --spec {params.spec:q} \
            --now {params.now:q} \
            --read {params.read:q} \
            --output {output:q}
        """
