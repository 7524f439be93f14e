"""The files that serve a model with vLLM or TGI: what they are made from, and what they say to people."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.atomic_write import write_json, write_plain_json, write_sealed_text
from ollamake.file_digest import sha256_of
from ollamake.generation_defaults import generation_parameters, special_tokens
from ollamake.json_object import read_json_object
from ollamake.model_files import chat_template_of
from ollamake.serving_adapter import largest_rank, max_lora_rank, refused_by_tgi, require_served_by_vllm
from ollamake.serving_compose import TGI_IMAGE, compose_services, compose_yaml, places_to_mount, tgi_arguments
from ollamake.serving_configuration import ADAPTER, INT8, NF4
from ollamake.serving_memory import Room, adapter_slot_bytes, room_for
from ollamake.serving_vllm import (
    PLUGINS,
    VERSION,
    Served,
    served_dtype,
    vllm_arguments,
    vllm_yaml,
    without_counterpart,
)

log = logging.getLogger("ollamake")

_WHAT = {
    "merged": "the merged weights in 16 bits",
    NF4: "the merged weights in NF4, quantized by bitsandbytes",
    INT8: "the merged weights in LLM.int8(), quantized by bitsandbytes",
    ADAPTER: "the base with the adapter beside it",
}
_PLACES = (
    "Paths are relative to where Snakemake runs, or absolute: start it there.",
    "Written by ollamake from its configuration; edits are lost when that changes.",
)


@dataclass(frozen=True)
class Sources:
    """What the files of a model are made from, beside the plan: parsed JSON, and folders."""

    name: str
    checkpoint: str
    spec: Mapping[str, Any]
    """`base`, `adapter` (folder or None), `parameters` (Ollama's, of the configuration), `port`, `system`, `keeps_merged`."""
    merge_plan: Mapping[str, Any]
    merged: Path
    """The folder with config, tokenizer and chat template of the merged model."""


def write_serving_files(sources: Sources, plan: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Write vllm.yaml, compose.yaml and tokenizer_config.json beside ``output``, the record, and return that.

    ``plan``: plan.json. Raises OllamakeError where vLLM cannot serve the checkpoint; where TGI cannot, there is no service
    for it, and the record says why.
    """
    folder = output.parent
    served = _served(sources)
    config = read_json_object(
        Path(served.folder) / "config.json" if sources.checkpoint == ADAPTER else sources.merged / "config.json"
    )
    num_ctx = sources.spec["parameters"].get("num_ctx")
    room = room_for(sources.checkpoint, plan, config, num_ctx, _slot_bytes(served, sources.merge_plan))
    tokenizer_config = folder / "tokenizer_config.json"
    # TGI quantizes by itself, from the weights in 16 bits.
    in_16_bits = served.folder if sources.checkpoint == ADAPTER else str(sources.merged)
    no_tgi = _refused_by_tgi(sources, config)
    tgi = None if no_tgi else tgi_arguments(served, room, in_16_bits, str(tokenizer_config))
    arguments = vllm_arguments(served, room, sources.spec["port"])
    header = [*_about(sources, served, room, config), *_PLACES]
    read = [served.folder, str(folder), *[path for path in (served.adapter, served.template) if path]]
    read += [in_16_bits] if tgi else []
    config_file = folder / "vllm.yaml"
    services = compose_services(
        served, room, sources.spec["port"], str(config_file), places_to_mount(read, folder), tgi
    )
    write_sealed_text(config_file, vllm_yaml(arguments, [*_for_vllm(sources, config_file, room.context), "", *header]))
    write_sealed_text(folder / "compose.yaml", compose_yaml(services, [*_for_compose(folder, no_tgi), "", *header]))
    write_plain_json(tokenizer_config, _with_template(sources.merged))
    warnings = list(room.sentences[1:])
    if room.fits is False:
        warnings.insert(0, room.sentences[0])
    for sentence in (*room.sentences, *([f"no service for TGI: {'; '.join(no_tgi)}"] if no_tgi else [])):
        log.info("%s %s: %s", sources.name, sources.checkpoint, sentence)
    record = {
        "files": {tokenizer_config.name: sha256_of(tokenizer_config)},
        "name": sources.name,
        "checkpoint": sources.checkpoint,
        "vllm": {"version": VERSION, "arguments": arguments},
        "tgi": {"image": TGI_IMAGE, "arguments": tgi, "refused": no_tgi},
        "context": room.context,
        "fits": room.fits,
        "warnings": [f"served from {sources.checkpoint}: {warning}" for warning in warnings],
    }
    write_json(output, record)
    return record


def _served(sources: Sources) -> Served:
    spec, checkpoint = sources.spec, sources.checkpoint
    parameters = _sampling(sources)
    if checkpoint != ADAPTER:
        folder = (
            sources.merged if checkpoint not in (NF4, INT8) else sources.merged.parent / "bitsandbytes" / checkpoint
        )
        dtype, _ = served_dtype(checkpoint, read_json_object(sources.merged / "config.json"))
        return Served(sources.name, checkpoint, str(folder), None, None, None, dtype, parameters)
    base, adapter = Path(spec["base"]), spec["adapter"]
    config = read_json_object(base / "config.json")
    require_served_by_vllm(sources.name, sources.merge_plan, base, Path(adapter))
    ours = sources.merged / "chat_template.jinja"
    differs = ours.is_file() and ours.read_bytes().decode("utf-8") != chat_template_of(base)
    rank = max_lora_rank(largest_rank(sources.merge_plan))
    dtype, _ = served_dtype(checkpoint, config)
    return Served(sources.name, checkpoint, str(base), adapter, rank, str(ours) if differs else None, dtype, parameters)


def _sampling(sources: Sources) -> dict[str, Any]:
    """Return the defaults of answers: the user's, else those of generation_config.json, by Ollama's names."""
    file = sources.merged / "generation_config.json"
    defaults = generation_parameters(file, special_tokens(sources.merged)) if file.is_file() else {}
    # Servers know the end tokens from generation_config.json themselves.
    defaults.pop("stop", None)
    return defaults | sources.spec["parameters"]


def _slot_bytes(served: Served, merge_plan: Mapping[str, Any]) -> int:
    if served.max_lora_rank is None:
        return 0
    tensors = [(one["name"], tuple(one["shape"])) for shard in merge_plan["shards"] for one in shard["tensors"]]
    return adapter_slot_bytes(tensors, served.max_lora_rank)


def _refused_by_tgi(sources: Sources, config: Mapping[str, Any]) -> list[str]:
    """Return why TGI, whose transformers is older than version 5, cannot serve a checkpoint rightly."""
    reasons = refused_by_tgi(sources.merge_plan) if sources.checkpoint == ADAPTER else []
    if sources.checkpoint in (NF4, INT8) and not sources.spec["keeps_merged"]:
        reasons.append(
            "it quantizes the merged weights in 16 bits when it loads, and `keep.merged: false` removes them"
        )
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in config and rope and rope != {"rope_theta": 10000.0, "rope_type": "default"}:
        reasons.append("it does not read rope_parameters, as transformers 5 writes them in config.json")
    tokenizer = sources.merged / "tokenizer_config.json"
    if tokenizer.is_file() and read_json_object(tokenizer).get("tokenizer_class") == "TokenizersBackend":
        reasons.append("it does not know the TokenizersBackend of transformers 5 in tokenizer_config.json")
    return reasons


def _about(sources: Sources, served: Served, room: Room, config: Mapping[str, Any]) -> list[str]:
    """Return what whoever starts a server is to know."""
    _, why = served_dtype(sources.checkpoint, config)
    lines = [
        f"Context: {sentence}." if not number else f"{sentence}." for number, sentence in enumerate(room.sentences)
    ]
    if room.utilization is not None:
        lines.append(
            f"Memory: {room.utilization:.0%} of each GPU, which leaves plan.margin_gib and 500 MiB for the driver. What a"
            " server takes beside weights and KV cache is an estimate."
        )
    lines.append(f"Computed in {served.dtype}: {why}.")
    if served.dtype == "float16" and sources.checkpoint != ADAPTER:
        lines.append("If answers are only `!`, activations overflow float16: take bfloat16, or merge.dtype: bfloat16.")
    if sources.checkpoint == INT8:
        lines.append("LLM.int8() runs without CUDA graphs, and is slower than 16 bits.")
    if sources.spec["system"]:
        lines.append(
            "The system prompt of the configuration (ollama.system) is not in it: servers have none. Clients send it."
        )
    if missing := without_counterpart(sources.spec["parameters"]):
        lines.append(
            f"Not taken over, so clients send it: {', '.join(missing)}. What is given nowhere is the server's default."
        )
    return lines


def _for_vllm(sources: Sources, file: Path, context: int) -> list[str]:
    lines = [
        f"{sources.name} with vLLM {VERSION}, from {_WHAT[sources.checkpoint]}:",
        "",
        f"    vllm serve --config {file}",
    ]
    if sources.checkpoint in (NF4, INT8):
        lines += ["", f"after `pip install {' '.join(PLUGINS)}`: vLLM has bitsandbytes as a plugin since 0.28."]
    return [*lines, *_check(sources, context)]


def _check(sources: Sources, context: int) -> list[str]:
    port, folder = sources.spec["port"], sources.merged
    return [
        "",
        "then, to see that it serves what was trained:",
        "",
        f"    python scripts/check_endpoint.py --url http://127.0.0.1:{port}/v1 --model {sources.name} --tokenizer {folder}"
        f" --context {context}",
    ]


def _for_compose(folder: Path, no_tgi: Sequence[str]) -> list[str]:
    start = f"docker compose -f {folder / 'compose.yaml'} --profile"
    lines = ["With Docker and the NVIDIA container toolkit, at 127.0.0.1 only:", "", f"    {start} vllm up"]
    if no_tgi:
        return [*lines, "", f"No service for TGI: {'; '.join(no_tgi)}."]
    return [
        *lines,
        f"    {start} tgi up",
        "",
        "A key in VLLM_API_KEY (TGI: API_KEY) is asked of clients. Sampling defaults reach vLLM only: TGI has none of its own.",
    ]


def _with_template(merged: Path) -> dict[str, Any]:
    """Return the tokenizer_config.json of the merged model with its chat template in it, as TGI reads it."""
    file, template = merged / "tokenizer_config.json", merged / "chat_template.jinja"
    config = read_json_object(file) if file.is_file() else {}
    return config | ({"chat_template": template.read_bytes().decode("utf-8")} if template.is_file() else {})
