"""
Quantized GGUFs -> what quantization loses, measured on text of the user's own; what is beyond a limit is not registered.

REQUIRED INPUTS:
    imatrix.text, imatrix.chat of a model    text to calibrate on (optional)
    quality.text, quality.chat of a model    text to measure on, of which nothing is in the former

OUTPUTS:
    results/{model}/quality/{calibration, evaluation}.txt    the text as the model reads it; beside it what it was made from
    results/{model}/quality/overlap.json                     what the two have in common
    results/{model}/gguf/{model}.imatrix.gguf                the importance matrix
    results/{model}/quality/reference.json                   perplexity of the unquantized fine-tune
    results/{model}/quality/{quant}.json, base.json          perplexity and KL divergence from the unquantized fine-tune
    results/{model}/quality/{quant}.speed.json               tokens a second
    results/{model}/quality.{json, md, svg}                  all of it side by side, the verdicts and a recommendation
    results/{model}/quality/{quant}.verdict.json             within the limits; too bad a quantization fails here

The log-probabilities of the fine-tune (reference.kld) are large. They are shared by all that is measured, and go then;
{quant}.released says that they were needed no more.
"""

require_measuring_programs()


rule check_overlap:
    """Find out whether the text to measure on was calibrated on."""
    input:
        evaluation=evaluation_texts,
        calibration=calibration_texts,
    output:
        "results/{model}/quality/overlap.json",
    log:
        "logs/check_overlap/{model}.log",
    priority: 90
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=1000,
    params:
        evaluation_text=lambda wildcards: list(CONFIG.models[wildcards.model].quality.evaluation.text),
        evaluation_chat=lambda wildcards: list(CONFIG.models[wildcards.model].quality.evaluation.chat),
        calibration_text=lambda wildcards: list(CONFIG.models[wildcards.model].calibration.text),
        calibration_chat=lambda wildcards: list(CONFIG.models[wildcards.model].calibration.chat),
        contents=overlap_contents,
        script=script("check_overlap"),
        code=code_digest("check_overlap"),
    message:
        "Comparing the texts of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model {wildcards.model:q} \
            --evaluation-text {params.evaluation_text:q} \
            --evaluation-chat {params.evaluation_chat:q} \
            --calibration-text {params.calibration_text:q} \
            --calibration-chat {params.calibration_chat:q} \
            --output {output:q}
        """


rule prepare_text:
    """Write a text as the model reads it: conversations by its chat template, no more than is used."""
    input:
        texts=lambda wildcards: list(domain_text(wildcards).files),
        manifest=rules.write_model_files.output.manifest,
    output:
        text="results/{model}/quality/{purpose}.txt",
        record="results/{model}/quality/{purpose}.json",
    log:
        "logs/prepare_text/{model}.{purpose}.log",
    benchmark:
        "benchmarks/prepare_text/{model}.{purpose}.tsv"
    priority: 90
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=1000,
    params:
        key=text_key,
        text=lambda wildcards: list(domain_text(wildcards).text),
        chat=lambda wildcards: list(domain_text(wildcards).chat),
        chunks=lambda wildcards: domain_text(wildcards).chunks or "all",
        context=lambda wildcards: domain_text(wildcards).context,
        contents=text_contents,
        script=script("prepare_text"),
        code=code_digest("prepare_text"),
    message:
        "Preparing the {wildcards.purpose} text of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --purpose {wildcards.purpose:q} \
            --key {params.key:q} \
            --model-files {input.manifest:q} \
            --text {params.text:q} \
            --chat {params.chat:q} \
            --chunks {params.chunks} \
            --context {params.context} \
            --output {output.text:q} \
            --record {output.record:q}
        """


