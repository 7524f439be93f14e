"""A PEFT adapter folder: its configuration, checked option by option, and which tensors it holds.

Every field of a LoRA's adapter_config.json that is set must be known here: as handled by the streamed merge, as left to
peft's own layer, as harmless, or as refused with a reason; what is none of these is refused by name. The fields are those
of peft 0.21's LoraConfig (peft/tuners/lora/config.py). Other methods than LoRA are peft_methods' affair.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.adapter_options import malformed
from ollamake.errors import OllamakeError
from ollamake.foreign_pattern import matches_whole
from ollamake.json_object import read_json
from ollamake.peft_methods import is_plain_lora, refusal
from ollamake.safetensors_header import SafetensorsHeader
from ollamake.source_files import adapter_weights
from ollamake.weight_file import read_entries

log = logging.getLogger("ollamake")


@dataclass(frozen=True)
class Adapter:
    """An adapter and the weight with which its update is added."""

    folder: Path
    config: Mapping[str, Any]
    header: SafetensorsHeader
    weight: float = 1.0

    @property
    def is_plain_lora(self) -> bool:
        """Whether the update of a module is a product of two matrices, with or without DoRA's magnitude."""
        return is_plain_lora(self.config)

    def scale_of(self, name: str, rank: int) -> float:
        """Return lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (arXiv:2312.03732).

        ``name`` is what peft matches patterns with: the module's name in memory, for target_parameters with the parameter's
        name behind it. Raises OllamakeError if its tensors have another rank than the configuration says, since the scale
        would then be wrong.
        """
        expected = self._matching("rank_pattern", name) or [self.config.get("r", 8)]
        if rank not in expected:
            raise OllamakeError(
                f"{self.folder}: the tensors of {name} have rank {rank}, adapter_config.json says {expected[0]}."
                " The two files are not of the same adapter; copy both from the same checkpoint."
            )
        alphas = self._matching("alpha_pattern", name) or [self.config.get("lora_alpha", 8)]
        if len(set(alphas)) > 1:
            log.warning(
                "%s: several patterns of alpha_pattern match %s, with the values %s. peft takes the first, but does not"
                " save them in the order of training; %s is used, as peft does when it loads the adapter.",
                self.folder, name, ", ".join(map(str, alphas)), alphas[0],
            )  # fmt: skip
        return float(alphas[0]) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def token_indices(self, module: str) -> list[int]:
        """Return the rows of an embedding that trainable_token_indices names for ``module``."""
        indices = self.config.get("trainable_token_indices", self.config.get("token_indices"))
        if isinstance(indices, Mapping):
            named = [rows for key, rows in indices.items() if module == key or module.endswith(f".{key}")]
            # A tied head is trained along with the embedding that is named.
            named = named or (list(indices.values()) if len(indices) == 1 else [])
            return list(named[0]) if named else []
        return list(indices or [])

    def _matching(self, key: str, name: str) -> list[Any]:
        """Return the values of all patterns that match, in order."""
        place = f"{self.folder / 'adapter_config.json'}: {key}"
        return [
            value for pattern, value in (self.config.get(key) or {}).items() if matches_module(pattern, name, place)
        ]


def read_adapter(folder: Path, weight: float = 1.0) -> Adapter:
    """Read an adapter's configuration and header, no weights.

    Raises OllamakeError for a kind or an option that cannot be merged, saying why and what to do, and for damaged files.
    """
    path = folder / "adapter_config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise OllamakeError(f"{path} is not the configuration of a PEFT adapter: expected a JSON object.")
    if fault := malformed(config):
        raise OllamakeError(f"{path}: {fault}. Copy the file from the checkpoint again, or correct it.")
    reason = refusal(config)
    if reason:
        raise OllamakeError(f"{path}: {reason}")
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in config.get(key) or {}:
            matches_module(pattern, "", str(path))
    (weights,) = adapter_weights(folder, str(folder))
    return Adapter(folder, config, read_entries(folder / weights), weight)


def matches_module(pattern: str, name: str, key: str = "adapter_config.json") -> bool:
    """Whether a pattern of rank_pattern or alpha_pattern is for a module, as in peft (get_pattern_key in utils/other.py).

    Raises OllamakeError naming ``key`` for what is no pattern.
    """
    return matches_whole(pattern, name, key, before=r"(.*\.)?")
