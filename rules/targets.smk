"""
Named targets, each a stage of the chain for all models of the configuration; `all` stands in the Snakefile.

    merged      merged checkpoints: safetensors, config, tokenizer; with the report of the merge
    gguf        quantized GGUFs
    modelfiles  Modelfiles with the GGUFs they name
    registered  models registered in Ollama
"""


rule merged:
    input:
        CHECKED,
        MERGED,
        MERGE_REPORTS,


rule gguf:
    input:
        CHECKED,
        GGUFS,


rule modelfiles:
    input:
        CHECKED,
        GGUFS,
        MODELFILES,


rule registered:
    input:
        CHECKED,
        MARKERS,