rule compute_imatrix:
    """Compute the importance matrix with llama-imatrix; a killed job goes on where it was."""
    input:
        gguf=unquantized_to_calibrate,
        source=rules.record_conversion.output,
        plan=rules.plan_merge.output,
        text="results/{model}/quality/calibration.txt",
        record="results/{model}/quality/calibration.json",
        program=lambda wildcards: program_files("llama-imatrix"),
    output:
        imatrix="results/{model}/gguf/{model}.imatrix.gguf",
        record="results/{model}/gguf/{model}.imatrix.json",
    log:
        "logs/compute_imatrix/{model}.log",
    benchmark:
        "benchmarks/compute_imatrix/{model}.tsv"
    priority: by_turn
    conda:
        "../envs/llama_cpp.yaml"
    threads: THREADS
    resources:
        mem_mb=imatrix_mem_mb,
    params:
        gguf=UNQUANTIZED,
        program=lambda wildcards, input: program_path("llama-imatrix"),
        spec=imatrix_spec,
        script=script("compute_imatrix"),
        code=code_digest("compute_imatrix"),
    message:
        "Computing the importance matrix of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --program {params.program:q} \
            --gguf {params.gguf:q} \
            --source-record {input.source:q} \
            --text {input.text:q} \
            --text-record {input.record:q} \
            --spec {params.spec:q} \
            --output {output.imatrix:q} \
            --record {output.record:q} \
            --threads {threads}
        """


rule evaluate_reference:
    """Let the unquantized fine-tune say how likely it finds each token of the evaluation text."""
    input:
        gguf=ancient(UNQUANTIZED),
        source=rules.record_conversion.output,
        plan=rules.plan_merge.output,
        text="results/{model}/quality/evaluation.txt",
        record="results/{model}/quality/evaluation.json",
        program=lambda wildcards: program_files("llama-perplexity"),
    output:
        logits=passing(REFERENCE_LOGITS),
        record="results/{model}/quality/reference.json",
    log:
        "logs/evaluate_reference/{model}.log",
    benchmark:
        "benchmarks/evaluate_reference/{model}.tsv"
    priority: by_turn
    conda:
        "../envs/llama_cpp.yaml"
    threads: THREADS
    resources:
        mem_mb=reference_mem_mb,
    params:
        program=lambda wildcards, input: program_path("llama-perplexity"),
        identity=lambda wildcards: program_version("llama-perplexity"),
        script=script("evaluate_reference"),
        code=code_digest("evaluate_reference"),
    message:
        "Evaluating {wildcards.model} before quantization"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --program {params.program:q} \
            --gguf {input.gguf:q} \
            --source-record {input.source:q} \
            --text {input.text:q} \
            --text-record {input.record:q} \
            --logits {output.logits:q} \
            --record {output.record:q} \
            --threads {threads}
        """


