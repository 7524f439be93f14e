"""
Records -> pages for people: the results of `snakemake --report report.html`.

REQUIRED INPUTS:
    the records of a model that is registered

OUTPUTS:
    results/{model}/overview.html              first page of the report: built from what, what fits, what it took, how good
    results/{model}/ollama/prompts.html        the prompts of the registered model against the tokenizer's
    results/{model}/ollama/registrations.html  the registration markers
    results/{model}/{document}.html            plan.md, quality.md and answers.md, with their pictures

Snakemake shows HTML and pictures in the report; Markdown and JSON it can only offer for download. The categories are
numbered since it sorts them by name.
"""


report: "report/workflow.rst"


rule write_overview:
    """Say on one page what was built, from what, how good it is and what it took."""
    input:
        merge_plan=rules.plan_merge.output,
        merge_report=merge_report_shown,
        plan=PLAN,
        inputs=rules.check_inputs.output,
        ggufs=gguf_records,
        adapter=adapter_record,
        markers=markers_of_model,
        template=rules.choose_template.output,
        template_check=TEMPLATE_CHECK,
        quality=quality_if_measured,
        answers=answers_if_asked,
        imatrix=imatrix_if_computed,
        pictures=pictures_of_overview,
    output:
        overview=report(
            "results/{model}/overview.html",
            caption="report/overview.rst",
            category="1 Overview",
            subcategory="{model}",
            labels={"content": "overview", "model": "{model}"},
        ),
        prompts=report(
            "results/{model}/ollama/prompts.html",
            caption="report/prompts.rst",
            category="6 Template check",
            subcategory="{model}",
            labels={"content": "prompts", "model": "{model}"},
        ),
        registrations=report(
            "results/{model}/ollama/registrations.html",
            caption="report/registrations.rst",
            category="7 Registration",
            subcategory="{model}",
            labels={"content": "all markers", "model": "{model}", "quantization": "all"},
        ),
    log:
        "logs/write_overview/{model}.log",
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("write_overview"),
        code=code_digest("write_overview"),
    message:
        "Writing the overview of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model {wildcards.model:q} \
            --merge-plan {input.merge_plan:q} \
            --merge-report {input.merge_report:q} \
            --plan {input.plan:q} \
            --inputs {input.inputs:q} \
            --ggufs {input.ggufs:q} \
            --adapter {input.adapter:q} \
            --markers {input.markers:q} \
            --template {input.template:q} \
            --template-check {input.template_check:q} \
            --quality {input.quality:q} \
            --answers {input.answers:q} \
            --imatrix {input.imatrix:q} \
            --pictures {input.pictures:q} \
            --benchmarks benchmarks \
            --overview {output.overview:q} \
            --prompts {output.prompts:q} \
            --registrations {output.registrations:q}
        """


rule write_page:
    """Turn a table that was written in Markdown into a page that the report can show."""
    input:
        text="results/{model}/{document}.md",
        pictures=picture_of_document,
    output:
        report(
            "results/{model}/{document}.html",
            caption="report/page.rst",
            category=category_of_document,
            subcategory="{model}",
            labels={"content": "table", "model": "{model}"},
        ),
    log:
        "logs/write_page/{model}.{document}.log",
    wildcard_constraints:
        document="plan|quality|answers",
    localrule: True
    conda:
        "../envs/ollama.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("write_page"),
        code=code_digest("write_page"),
    message:
        "Writing the page {wildcards.document} of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --title "{wildcards.model}: {wildcards.document}" \
            --text {input.text:q} \
            --output {output:q}
        """
