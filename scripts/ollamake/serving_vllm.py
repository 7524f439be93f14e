"""The arguments of `vllm serve` for a checkpoint, as the YAML that its --config reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ollamake.serving_configuration import ADAPTER, INT8, MERGED, NF4
from ollamake.serving_memory import BATCHED_TOKENS, SEQUENCES, Room

VERSION = "0.33.0"
"""What the arguments are written for; tests/serving_arguments has its parser's list."""
PLUGINS = ("vllm-bnb-plugin==0.0.3", "bitsandbytes==0.50.2")
"""What vLLM needs for bitsandbytes checkpoints: since 0.28 they are a plugin of its own (vllm-project/vllm#43529)."""

_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "num_predict": "max_new_tokens",
}
"""Ollama's name of a sampling default -> that of a generation_config.json (ModelConfig.get_diff_sampling_param of vLLM)."""
_NOT_IN_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""What vLLM refuses to run in float16 (_FLOAT16_NOT_SUPPORTED_MODELS in vllm/config/model.py)."""


@dataclass(frozen=True)
class Served:
    """A checkpoint to serve; paths are as in the configuration: relative to where Snakemake runs, or absolute."""

    name: str
    """The model's name: what a client asks for."""
    checkpoint: str
    folder: str
    """The checkpoint, or the base where an adapter is served beside it."""
    adapter: str | None
    max_lora_rank: int | None
    template: str | None
    """The file of the chat template, where it is not the one in ``folder``."""
    dtype: str
    sampling: dict[str, Any]
    """Sampling defaults by Ollama's names."""

    @property
    def base_name(self) -> str:
        """What a client asks for to get the model in ``folder``: with an adapter beside it, that without it."""
        return f"{self.name}-base" if self.checkpoint == ADAPTER else self.name


def served_dtype(checkpoint: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return what vLLM computes in, and why. ``config``: config.json of the merged model, or of the base."""
    model_type = str((config.get("text_config") or config).get("model_type"))
    stored = config.get("dtype") or config.get("torch_dtype")
    if checkpoint == NF4:
        return "bfloat16", "the kernels for NF4 compute in it"
    if model_type in _NOT_IN_FLOAT16 and (checkpoint == INT8 or stored != "bfloat16"):
        return "bfloat16", f"vLLM does not run {model_type} in float16"
    if checkpoint == INT8:
        return "float16", "the kernels of LLM.int8() compute in it"
    if checkpoint == MERGED and stored in ("float16", "float32"):
        return "float16", "the merged weights are stored so; bfloat16 would round small updates away"
    if stored in ("float16", "bfloat16"):
        return str(stored), "as config.json says"
    return "auto", f"config.json says {stored}"


def sampling_overrides(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return Ollama's parameters as vLLM's defaults for requests that do not give them; see ``without_counterpart``.

    A repetition penalty is over the whole text in vLLM, over the last `repeat_last_n` tokens in Ollama.
    """
    return {_NAMES[key]: value for key, value in parameters.items() if key in _NAMES and _is_taken(key, value)}


def without_counterpart(parameters: Mapping[str, Any]) -> list[str]:
    """Return the names of parameters that are about answers and cannot be a server's defaults in vLLM."""
    other = [key for key in ("stop", "seed", "typical_p") if key in parameters]
    return other + [key for key, value in parameters.items() if key in _NAMES and not _is_taken(key, value)]


def _is_taken(key: str, value: float) -> bool:
    """Whether vLLM allows a value: Ollama takes 0 and less for no limit, or lets what means nothing pass."""
    return value > 0 if key in ("top_p", "repeat_penalty", "num_predict") else True


def vllm_arguments(served: Served, room: Room, port: int) -> dict[str, Any]:
    """Return the arguments, by their long names without dashes in front, in an order for people."""
    arguments: dict[str, Any] = {"model": served.folder, "served-model-name": [served.base_name]}
    if served.checkpoint in (NF4, INT8):
        arguments |= {"quantization": "bitsandbytes", "load-format": "bitsandbytes"}
    if served.checkpoint == INT8:
        arguments["enforce-eager"] = True  # LLM.int8() does not run in CUDA graphs
    arguments["dtype"] = served.dtype
    arguments["max-model-len"] = room.context
    if room.utilization is not None:
        arguments["gpu-memory-utilization"] = room.utilization
    arguments |= {"max-num-batched-tokens": BATCHED_TOKENS, "max-num-seqs": SEQUENCES}
    if room.devices > 1:
        # vLLM cannot split what bitsandbytes has quantized.
        arguments["pipeline-parallel-size" if room.split_by_layers else "tensor-parallel-size"] = room.devices
    if served.adapter is not None:
        module = {"name": served.name, "path": served.adapter, "base_model_name": served.base_name}
        arguments |= {"enable-lora": True, "max-loras": 1, "max-lora-rank": served.max_lora_rank}
        arguments["lora-modules"] = [json.dumps(module, ensure_ascii=False)]
    if served.template is not None:
        arguments["chat-template"] = served.template
    arguments["generation-config"] = "auto"
    if overrides := sampling_overrides(served.sampling):
        arguments["override-generation-config"] = overrides
    return arguments | {"host": "127.0.0.1", "port": port}


def vllm_yaml(arguments: Mapping[str, Any], header: Sequence[str]) -> str:
    """Return the file that `vllm serve --config` reads, with comments in front."""
    comments = "".join(f"# {line}".rstrip() + "\n" for line in header)
    return comments + yaml.safe_dump(dict(arguments), sort_keys=False, allow_unicode=True, width=1000)
