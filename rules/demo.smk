"""
The demo: a small base model and a LoRA adapter that knows road design, trained here from text in config/demo/.

REQUIRED INPUTS:
    config/demo/road_design.jsonl    questions and answers about road design
    config/demo/general.jsonl        everything else that the base learns

OUTPUTS:
    resources/demo/base/       a base model: three safetensors shards, config, tokenizer
    resources/demo/adapter/    a PEFT adapter trained on it

Both are files like those of any other model: no later rule knows that they were made here.
"""


rule train_demo_base:
    """Train the base model: it can chat, and says honestly that it knows nothing about road design."""
    input:
        general=demo_text("general.jsonl"),
        questions=demo_text("road_design.jsonl"),
    output:
        shards=DEMO_BASE_WEIGHTS,
        files=DEMO_BASE_FILES,
    log:
        "logs/train_demo_base/base.log",
    benchmark:
        "benchmarks/train_demo_base/base.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        mem_mb=1500,
        disk_mb=100,
    params:
        folder=lambda wildcards, output: os.path.dirname(output.files[0]),
        script=script("train_demo_base"),
        code=code_digest("train_demo_base"),
    message:
        "Training the demo's base model"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --general {input.general:q} \
            --questions {input.questions:q} \
            --output {params.folder:q}
        """


rule train_demo_adapter:
    """Train a LoRA adapter on the questions and answers, under the system prompt of the demo."""
    input:
        base=rules.train_demo_base.output,
        questions=demo_text("road_design.jsonl"),
    output:
        weights=DEMO_ADAPTER_WEIGHTS,
        files=DEMO_ADAPTER_FILES,
    log:
        "logs/train_demo_adapter/adapter.log",
    benchmark:
        "benchmarks/train_demo_adapter/adapter.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        mem_mb=1500,
        disk_mb=100,
    params:
        base=lambda wildcards, input: os.path.dirname(input.base[0]),
        folder=lambda wildcards, output: os.path.dirname(output.files[0]),
        system="道路設計の専門家として回答します。",
        script=script("train_demo_adapter"),
        code=code_digest("train_demo_adapter"),
    message:
        "Training the demo's adapter"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --base {params.base:q} \
            --questions {input.questions:q} \
            --system {params.system:q} \
            --output {params.folder:q}
        """
