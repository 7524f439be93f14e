"""A PEFT adapter folder: its configuration, checked option by option, and what its tensors are.

Every field of adapter_config.json that is set must be known here, either as handled or as harmless to a merge; what is
neither is refused by name. The fields are those of peft 0.21's LoraConfig (peft/tuners/lora/config.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.safetensors_header import SafetensorsHeader, read_header
from ollamake.source_files import ADAPTER_WEIGHTS

_HARMLESS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type",
        "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "eva_config",
        "ephemeral_gpu_offload", "runtime_config", "loftq_config", "megatron_core", "qalora_group_size",
        "corda_config", "lora_ga_config", "arrow_config", "ensure_weight_tying",
    }
)  # fmt: skip
"""They steer where and how training happened; which modules have an update is told by the tensors themselves."""

_HANDLED = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save"})

_KEPT_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
"""init_lora_weights that leave the base weights as they were."""

_REASONS = {
    "use_dora": "DoRA, whose magnitudes rescale the whole weight",
    "lora_bias": "biases in the LoRA layers",
    "fan_in_fan_out": "layers that store their weight transposed (Conv1D, as in GPT-2)",
    "trainable_token_indices": "single trained token embeddings",
    "target_parameters": "updates of parameters that are not nn.Linear (fused MoE experts)",
    "layer_replication": "repeated layers, for which the base has no tensors to merge into",
    "alora_invocation_tokens": "activated LoRA, which is switched on within a prompt and has nothing to merge",
    "bias": "trained biases",
}


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: ``scale_of`` gives the factor of B @ A for a module of a rank."""

    folder: Path
    config: Mapping[str, Any]
    header: SafetensorsHeader

    def scale_of(self, module: str, rank: int) -> float:
        """Return lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (arXiv:2312.03732).

        ``module`` is the module's name in the base. Raises OllamakeError if its tensors have another rank than the
        configuration says, since the scale would then be wrong.
        """
        expected = self._pattern("rank_pattern", module, self.config.get("r", 8))
        if rank != expected:
            raise OllamakeError(
                f"{self.folder}: the tensors of {module} have rank {rank}, adapter_config.json says {expected}."
                " The two files are not of the same adapter; copy both from the same checkpoint."
            )
        alpha = self._pattern("alpha_pattern", module, self.config.get("lora_alpha", 8))
        return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _pattern(self, key: str, module: str, otherwise: float) -> Any:
        """Return the value of the first pattern that matches as in peft (get_pattern_key in peft/utils/other.py)."""
        patterns = self.config.get(key) or {}
        return next((value for pattern, value in patterns.items() if _matches(pattern, module)), otherwise)


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's configuration and header, no weights.

    Raises OllamakeError for a kind or an option that cannot be merged yet, naming it, and for damaged files.
    """
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OllamakeError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise OllamakeError(f"{path} is not the configuration of a PEFT adapter: expected a JSON object.")
    _refuse_unsupported(path, config)
    return Adapter(folder, config, read_header(folder / ADAPTER_WEIGHTS))


def _refuse_unsupported(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise OllamakeError(
            f"{path}: peft_type is {kind!r}. LORA is what can be merged so far;"
            " merge this kind with peft's merge_and_unload() and give the result as `base`, without an adapter."
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start not in _KEPT_BASE:
        raise OllamakeError(
            f"{path}: init_lora_weights is {start!r}, which changed the base weights before training, so that the"
            " adapter does not fit the original base. Save it with peft's path_initial_model_for_weight_conversion,"
            " which turns it into a plain LoRA, and give that."
        )
    known = _HARMLESS | _HANDLED | {"init_lora_weights"}
    unsupported = [key for key, value in config.items() if key not in known and not _is_off(key, value)]
    if unsupported:
        named = [f"{key}: {_REASONS.get(key, f'set to {config[key]!r}')}" for key in unsupported]
        raise OllamakeError(
            f"{path} uses what cannot be merged yet ({'; '.join(named)}). Merge it with peft's merge_and_unload()"
            " and give the result as `base`, without an adapter."
        )
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in config.get(key) or {}:
            _matches(pattern, "", path)


def _is_off(key: str, value: Any) -> bool:
    return value is None or value is False or value in ("none", [], {}) or (key == "megatron_config" and not value)


def _matches(pattern: str, module: str, path: Path | None = None) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise OllamakeError(
            f"{path or 'adapter_config.json'}: {pattern!r} is not a regular expression: {error}"
        ) from error
