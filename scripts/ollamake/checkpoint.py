"""A base model's folder: its configuration and the headers of its shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.safetensors_header import SafetensorsHeader, read_header
from ollamake.source_files import BASE_INDEX, source_files

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Checkpoint:
    """A base model: config.json, and one header a shard in the order of their names."""

    folder: Path
    config: Mapping[str, Any]
    shards: tuple[SafetensorsHeader, ...]

    @property
    def ties_head(self) -> bool:
        """Whether embedding and output head are one tensor.

        transformers leaves out of config.json what is a family's default, so silence is read from the tensors.
        """
        stored = any(tensor.name.endswith("lm_head.weight") for shard in self.shards for tensor in shard.tensors)
        return bool(self.config.get("tie_word_embeddings", not stored))


def read_checkpoint(folder: str, key: str) -> Checkpoint:
    """Read a base model's configuration and headers, no weights.

    ``key`` is the configuration key that messages name. Raises OllamakeError for a folder that is no 16-bit or 32-bit
    safetensors checkpoint, a damaged shard, or shards that do not hold what the index says.
    """
    weights, _ = source_files("base", folder, key)
    path = Path(folder)
    config = _read_json(path / "config.json")
    _refuse_quantized(path, config)
    shards = tuple(read_header(Path(file)) for file in weights)
    names = [tensor.name for shard in shards for tensor in shard.tensors]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise OllamakeError(f"{folder}: tensors stand in more than one shard: {', '.join(twice[:5])}")
    if (path / BASE_INDEX).is_file():
        _compare_with_index(path, shards)
    return Checkpoint(path, config, shards)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OllamakeError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise OllamakeError(f"{path}: expected a JSON object.")
    return value


def _refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "quantized") if isinstance(quantization, dict) else "quantized"
        raise OllamakeError(
            f"{folder} holds {method} weights. Merging into quantized weights loses the fine-tune: give the original"
            " 16-bit model that this one was made from as `base`."
        )


def _compare_with_index(folder: Path, shards: tuple[SafetensorsHeader, ...]) -> None:
    index = _read_json(folder / BASE_INDEX)["weight_map"]
    found = {tensor.name: shard.path.name for shard in shards for tensor in shard.tensors}
    if index != found:
        differing = sorted(name for name in index.keys() | found.keys() if index.get(name) != found.get(name))
        name = differing[0]
        raise OllamakeError(
            f"{folder}: {BASE_INDEX} and the shards disagree on {len(differing)} tensors; the index has {name!r} in"
            f" {index.get(name, 'no shard')}, found in {found.get(name, 'no shard')}."
            " The shards are not all of one model; fetch the folder again."
        )