rule evaluate_quality:
    """Measure one quantization, or the base, against the unquantized fine-tune.

    The log-probabilities are no input: they are made again for one more quantization, which must not measure the others
    again. release_logits has them there as long as anything is measured; else they are made beside the measurement.
    """
    input:
        gguf=weights_measured,
        record=measured_file("json"),
        reference=unquantized_to_compare,
        source=rules.record_conversion.output,
        plan=rules.plan_merge.output,
        said=reference_to_measure,
        text="results/{model}/quality/evaluation.txt",
        evaluation="results/{model}/quality/evaluation.json",
        program=lambda wildcards: program_files("llama-perplexity"),
    output:
        QUALITY_OF_ONE,
    log:
        "logs/evaluate_quality/{model}.{measured}.log",
    benchmark:
        "benchmarks/evaluate_quality/{model}.{measured}.tsv"
    priority: by_turn
    conda:
        "../envs/llama_cpp.yaml"
    threads: THREADS
    resources:
        mem_mb=quality_mem_mb,
    params:
        gguf=measured_file("gguf"),
        reference=UNQUANTIZED,
        logits=REFERENCE_LOGITS,
        program=lambda wildcards, input: program_path("llama-perplexity"),
        spec=measuring_spec,
        script=script("evaluate_quality"),
        code=code_digest("evaluate_quality"),
    message:
        "Evaluating {wildcards.model} {wildcards.measured}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --program {params.program:q} \
            --measured {wildcards.measured:q} \
            --gguf {params.gguf:q} \
            --gguf-record {input.record:q} \
            --logits {params.logits:q} \
            --reference-gguf {params.reference:q} \
            --reference-record {input.said:q} \
            --text {input.text:q} \
            --text-record {input.evaluation:q} \
            --spec {params.spec:q} \
            --output {output:q} \
            --threads {threads}
        """


rule release_logits:
    """Hold the log-probabilities until a measurement is made; when all are, they go."""
    input:
        logits=ancient(rules.evaluate_reference.output.logits),
        measured=QUALITY_OF_ONE,
    output:
        touch("results/{model}/quality/{measured}.released"),
    log:
        "logs/release_logits/{model}.{measured}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    message:
        "{wildcards.model} {wildcards.measured} needs the log-probabilities no more"
    shell:
        r"""
        echo "{input.measured} is there" >{log:q}
        """


rule measure_speed:
    """Measure tokens a second of one quantization with llama-bench; alone, so that nothing slows it."""
    input:
        gguf=ancient(rules.quantize.output.gguf),
        record=rules.quantize.output.record,
        plan=rules.plan_merge.output,
        program=lambda wildcards: program_files("llama-bench"),
    output:
        SPEED_OF_ONE,
    log:
        "logs/measure_speed/{model}.{quant}.log",
    benchmark:
        "benchmarks/measure_speed/{model}.{quant}.tsv"
    priority: by_turn
    conda:
        "../envs/llama_cpp.yaml"
    threads: threads_alone
    resources:
        mem_mb=speed_mem_mb,
        measured_threads=THREADS,
    params:
        program=lambda wildcards, input: program_path("llama-bench"),
        identity=lambda wildcards: program_version("llama-bench"),
        script=script("measure_speed"),
        code=code_digest("measure_speed"),
    message:
        "Measuring the speed of {wildcards.model} {wildcards.quant}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --program {params.program:q} \
            --type {wildcards.quant:q} \
            --gguf {input.gguf:q} \
            --gguf-record {input.record:q} \
            --output {output:q} \
            --threads $(({threads} < {resources.measured_threads} ? {threads} : {resources.measured_threads}))
        """


rule summarize_quality:
    """Put all that was measured side by side, judge it by the limits, and recommend."""
    input:
        plan=PLAN,
        text="results/{model}/quality/evaluation.json",
        reference=rules.evaluate_reference.output.record,
        base=measured_base,
        overlap=overlap_of_texts,
        released=released_logits,
        measured=measured_of_types(QUALITY_OF_ONE),
        records=measured_of_types("results/{model}/gguf/{model}.{quant}.json"),
        speeds=measured_speeds,
        checkpoints=measured_checkpoints,
    output:
        summary=QUALITY_SUMMARY,
        table="results/{model}/quality.md",
        picture=report(
            "results/{model}/quality.svg",
            caption="report/quality_picture.rst",
            category="4 Quality",
            subcategory="{model}",
            labels={"content": "picture", "model": "{model}"},
        ),
    log:
        "logs/summarize_quality/{model}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=500,
    params:
        spec=limits_spec,
        script=script("summarize_quality"),
        code=code_digest("summarize_quality"),
    message:
        "Summing up the quality of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model {wildcards.model:q} \
            --plan {input.plan:q} \
            --text-record {input.text:q} \
            --reference {input.reference:q} \
            --base {input.base:q} \
            --measured {input.measured:q} \
            --records {input.records:q} \
            --speeds {input.speeds:q} \
            --checkpoints {input.checkpoints:q} \
            --overlap {input.overlap:q} \
            --spec {params.spec:q} \
            --output {output.summary:q} \
            --table {output.table:q} \
            --picture {output.picture:q}
        """


rule judge_quality:
    """Fail if a quantization is beyond a limit, and say which would pass."""
    input:
        quality=rules.summarize_quality.output.summary,
    output:
        VERDICT,
    log:
        "logs/judge_quality/{model}.{quant}.log",
    priority: by_turn
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("judge_quality"),
        code=code_digest("judge_quality"),
    message:
        "Judging {wildcards.model} {wildcards.quant}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --type {wildcards.quant:q} \
            --quality {input.quality:q} \
            --output {output:q}
        """
