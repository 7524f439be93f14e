"""The jobs and files of a build, by rules without functions, params or environments: what the graph costs at the least.

graph.py measures it beside the workflow. {n} is the base's own folder; a rule here has the name of the one that it stands for.
"""

SHARDS = [f"{shard:05d}-of-00030" for shard in range(1, 31)]
QUANTS = ["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
CONFIGS = [
    "bases/{model}/config.json",
    "bases/{model}/tokenizer.json",
    "bases/{model}/tokenizer_config.json",
    "bases/{model}/model.safetensors.index.json",
    "adapters/{model}/adapter_config.json",
]
ADAPTER = "adapters/{model}/adapter_model.safetensors"
R = "results/{model}"


wildcard_constraints:
    model="|".join(config["models"]),
    quant="[A-Z0-9_]+",
    shard=r"\d{5}-of-\d{5}",


rule all:
    input:
        expand(
            [f"{R}/inputs.json", f"{R}/plan.json", f"{R}/plan.md", f"{R}/plan.svg", f"{R}/plan.html"]
            + [
                f"{R}/merge_report.json",
                f"{R}/merge_report.svg",
                f"{R}/overview.html",
                f"{R}/ollama/template_check.json",
            ],
            model=config["models"],
        ),
        expand(
            [f"{R}/gguf/{{model}}.{{quant}}.gguf", f"{R}/ollama/{{quant}}/Modelfile"]
            + [f"{R}/ollama/{{quant}}/registered.json", f"{R}/ollama/{{quant}}/held"],
            model=config["models"],
            quant=QUANTS,
        ),


rule check_inputs:
    input:
        CONFIGS,
    output:
        f"{R}/inputs.json",
    shell:
        "touch {output}"


rule plan_merge:
    input:
        CONFIGS,
        ancient(expand("bases/{{model}}/model-{shard}.safetensors", shard=SHARDS)),
        ancient(ADAPTER),
    output:
        f"{R}/merge_plan.json",
    shell:
        "touch {output}"


rule merge_shard:
    input:
        f"{R}/merge_plan.json",
        ancient("bases/{model}/model-{shard}.safetensors"),
        ancient(ADAPTER),
    output:
        f"{R}/merged/model-{{shard}}.safetensors",
        f"{R}/merge_records/model-{{shard}}.json",
    shell:
        "touch {output}"


rule write_merge_report:
    input:
        f"{R}/merge_plan.json",
        expand(f"{R}/merge_records/model-{{shard}}.json", shard=SHARDS, allow_missing=True),
    output:
        f"{R}/merge_report.json",
        f"{R}/merge_report.svg",
    shell:
        "touch {output}"


rule write_model_files:
    input:
        CONFIGS,
        f"{R}/merge_plan.json",
    output:
        f"{R}/merged/config.json",
        f"{R}/merged/model.safetensors.index.json",
        f"{R}/merged/model_files.json",
    shell:
        "touch {output}"


rule convert_to_gguf:
    input:
        ancient(expand(f"{R}/merged/model-{{shard}}.safetensors", shard=SHARDS, allow_missing=True)),
        expand(f"{R}/merge_records/model-{{shard}}.json", shard=SHARDS, allow_missing=True),
        f"{R}/merge_plan.json",
        f"{R}/merged/model_files.json",
    output:
        f"{R}/gguf/{{model}}.unquantized.gguf",
        f"{R}/gguf/{{model}}.conversion.json",
    shell:
        "touch {output}"


rule record_conversion:
    input:
        f"{R}/gguf/{{model}}.conversion.json",
        f"{R}/merge_plan.json",
        ancient(expand("bases/{{model}}/model-{shard}.safetensors", shard=SHARDS)),
        ancient(ADAPTER),
        f"{R}/merged/model_files.json",
    output:
        f"{R}/gguf/{{model}}.unquantized.json",
    shell:
        "touch {output}"


rule quantize:
    input:
        ancient(f"{R}/gguf/{{model}}.unquantized.gguf"),
        f"{R}/gguf/{{model}}.unquantized.json",
        f"{R}/merge_plan.json",
    output:
        f"{R}/gguf/{{model}}.{{quant}}.gguf",
        f"{R}/gguf/{{model}}.{{quant}}.json",
    shell:
        "touch {output}"


rule choose_template:
    input:
        f"{R}/merged/model_files.json",
        f"{R}/gguf/{{model}}.unquantized.json",
    output:
        f"{R}/ollama/template.json",
    shell:
        "touch {output}"


rule write_modelfile:
    input:
        f"{R}/merged/model_files.json",
        f"{R}/ollama/template.json",
    output:
        f"{R}/ollama/{{quant}}/Modelfile",
        f"{R}/ollama/{{quant}}/create_request.json",
    shell:
        "touch {output}"


rule register:
    input:
        ancient(f"{R}/gguf/{{model}}.{{quant}}.gguf"),
        f"{R}/gguf/{{model}}.{{quant}}.json",
        f"{R}/ollama/{{quant}}/create_request.json",
    output:
        f"{R}/ollama/{{quant}}/registered.json",
        f"{R}/ollama/{{quant}}/held",
    shell:
        "touch {output}"


rule check_template:
    input:
        f"{R}/ollama/template.json",
        f"{R}/merged/model_files.json",
        f"{R}/gguf/{{model}}.Q3_K_M.json",
        f"{R}/ollama/Q3_K_M/registered.json",
        ancient(f"{R}/gguf/{{model}}.Q3_K_M.gguf"),
    output:
        f"{R}/ollama/template_check.json",
    shell:
        "touch {output}"


rule measure_ghost:
    input:
        CONFIGS,
        f"{R}/merge_plan.json",
    output:
        f"{R}/ghost.json",
    shell:
        "touch {output}"


rule plan_memory:
    input:
        f"{R}/ghost.json",
    output:
        f"{R}/plan.json",
    shell:
        "touch {output}"


rule draw_plan:
    input:
        f"{R}/plan.json",
        f"{R}/ghost.json",
    output:
        f"{R}/times.json",
        f"{R}/plan.md",
        f"{R}/plan.svg",
    shell:
        "touch {output}"


rule write_overview:
    input:
        f"{R}/merge_plan.json",
        f"{R}/merge_report.json",
        f"{R}/plan.json",
        f"{R}/inputs.json",
        f"{R}/gguf/{{model}}.unquantized.json",
        expand(f"{R}/gguf/{{model}}.{{quant}}.json", quant=QUANTS, allow_missing=True),
        expand(f"{R}/ollama/{{quant}}/registered.json", quant=QUANTS, allow_missing=True),
        f"{R}/ollama/template.json",
        f"{R}/ollama/template_check.json",
        f"{R}/plan.svg",
        f"{R}/merge_report.svg",
    output:
        f"{R}/overview.html",
        f"{R}/ollama/prompts.html",
        f"{R}/ollama/registrations.html",
    shell:
        "touch {output}"


rule write_page:
    input:
        f"{R}/plan.md",
        f"{R}/plan.svg",
    output:
        f"{R}/plan.html",
    shell:
        "touch {output}"
