"""
Registered models -> what they answer to the user's own questions.

REQUIRED INPUTS:
    answers.questions of a model: a file with one question a line

OUTPUTS:
    results/{model}/ollama/{quant}/answers.json   what one registered model answered
    results/{model}/answers.{json, md, svg}       base, fine-tune and quantizations side by side; too low a score fails
"""


rule ask_questions:
    """Ask one registered model every question, at temperature 0 with a fixed seed."""
    input:
        marker=marker_to_ask,
        request=rules.write_modelfile.output.request,
        record=record_served,
        adapter=adapter_record,
        questions=questions_file,
        script=script("ask_questions"),
        library=library("ask_questions"),
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
    message:
        "Asking {wildcards.model} {wildcards.quant} the questions of {wildcards.asker}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --marker {input.marker:q} \
            --questions {input.questions:q} \
            --spec {params.spec:q} \
            --timeout {params.timeout} \
            --output {output:q}
        """


rule check_answers:
    """Compare the answers, and fail below answers.min_score."""
    input:
        answers=answers_to_compare,
        script=script("check_answers"),
        library=library("check_answers"),
    output:
        scores="results/{model}/answers.json",
        table="results/{model}/answers.md",
        picture="results/{model}/answers.svg",
    log:
        "logs/check_answers/{model}.log",
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=500,
    params:
        answers=labelled_answers,
        judged=judged_quantizations,
        min_score=lambda wildcards: CONFIG.models[wildcards.model].answers.min_score,
    message:
        "Comparing the answers of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {input.script:q} \
            --model {wildcards.model:q} \
            --answers {params.answers:q} \
            --judged {params.judged:q} \
            --min-score {params.min_score} \
            --table {output.table:q} \
            --picture {output.picture:q} \
            --output {output.scores:q}
        """
