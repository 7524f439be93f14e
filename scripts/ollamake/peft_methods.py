"""Which adapters can be merged, and how: by the streamed arithmetic, through peft's own layer, or not at all, and why.

Told from adapter_config.json alone, without importing peft. The methods are those of peft 0.21 (peft/utils/peft_types.py); the
test of this module goes through all of them, so that a newer peft cannot bring one that nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

THROUGH_PEFT = frozenset(
    {
        "ADALORA", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING",
        "LOHA", "LOKR", "MISS", "OFT", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING",
        "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT",
    }
)  # fmt: skip
"""Methods whose layers merge one by one."""

_PROMPT = (
    "trains input that stands before every prompt and no weights, so there is nothing to merge."
    " Serve it with peft or vLLM, or train a LoRA"
)
_OVER_LAYERS = (
    "shares parameters between layers in an order that only the whole model tells, so it cannot be merged layer by layer."
    " Merge it with peft's merge_and_unload() and give the result as `base`, without an adapter"
)
_NO_MERGE = (
    "changes the model depending on its input, so no fixed weights are equal to it. Serve it with peft, or train a LoRA"
)

NOT_MERGED = {
    "PROMPT_TUNING": _PROMPT,
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
    "PREFIX_TUNING": _PROMPT,
    "ADAPTION_PROMPT": _PROMPT,
    "CPT": _PROMPT,
    "CARTRIDGE": _PROMPT,
    "POLY": _NO_MERGE,
    "XLORA": _NO_MERGE,
    "SHADOW": _NO_MERGE,
    "LILY": _NO_MERGE,
    "FROD": _OVER_LAYERS,
    "TINYLORA": _OVER_LAYERS,
    "UNILORA": _OVER_LAYERS,
    "ADAMSS": _OVER_LAYERS,
    "OSF": "trains the weights' own singular vectors and saves no update. Save the trained model whole and give it as `base`",
}

_HARMLESS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type",
        "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "eva_config",
        "ephemeral_gpu_offload", "runtime_config", "loftq_config", "megatron_core", "qalora_group_size",
        "corda_config", "lora_ga_config",
    }
)  # fmt: skip
"""They steer where and how training happened; which modules have an update is told by the tensors themselves."""

_STREAMED = frozenset(
    {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "bias",
        "modules_to_save", "trainable_token_indices", "target_parameters", "ensure_weight_tying", "init_lora_weights",
    }
)  # fmt: skip
_VARIANTS = frozenset({"use_qalora", "use_bdlora", "kasa_config", "velora_config", "monteclora_config"})
"""Options of LoRA whose arithmetic is left to peft's layer."""

_REFUSED = {
    "layer_replication": "layer_replication repeats layers, for which the base has no tensors to merge into."
    " Build the deeper model first (save it whole) and give it as `base`.",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens) is switched on within a prompt, so there is nothing"
    " to merge. Serve it with peft or vLLM, or train a plain LoRA.",
    "arrow_config": "Arrow (arrow_config) chooses between adapters for each token, so there is nothing to merge."
    " Merge one of the adapters.",
    "megatron_config": "megatron_config: the layers are Megatron's, whose tensors are split and named otherwise."
    " Convert base and adapter to the transformers format first.",
}

_KEPT_BASE = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
"""init_lora_weights that leave the base weights as they were."""
_COMPUTED_AGAIN = ("pissa", "olora")
"""init_lora_weights whose changed base follows from the original one alone: peft's layer computes it as in training."""
_CONVERTED = ("pissa", "corda", "lora_ga")
"""How init_lora_weights begins where peft can save the adapter as a plain LoRA (LoraModel in peft/tuners/lora/model.py)."""


def is_plain_lora(config: Mapping[str, Any]) -> bool:
    """Whether every update is a product of two matrices added to the base, perhaps with DoRA's magnitudes."""
    return (
        config.get("peft_type") == "LORA"
        and config.get("init_lora_weights", True) in _KEPT_BASE
        and all(_is_off(config.get(key)) for key in _VARIANTS)
    )


def refusal(config: Mapping[str, Any]) -> str | None:
    """Return why an adapter with this adapter_config.json cannot be merged and what to do, or None if it can."""
    kind = config.get("peft_type")
    kind = kind if isinstance(kind, str) else None
    if kind in NOT_MERGED:
        return f"peft_type {kind} {NOT_MERGED[kind]}."
    if kind in THROUGH_PEFT:
        return None
    if kind != "LORA":
        return (
            f"peft_type is {kind!r}, which ollamake does not know; expected LORA or one of"
            f" {', '.join(sorted(THROUGH_PEFT))}. Merge it with peft's merge_and_unload() and give the result as `base`."
        )
    for key, reason in _REFUSED.items():
        if not _is_off(config.get(key)):
            return reason
    unknown = [
        key
        for key, value in config.items()
        if key not in _HARMLESS | _STREAMED | _VARIANTS | _REFUSED.keys() and not _is_off(value)
    ]
    if unknown:
        named = ", ".join(f"{key} (set to {config[key]!r})" for key in unknown)
        return (
            f"it uses options that ollamake does not know: {named}. Merge it with peft's merge_and_unload() and give the"
            " result as `base`, without an adapter."
        )
    return _init_refusal(config.get("init_lora_weights", True))


def _init_refusal(start: Any) -> str | None:
    if start in _KEPT_BASE or start in _COMPUTED_AGAIN:
        return None
    convert = (
        " Save it with save_pretrained(..., path_initial_model_for_weight_conversion=...), which turns it into a plain LoRA; or"
        if str(start).lower().startswith(_CONVERTED)
        else " So"
    )
    return (
        f"init_lora_weights is {start!r}, which changed the base weights before training in a way that cannot be computed"
        f" again from the original base, so the adapter does not fit it.{convert} give the changed base that it was trained"
        " on (the residual model, in 16 bit) as `base` and set init_lora_weights to true."
    )


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("none", [], {})
