"""
Headers -> what fits: the exact size of every quantization, its memory at every context, and a recommendation.

REQUIRED INPUTS:
    a merge plan, or the shape of a model that is not here: config/shapes/ORG/NAME.yaml, or from the hub

OUTPUTS:
    resources/shapes/{shape}.json          config and headers of a model on the hub, fetched without its weights
    results/{model}/ghost.json             what llama.cpp's own programs say of a model without weights
    resources/ghosts/{shape}.json          the same of a base that is not here, or of an alternative
    results/{model}/plan.json              sizes, memory, what fits, the recommendation, num_ctx
    results/{model}/plan.taken             that the graph goes by it, with `quantizations: auto`
    results/{model}/plan.{md, svg}         the same for people
    results/{model}/times.json             how long each type may take to make

Not a byte of weights is read. What does not fit is to be known before the heavy jobs: hence the priorities, and all cores.
"""


rule fetch_shape:
    """Fetch config.json and the headers of the weights from the hub: a few hundred kB."""
    output:
        "resources/shapes/{shape}.json",
    log:
        "logs/fetch_shape/{shape}.log",
    priority: 90
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=500,
    params:
        shipped=SHIPPED_SHAPES,
        script=script("fetch_shape"),
        code=code_digest("fetch_shape"),
    message:
        "Fetching the headers of {wildcards.shape}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --model {wildcards.shape:q} \
            --shipped {params.shipped:q} \
            --cached resources/shapes \
            --output {output:q}
        """


rule measure_ghost:
    """Let llama.cpp size a model of which only the headers exist."""
    input:
        plan=rules.plan_merge.output,
        files=small_files,
        converter=converter_files(),
        quantize=program_files("llama-quantize"),
        fit_params=fit_params_files(),
    output:
        "results/{model}/ghost.json",
    log:
        "logs/measure_ghost/{model}.log",
    benchmark:
        "benchmarks/measure_ghost/{model}.tsv"
    priority: 90
    localrule: True
    conda:
        "../envs/llama_cpp.yaml"
    threads: plan_threads
    resources:
        mem_mb=1500,
        alone=1,
    params:
        spec=source_spec,
        context=CONFIG.asked["context"],
        parallel=CONFIG.asked["parallel"],
        converter=lambda wildcards, input: input.converter[0],
        quantize=lambda wildcards, input: program_path("llama-quantize"),
        fit_params=lambda wildcards, input: fit_params_path(),
        programs=ghost_programs(),
        contents=small_contents,
        script=script("measure_ghost"),
        code=code_digest("measure_ghost"),
    message:
        "Measuring what {wildcards.model} will take"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --name {wildcards.model:q} \
            --plan {input.plan:q} \
            --spec {params.spec:q} \
            --converter {params.converter:q} \
            --llama-quantize {params.quantize:q} \
            --llama-fit-params {params.fit_params:q} \
            --context {params.context} \
            --parallel {params.parallel} \
            --output {output:q}
        """


rule measure_shape:
    """Let llama.cpp size a model of which only the shape is here."""
    input:
        shape=shape_file,
        converter=converter_files(),
        quantize=program_files("llama-quantize"),
        fit_params=fit_params_files(),
    output:
        "resources/ghosts/{shape}.json",
    log:
        "logs/measure_shape/{shape}.log",
    benchmark:
        "benchmarks/measure_shape/{shape}.tsv"
    priority: 90
    localrule: True
    conda:
        "../envs/llama_cpp.yaml"
    threads: ALL_CORES
    resources:
        mem_mb=1500,
        alone=1,
    params:
        context=CONFIG.asked["context"],
        parallel=CONFIG.asked["parallel"],
        converter=lambda wildcards, input: input.converter[0],
        quantize=lambda wildcards, input: program_path("llama-quantize"),
        fit_params=lambda wildcards, input: fit_params_path(),
        programs=ghost_programs(),
        script=script("measure_ghost"),
        code=code_digest("measure_ghost"),
    message:
        "Measuring what {wildcards.shape} would take"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --name {wildcards.shape:q} \
            --shape {input.shape:q} \
            --converter {params.converter:q} \
            --llama-quantize {params.quantize:q} \
            --llama-fit-params {params.fit_params:q} \
            --context {params.context} \
            --parallel {params.parallel} \
            --output {output:q}
        """


rule plan_memory:
    """Judge every quantization against the memory there is."""
    input:
        ghost=ghost_of_model,
        alternatives=ghosts_of_alternatives,
    output:
        PLAN,
    log:
        "logs/plan_memory/{model}.log",
    priority: 90
    localrule: True
    conda:
        "../envs/ollama.yaml"
    threads: plan_threads
    resources:
        mem_mb=500,
        alone=1,
    params:
        spec=memory_spec,
        script=script("plan_memory"),
        code=code_digest("plan_memory"),
    message:
        "Planning the memory of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --name {wildcards.model:q} \
            --ghost {input.ghost:q} \
            --alternatives {input.alternatives:q} \
            --spec {params.spec:q} \
            --output {output:q}
        """


checkpoint take_recommendation:
    """Have the graph drawn anew with the type that the plan recommends, for `quantizations: auto`.

    A rule of its own: Snakemake looks again at all that comes after a checkpoint, also one that is done, and only few models
    take the plan's word.
    """
    input:
        PLAN,
    output:
        touch("results/{model}/plan.taken"),
    priority: 90
    localrule: True
    message:
        "Taking the quantization that the plan of {wildcards.model} recommends"


rule draw_plan:
    """Write the plan for people, with the time each job may take by what earlier ones took on this machine."""
    input:
        plan=PLAN,
        ghost=ghost_of_model,
    output:
        times="results/{model}/times.json",
        text="results/{model}/plan.md",
        picture=report(
            "results/{model}/plan.svg",
            caption="report/plan_picture.rst",
            category="2 Plan",
            subcategory="{model}",
            labels={"content": "picture", "model": "{model}"},
        ),
    log:
        "logs/draw_plan/{model}.log",
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("draw_plan"),
        code=code_digest("draw_plan"),
        estimate=script("estimate_times"),
        estimates=code_digest("estimate_times"),
    message:
        "Drawing the plan of {wildcards.model}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.estimate:q} \
            --ghost {input.ghost:q} \
            --benchmarks benchmarks \
            --results results \
            --output {output.times:q}
        python {params.script:q} \
            --plan {input.plan:q} \
            --times {output.times:q} \
            --text {output.text:q} \
            --picture {output.picture:q}
        """
