"""A base model's folder: its configuration and the headers of its shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.json_object import read_json_object
from ollamake.safetensors_header import SafetensorsHeader
from ollamake.source_files import BASE_INDEXES, source_files
from ollamake.tensor_names import HEAD
from ollamake.weight_file import read_entries

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_SCALE = "_scale_inv"
"""What the name of a float8 tensor's block scales ends in (DeepSeek-V3, and transformers' fp8 quantizer)."""
_MOST_OF_ALL = {
    "vocab_size": 10_000_000,
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 10_000),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 100_000),
}
"""Keys of config.json that llama.cpp's converter counts to, and tens of times what models have."""
_QUANTIZED_NAME = re.compile(
    r"[-_.](unsloth[-_])?(bnb|awq|gptq|fp8|nvfp4|mxfp4|hqq|aqlm|eetq|4bit|8bit|int4|int8|w4a16|w8a8|w8a16|g128|dynamic)(?![a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Checkpoint:
    """A base model: config.json, and one header a shard in the order of their names."""

    folder: Path
    config: Mapping[str, Any]
    shards: tuple[SafetensorsHeader, ...]
    block: tuple[int, int] = (128, 128)
    """Rows and columns that one scale of a float8 tensor is for."""

    @property
    def ties_head(self) -> bool:
        """Whether embedding and output head are one tensor.

        transformers leaves out of config.json what is a family's default, so silence is read from the tensors.
        """
        text = self.config.get("text_config")
        for config in (self.config, text if isinstance(text, Mapping) else {}):
            if "tie_word_embeddings" in config:
                return bool(config["tie_word_embeddings"])
        return not any(HEAD.search(tensor.name) for shard in self.shards for tensor in shard.tensors)

    @cached_property
    def scale_of(self) -> dict[str, str]:
        """float8 tensor -> the tensor of its block scales."""
        entries = {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}
        return {
            name: f"{name}{_SCALE}"
            for name, tensor in entries.items()
            if tensor.dtype == "F8_E4M3" and f"{name}{_SCALE}" in entries
        }

    @property
    def scales(self) -> frozenset[str]:
        """The tensors that are scales of others, and go when these are dequantized."""
        return frozenset(self.scale_of.values())


def read_checkpoint(folder: str, key: str) -> Checkpoint:
    """Read a base model's configuration and headers, no weights.

    ``key`` is the configuration key that messages name. Raises OllamakeError for weights that a merge would lose the
    fine-tune in (bitsandbytes, GPTQ, AWQ, ...), a damaged shard, or shards that do not hold what the index says.
    """
    weights, _ = source_files("base", folder, key)
    path = Path(folder)
    config = read_json_object(path / "config.json")
    _require_plausible(path / "config.json", config)
    block = _block_of(path, config)
    shards = tuple(read_entries(Path(file)) for file in weights)
    times = Counter(tensor.name for shard in shards for tensor in shard.tensors)
    twice = sorted(name for name, count in times.items() if count > 1)
    if twice:
        raise OllamakeError(f"{folder}: tensors stand in more than one shard: {', '.join(twice[:5])}")
    for index in BASE_INDEXES:
        if (path / index).is_file() and Path(weights[0]).suffix == Path(index.removesuffix(".index.json")).suffix:
            _compare_with_index(path, index, shards)
    checkpoint = Checkpoint(path, config, shards, block)
    _require_scales(checkpoint)
    return checkpoint


def _require_plausible(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse parts that are no objects, and numbers for each of which somebody would make a place in memory."""
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part, {}), (Mapping, type(None))):
            raise OllamakeError(f"{file}: expected a JSON object in {part}. Fetch the file again.")
    for holder in (config, config.get("text_config") or {}):
        for key, most in _MOST_OF_ALL.items():
            value = holder.get(key)
            if isinstance(value, (int, float)) and not value <= most:
                raise OllamakeError(f"{file}: {key} is {str(value)[:40]}, which no model has. Fetch the file again.")


def _block_of(folder: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the block of float8 scales; refuse every other kind of quantized weights by name."""
    quantization = config.get("quantization_config")
    if not quantization:
        return 128, 128
    found = quantization if isinstance(quantization, Mapping) else {}
    method = found.get("quant_method") or ("bitsandbytes" if found.get("load_in_4bit") else "quantized")
    block = found.get("weight_block_size")
    if (
        method == "fp8"
        and isinstance(block, list)
        and len(block) == 2
        and all(isinstance(n, int) and n > 0 for n in block)
    ):
        return block[0], block[1]
    named = str(config.get("_name_or_path") or folder.name)
    original = _QUANTIZED_NAME.split(named)[0]
    hint = f" (by its name perhaps {original!r})" if original and original != named else ""
    raise OllamakeError(
        f"{folder} holds {method} weights. Merging into quantized weights loses the fine-tune: give the original"
        f" 16-bit model that this one was made from{hint} as `base`."
        + (" Of float8 checkpoints those with block scales can be read (weight_block_size)." if method == "fp8" else "")
    )


def _require_scales(base: Checkpoint) -> None:
    """Refuse float8 weights without scales where config.json says that there are some."""
    if not base.config.get("quantization_config"):
        return
    entries = {tensor.name: tensor for shard in base.shards for tensor in shard.tensors}
    bare = sorted(name for name, t in entries.items() if t.dtype == "F8_E4M3" and name not in base.scale_of)
    wrong = []
    for name, scale in base.scale_of.items():
        shape, blocks = entries[name].shape, entries[scale].shape
        fits = len(shape) == len(blocks) == 2 and all(
            -(-size // step) == count for size, step, count in zip(shape, base.block, blocks, strict=True)
        )
        if not fits or entries[scale].dtype not in FLOATS:
            wrong.append(f"{name} {list(shape)} with scales {list(blocks)}")
    if bare or wrong:
        raise OllamakeError(
            f"{base.folder}: float8 weights whose block scales ({base.block[0]} x {base.block[1]}) are missing or do not"
            f" fit: {', '.join((bare + wrong)[:5])}. Fetch the checkpoint again, or give the 16-bit model as `base`."
        )


def _compare_with_index(folder: Path, file: str, shards: tuple[SafetensorsHeader, ...]) -> None:
    index = read_json_object(folder / file).get("weight_map")
    if not isinstance(index, dict):
        raise OllamakeError(f"{folder / file} is not an index of weights: expected `weight_map`. Fetch the file again.")
    found = {tensor.name: shard.path.name for shard in shards for tensor in shard.tensors}
    if index != found:
        differing = sorted(name for name in index.keys() | found.keys() if index.get(name) != found.get(name))
        name = differing[0]
        raise OllamakeError(
            f"{folder}: {file} and the shards disagree on {len(differing)} tensors; the index has {name!r} in"
            f" {index.get(name, 'no shard')}, found in {found.get(name, 'no shard')}."
            " The shards are not all of one model; fetch the folder again."
        )
