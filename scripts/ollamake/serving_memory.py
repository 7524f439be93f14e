"""What of a model fits the GPUs that serve it with vLLM or TGI: share of memory, length of a conversation, GPUs used.

Hardware, margin, slots and the KV cache are those of plan.json. What these servers take for themselves is not measured here: see
``working_mib``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ollamake.bitsandbytes_sizes import is_linear
from ollamake.context_fit import ContextMemory, mib
from ollamake.serving_configuration import INT8, NF4

BATCHED_TOKENS = 2048
"""Tokens that are computed at once (vLLM's max-num-batched-tokens): more is faster for long prompts, and takes more memory."""
SEQUENCES = 256
"""Conversations at once (vLLM's max-num-seqs); their KV cache shares what room there is."""
_GRAPHS_MIB = 1024
"""MiB for CUDA graphs, NCCL and fragments: a round figure, of which nothing is measured here."""
_WORTH_IT = 2048
"""Tokens: with a shorter context a model is hardly of use."""
_TYPES = {NF4: "NF4", INT8: "INT8"}


@dataclass(frozen=True)
class Room:
    """How a model is put on the GPUs. ``context``: tokens of a conversation, question and answer together."""

    devices: int
    split_by_layers: bool
    """Whether the GPUs have different layers (pipeline), else a part of every one (tensor parallel)."""
    utilization: float | None
    """The share of each GPU's memory that the server may take; None where no GPU is known."""
    context: int
    fits: bool | None
    """None where it is not known."""
    sentences: tuple[str, ...]
    """What is to be known of it, the reason of the context first."""


def room_for(
    checkpoint: str, plan: Mapping[str, Any], config: Mapping[str, Any], num_ctx: int | None, adapter_bytes: int = 0
) -> Room:
    """Return how a checkpoint is put on the GPUs of the plan.

    ``plan``: plan.json. ``config``: config.json. ``num_ctx``: what the user asks for, None for the largest that fits.
    ``adapter_bytes``: what a server sets aside for adapters.
    """
    config = config.get("text_config") or config
    asked = plan["asked"]
    memory = ContextMemory(plan, asked["parallel"])
    target = memory.planned(num_ctx or asked["context"])
    notes = []
    if num_ctx and num_ctx > target:
        notes.append(
            f"num_ctx asks for {num_ctx:,} tokens; the model was trained on {target:,}, and no more are served"
        )
    kinds = [place for place in plan["budgets"] if place["kind"] == "gpu" and place["devices"] == 1]
    gpus = plan["hardware"]["gpus"]
    if not gpus or not kinds:
        notes.append("hardware.gpus: no GPU is known, so nothing is said of memory; give the GPUs that will serve")
        return Room(1, False, None, target, None, (_which(target, num_ctx), *notes))
    by_layers = checkpoint in _TYPES
    devices = pipeline_devices(len(gpus), config) if by_layers else tensor_devices(len(gpus), config)
    if devices < len(gpus):
        notes.append(
            f"{devices} of {len(gpus)} GPUs are used: heads and layer sizes cannot be divided among more of them evenly"
        )
    # The smallest decides: each takes the same part.
    smallest = min(kinds, key=lambda place: place["usable_mib"])
    memory_mib = smallest["memory_gib"] * 1024
    utilization = math.floor(100 * smallest["usable_mib"] / memory_mib) / 100
    weights = next(one["bytes"] for one in plan["transformers"] if one["name"] == _TYPES.get(checkpoint, "FP16"))
    working = working_mib(config, 1 if by_layers else devices)
    taken = mib(math.ceil((weights + adapter_bytes) * _share(config, devices, by_layers))) + working
    free = math.floor(utilization * memory_mib) - taken
    cache_share = _cache_share(config, devices, by_layers)
    largest = memory.largest("f16", math.floor(free / cache_share), 0) if free > 0 else 0
    name = smallest["name"] if devices == 1 else f"each of {devices} x {smallest['name']}"
    if largest is None:
        notes.append(f"whether it fits {name} is not known: {memory.why_unknown('f16')}")
        return Room(devices, by_layers, utilization, target, None, (_which(target, num_ctx), *notes))
    if largest >= target:
        context = target if num_ctx else largest
        which = f"{context:,} tokens: the largest that fits {name}"
        if num_ctx:
            which = _which(context, num_ctx)
        elif context == memory.trained:
            which = f"{context:,} tokens: the length the model was trained for; it fits {name}"
        return Room(devices, by_layers, utilization, context, True, (which, *notes))
    need = memory.need("f16", target)
    lacking = _gib((math.ceil(need.kv_mib * cache_share) if need else 0) - free)
    if largest >= _WORTH_IT:
        notes.append(f"{target:,} tokens are asked, which need {lacking} more than there is")
        which = f"{largest:,} tokens: the largest that fits {name}"
        return Room(devices, by_layers, utilization, largest, True, (which, *notes))
    has = _gib(math.floor(utilization * memory_mib))
    said = f"{target:,} tokens DO NOT FIT: they need {lacking} more than the {has} that may be taken of {name}"
    return Room(devices, by_layers, utilization, target, False, (said, *notes))


def tensor_devices(count: int, config: Mapping[str, Any]) -> int:
    """Return how many of ``count`` GPUs can each have an even part of every layer.

    Attention heads must divide evenly, key-value heads too or be repeated evenly, and the layer in between (vLLM's
    ColumnParallelLinear and ModelConfig.verify_with_parallel_config, TGI's shards).
    """
    heads = config.get("num_attention_heads")
    if not heads:
        return 1
    kv_heads = config.get("num_key_value_heads") or heads
    inner = config.get("intermediate_size") or 0

    def divides(number: int) -> bool:
        kv_even = kv_heads % number == 0 or number % kv_heads == 0
        return heads % number == 0 and kv_even and inner % number == 0

    return next(number for number in range(count, 0, -1) if divides(number))


def pipeline_devices(count: int, config: Mapping[str, Any]) -> int:
    """Return how many of ``count`` GPUs can have layers of their own."""
    return min(count, config.get("num_hidden_layers") or 1)


def working_mib(config: Mapping[str, Any], parts: int) -> int:
    """Return an estimate of what a server takes on a GPU beside weights and KV cache, in MiB; nothing here has measured it.

    Activations of one layer for BATCHED_TOKENS (two hidden states, queries, keys and values in their size, gate, up and their
    product), logits of SEQUENCES in float32 with their probabilities in order, and a round figure for the rest.
    """
    hidden = config.get("hidden_size") or 0
    inner = config.get("intermediate_size") or 4 * hidden
    experts = (config.get("moe_intermediate_size") or inner) * (config.get("num_experts_per_tok") or 1)
    activations = BATCHED_TOKENS * 2 * (5 * hidden + 3 * max(inner, experts) // parts)
    logits = SEQUENCES * (config.get("vocab_size") or 0) * 4 * 3
    return mib(activations + logits) + _GRAPHS_MIB


def adapter_slot_bytes(tensors: Iterable[tuple[str, tuple[int, ...]]], rank: int) -> int:
    """Return what vLLM sets aside for one adapter of up to ``rank``: two 16-bit matrices for every linear layer of the model.

    ``tensors``: name and shape of the checkpoint's. Layers that the adapter does not touch are counted: their room is taken, too.
    """
    return sum(2 * rank * sum(shape) for name, shape in tensors if is_linear(name, shape))


def _share(config: Mapping[str, Any], devices: int, by_layers: bool) -> float:
    """Return the largest part of the weights that one GPU has."""
    layers = config.get("num_hidden_layers") or devices
    return math.ceil(layers / devices) / layers if by_layers else 1 / devices


def _cache_share(config: Mapping[str, Any], devices: int, by_layers: bool) -> float:
    if by_layers:
        return _share(config, devices, by_layers)
    kv_heads = config.get("num_key_value_heads") or config.get("num_attention_heads") or 1
    return max(1 / devices, 1 / kv_heads)


def _which(context: int, num_ctx: int | None) -> str:
    return f"{context:,} tokens: {'num_ctx' if num_ctx else 'what is asked (plan.context), at most the trained length'}"


def _gib(size_mib: int) -> str:
    return f"{size_mib / 1024:.1f} GiB"
