"""Which adapters can be served beside the base's own GGUF (`serve: adapter`), and why others can only be merged.

What llama.cpp adds at run time is alpha / rank * B @ A for single weights, and nothing else: convert_lora_to_gguf.py and
src/llama-adapter.cpp. A tensor that its graph multiplies with otherwise than by build_lora_mm is loaded and then passed over
in silence (latent attention, recurrent layers); so only architectures of which this is known not to happen are served.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.json_object import read_json_object
from ollamake.model_files import tokenizer_owner
from ollamake.tensor_names import EMBEDDING, HEAD

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen2_moe": "qwen2moe", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3", "olmo2": "olmo2",
    "cohere": "command-r", "granite": "granite", "starcoder2": "starcoder2",
}  # fmt: skip
"""model_type of config.json -> general.architecture of the GGUF. Every projection of these goes through build_lora_mm in
llama.cpp's src/models, in the pinned version as in that of Ollama 0.17."""

WITHOUT_ADAPTERS_BEFORE_0_30 = frozenset({"gemma3", "qwen3", "qwen3moe"})
"""Of these, what Ollama 0.17 runs in its own engine, which says "loras are not yet implemented" (KV.OllamaEngineRequired in
fs/ggml/ggml.go, allocModel in runner/ollamarunner/runner.go). From 0.30 on llama-server runs every GGUF, with --lora."""

_REMEDY = "Set `serve: merged`, which adds the update to the weights."


def require_servable(
    plan: Mapping[str, Any], base: Path, adapter: Path, ollama_version: str | None = None, key: str = "serve"
) -> str:
    """Return the GGUF's architecture, or raise OllamakeError with everything that would be served otherwise than trained.

    ``plan`` is a parsed merge_plan.json, ``base`` and ``adapter`` are its folders, ``ollama_version`` is that of the Ollama
    that is going to serve, where it is known; ``key`` is the configuration key that messages name.
    """
    reasons = [*_of_config(plan["adapters"][0]["config"]), *dict.fromkeys(_of_tensors(plan))]
    model_type = read_json_object(base / "config.json").get("model_type")
    architecture = ARCHITECTURES.get(str(model_type))
    if architecture is None:
        reasons.append(
            f"of the architecture {model_type} it is not known that llama.cpp applies an update to every weight; known are"
            f" {', '.join(ARCHITECTURES)}"
        )
    elif architecture in WITHOUT_ADAPTERS_BEFORE_0_30 and _is_before_0_30(ollama_version):
        reasons.append(
            f"Ollama {ollama_version} runs {architecture} in an engine without adapters (`loras are not yet implemented`);"
            " 0.30 and later serve it"
        )
    if plan["config"]:
        reasons.append(f"the merged model has another config.json ({_listed(plan['config'])}), the base's GGUF has not")
    if not reasons and tokenizer_owner(base, [adapter], plan) != base:
        reasons.append("it brings a tokenizer with other tokens, and the base's GGUF has the base's tokenizer")
    if reasons:
        raise OllamakeError(
            f"{key}: the adapter {adapter} cannot be served beside the base's GGUF:\n    "
            + "\n    ".join(reasons)
            + f"\n  {_REMEDY}"
        )
    assert architecture is not None
    return architecture


def _of_config(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("peft_type")
    if kind != "LORA":
        yield f"peft_type is {kind}: a LoRA in a GGUF is two matrices for each weight, whose product is added"
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora")):
        yield f"init_lora_weights is {start!r}: it changed the base's weights before training, so they are not the base's GGUF's"


def _of_tensors(plan: Mapping[str, Any]) -> Iterator[str]:
    """Say which edits are more than a product of two matrices on one weight of a layer; the same reason once."""
    for shard in plan["shards"]:
        for tensor in shard["tensors"]:
            for edit in tensor["edits"]:
                reason = _reason(tensor["name"], edit)
                if reason is not None:
                    yield reason


def _reason(name: str, edit: Mapping[str, Any]) -> str | None:
    if EMBEDDING.search(name) or HEAD.search(name):
        what = {"replace": "is saved whole", "rows": "has trained tokens"}.get(edit["kind"], "has an update")
        return (
            f"{name} {what}: llama.cpp does not convert embeddings that were trained whole, and does not apply an update to"
            " both sides of a tied one"
        )
    match edit["kind"]:
        case "module":
            return "updates go through peft's own layers: they are not products of two matrices that are added"
        case "replace" | "rows":
            what = re.sub(r"\.\d+\.", ".*.", name)
            return f"{what} is trained whole (modules_to_save or bias): only low-rank updates are served"
        case "add":
            return "lora_bias: a bias has no low-rank update"
    if "magnitude" in edit:
        return "DoRA: its magnitudes depend on the base's weights, llama.cpp only adds"
    if "expert" in edit or "experts" in edit or ".experts." in name:
        return "experts have updates: how they are stacked differs between peft and llama.cpp"
    if edit["transposed"]:
        return f"{re.sub(r'[.][0-9]+[.]', '.*.', name)} is stored transposed (Conv1D), the update is converted as it is"
    if "rows" in edit:
        return f"{re.sub(r'[.][0-9]+[.]', '.*.', name)} is one part of the weight that was trained"
    return None


def _is_before_0_30(version: str | None) -> bool:
    """Whether a version is known to be older; built without one, Ollama calls itself 0.0.0."""
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return numbers is not None and not str(version).startswith("0.0.0") and tuple(map(int, numbers.groups())) < (0, 30)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
