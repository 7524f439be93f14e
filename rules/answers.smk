"""
Registered models -> what they answer to the user's own questions.

REQUIRED INPUTS:
    answers.questions of a model: a file with one question a line

OUTPUTS:
    results/{model}/ollama/{quant}/answers.json   what one registered model answered
    results/{model}/answers.{json, md, svg}       base, fine-tune and quantizations side by side, each with its verdict
    results/{model}/answers.verdict.json          enough right answers; too few of them fail here, or are a warning
"""


rule ask_questions:
    """Ask one registered model every question, at temperature 0 with a fixed seed."""
    input:
        marker=marker_to_ask,
        judged=judged_before_asking,
        request=rules.write_modelfile.output.request,
        record=record_served,
        adapter=adapter_record,
        questions=questions_file,
    output:
        ANSWERS_OF_ONE,
    log:
        "logs/ask_questions/{model}.{quant}.{asker}.log",
    benchmark:
        "benchmarks/ask_questions/{model}.{quant}.{asker}.tsv"
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
        ollama=1,
    params:
        spec=question_spec,
        timeout=lambda wildcards, input: CONFIG.timeout,
        script=script("ask_questions"),
        code=code_digest("ask_questions"),
    message:
        "Asking {wildcards.model} {wildcards.quant} the questions of {wildcards.asker}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --marker {input.marker:q} \
            --questions {input.questions:q} \
            --spec {params.spec:q} \
            --timeout {params.timeout} \
            --output {output:q}
        """


rule compare_answers:
    """Put all answers side by side, and hold each quantization to the share of right ones that is asked for."""
    input:
        answers=answers_to_compare,
        judged=judged_before_comparing,
    output:
        scores="results/{model}/answers.json",
        table="results/{model}/answers.md",
        picture="results/{model}/answers.svg",
    log:
        "logs/compare_answers/{model}.log",
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=500,
    params:
        answers=labelled_answers,
        judged=judged_quantizations,
        min_score=lambda wildcards: CONFIG.models[wildcards.model].answers.min_score,
        limit_key=lambda wildcards: CONFIG.models[wildcards.model].answers.limit_key,
        on_fail=lambda wildcards: CONFIG.models[wildcards.model].answers.on_fail,
        spec=comparison_spec,
        script=script("compare_answers"),
        code=code_digest("compare_answers"),
    message:
        "Comparing the answers of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model {wildcards.model:q} \
            --answers {params.answers:q} \
            --judged {params.judged:q} \
            --min-score {params.min_score} \
            --limit-key {params.limit_key:q} \
            --on-fail {params.on_fail} \
            --spec {params.spec:q} \
            --table {output.table:q} \
            --picture {output.picture:q} \
            --output {output.scores:q}
        """


rule check_answers:
    """Fail if a quantization answers too few questions rightly, and say which answers enough; or warn.

    The pages are no input of the script: they are to be there, and in the report, where this stops the build.
    """
    input:
        answers=rules.compare_answers.output.scores,
        pages=pages_of_answers,
    output:
        "results/{model}/answers.verdict.json",
    log:
        "logs/check_answers/{model}.log",
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("check_answers"),
        code=code_digest("check_answers"),
    message:
        "Judging the answers of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --answers {input.answers:q} \
            --output {output:q}
        """
