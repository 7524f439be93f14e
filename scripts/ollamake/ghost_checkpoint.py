"""A checkpoint folder without weights: every small file, and of each shard the header with a hole behind it.

The hole has the length that the header says, but no blocks on the disk (a sparse file), so that a model of any size takes
as much as its headers, and what reads the folder finds nothing amiss until it asks for a weight, which is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ollamake.atomic_write import write_plain_json
from ollamake.errors import OllamakeError
from ollamake.gguf_conversion import outtype_for
from ollamake.model_files import write_model_files
from ollamake.safetensors_header import header_bytes, tensor_bytes
from ollamake.shape import Shape

Tensor = tuple[str, str, tuple[int, ...]]
"""(name, safetensors dtype, shape)."""

_HALVES = ("F16", "BF16", "F8_E4M3")
_SCALE = "_scale_inv"


def write_ghost_shard(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write a safetensors file with these tensors and no data."""
    table = list(tensors)
    header = header_bytes(table)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor_bytes(dtype, shape) for _, dtype, shape in table))


def ghost_of_merge(plan: Mapping[str, Any], base: Path, adapters: Sequence[Path], folder: Path) -> str:
    """Write the ghost of a merged checkpoint to ``folder`` and return the converter's --outtype for it.

    ``plan`` is a parsed merge_plan.json; the small files are those that ``write_model_files`` writes for the merge. Raises
    OllamakeError as that and ``outtype_for`` do.
    """
    write_model_files(base, adapters, plan, folder / "model_files.json")
    for shard in plan["shards"]:
        write_ghost_shard(folder / shard["file"], tensors_of_merge({"shards": [shard]}))
    return outtype_for(dict(plan))


def tensors_of_merge(plan: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors of a merged checkpoint, with the dtypes that they are stored in."""
    return [
        (tensor["name"], tensor["stored"], tuple(tensor["shape"]))
        for shard in plan["shards"]
        for tensor in shard["tensors"]
    ]


def ghost_of_shape(shape: Shape, folder: Path) -> str:
    """Write the ghost of a fine-tune of a model that only its shape is known of; return the converter's --outtype.

    There is no tokenizer in it. The dtypes are those of ``tensors_of_shape``.
    """
    config = {key: value for key, value in shape.config.items() if key != "quantization_config"}
    quantization = shape.config.get("quantization_config")
    if isinstance(quantization, Mapping) and quantization.get("quant_method") != "fp8":
        raise OllamakeError(
            f"{shape.name} holds {quantization.get('quant_method', 'quantized')} weights, into which no adapter can be"
            " merged. Give the 16-bit model that it was made from."
        )
    write_plain_json(folder / "config.json", config)
    tensors = tensors_of_shape(shape)
    rows = max((size[0] for name, _, size in tensors if name.endswith("embed_tokens.weight")), default=0)
    # For Gemma 3 the converter counts the tokens here, whether it writes a tokenizer or not (conversion/gemma.py:169).
    write_plain_json(folder / "tokenizer.json", {"model": {"vocab": list(range(rows))}, "added_tokens": []})
    write_ghost_shard(folder / "model.safetensors", tensors)
    return outtype_of_shape(shape)


def tensors_of_shape(shape: Shape) -> list[Tensor]:
    """Return the tensors of a fine-tune of a model: 16-bit and float8 weights in float16, as ``merge: {dtype: auto}`` merges."""
    return [
        (name, "F16" if dtype in _HALVES else dtype, size)
        for name, dtype, size in shape.tensors
        if not name.endswith(_SCALE)
    ]


def outtype_of_shape(shape: Shape) -> str:
    """Return the converter's --outtype for a fine-tune of a model: f16, or f32 for a base in float32.

    Raises OllamakeError if it has no matrix in 16 or 32 bits.
    """
    tensors = [{"stored": dtype, "shape": size} for _, dtype, size in tensors_of_shape(shape)]
    return outtype_for({"shards": [{"tensors": tensors}]})
