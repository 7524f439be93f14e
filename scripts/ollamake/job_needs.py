"""The memory and the disk that one job of a build needs, from merge_plan.json alone: before anything is read or written.

Bounds, not averages. Memory is the resident size as Snakemake's benchmarks count it, mapped pages of files included; a
kernel short of memory can take those back, so a job may get along with somewhat less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.gguf_quantization import MAX_BUFFER_MIB
from ollamake.quantization_types import QUANTIZATION_TYPES
from ollamake.safetensors_header import BITS, tensor_bytes

METADATA_BYTES = 10_000_000
"""Allowance for the metadata of one GGUF: 6-8.5 MB for vocabularies of 128 k to 262 k tokens."""

_MERGE_BYTES = 800_000_000
"""torch (540 MB, measured), bands of a few MB and the mapped window of the base: 740 MB with any rank, measured."""
_PEFT_BYTES = 300_000_000
"""peft and transformers come on top (280 MB, measured)."""
_PEFT_BYTES_PER_ELEMENT = 42
_PEFT_BYTES_PER_ELEMENT_OF = {"C3A": 92}
"""Of the largest parameter that goes through peft's layer, with the portions that are read ahead and written behind. Measured
on 12.6 million elements: 15 (VBLoRA) to 39 (FourierFT, RandLoRA), for C3A 84."""
_SQUARE_BYTES_PER_ELEMENT = 10
_SQUARE = frozenset({"OFT", "BOFT", "HRA"})
"""Methods that turn a layer's inputs, by a matrix of inputs x inputs that stands beside the weight (8 bytes measured)."""
_CONVERT_BYTES = 700_000_000
"""torch and transformers in the converter, and the process that started it: 615 MB for a model of a few MB, measured."""
_CONVERT_BYTES_PER_ELEMENT = {"F16": 5.4, "BF16": 7.4, "F32": 5.4}
"""Of the largest tensor, by the type that is written; mapped source pages included (measured on 512 million elements)."""
_COPIES_OF_ADAPTER = 4
"""As read, with the other scale, in the file that the converter is given (mapped), and in the converter."""
_QUANTIZE_BYTES = 150_000_000
_RUN_BYTES = 1_000_000_000
"""What llama.cpp has beside the weights when it runs a model: KV cache and buffers for 2048 tokens (540 MB of KV cache for a 32B)
and the Python process that started it."""
_LOGIT_BYTES = 10_240
"""For each token of the vocabulary: the float32 logits of half a batch of 2048 and of a micro-batch of 512, and the 16-bit
log-probabilities of a chunk, or for an importance matrix the logits of the whole batch."""
_COPIES_OF_WEIGHTS = 2
"""Quantized weights are mapped, and a copy is arranged for the processor (417 MB measured for a file of 72 MB)."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")

_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Needs:
    """What a job takes, in MB of a million bytes; ``disk_mb`` is what it writes."""

    mem_mb: int
    disk_mb: int


def merge_shard(plan: Mapping[str, Any], shard: str) -> Needs:
    """Return the needs of merging one shard of a parsed merge_plan.json. Raises KeyError if the plan has none of that name.

    Plain LoRA takes bands of rows through; a parameter that goes through peft's layer is there as a whole, several times.
    """
    tensors = next((one["tensors"] for one in plan["shards"] if one["file"] == shard), None)
    if tensors is None:
        raise KeyError(shard)
    memory: float = _MERGE_BYTES + _adapter_bytes(plan, tensors)
    through_peft = _bytes_in_peft(plan, tensors)
    if through_peft:
        memory += _PEFT_BYTES + through_peft
    return Needs(_mb(memory), _mb(shard_bytes(tensors)))


def convert(plan: Mapping[str, Any]) -> Needs:
    """Return the needs of converting the merged checkpoint of a parsed merge_plan.json to an unquantized GGUF.

    llama.cpp's converter holds one tensor at a time; experts that the checkpoint stores one by one become one tensor, and
    are there a second time while they are stacked.
    """
    kind = unquantized_type(plan)
    largest, stacked = _largest_tensor(plan)
    copy = BITS[kind] / 8 if stacked else 0
    return Needs(
        _mb(_CONVERT_BYTES + (_CONVERT_BYTES_PER_ELEMENT[kind] + copy) * largest), _mb(unquantized_bytes(plan))
    )


def converted_adapter_bytes(plan: Mapping[str, Any]) -> int:
    """Return the bytes of an adapter's two matrices for each weight in float32."""
    tensors = [tensor for shard in plan["shards"] for tensor in shard["tensors"]]
    return sum(4 * edit.get("rank", 0) * sum(tensor["shape"]) for tensor in tensors for edit in tensor["edits"])


def convert_adapter(plan: Mapping[str, Any]) -> Needs:
    """Return what converting an adapter takes: it is in memory as it was read, in float32, and once more in the converter."""
    size = converted_adapter_bytes(plan)
    return Needs(_mb(_CONVERT_BYTES + _COPIES_OF_ADAPTER * size), _mb(size))


def quantize(source: str, quantization: str, largest_tensor: int, output_bytes: int) -> Needs:
    """Return the needs of quantizing a GGUF of type ``source`` (F16, BF16, F32).

    ``largest_tensor``: elements of it. llama-quantize maps that tensor and has a buffer for a part of its rows: as they
    are, in float32, and quantized (src/llama-quant.cpp; 1.47 GB measured for 512 million elements of F16 to Q8_0).
    """
    stored = BITS[source] / 8
    row = stored + (0 if source == "F32" else 4) + QUANTIZATION_TYPES[quantization].bits_per_weight / 8
    buffer = min(row * largest_tensor, MAX_BUFFER_MIB << 20)
    return Needs(_mb(_QUANTIZE_BYTES + buffer + stored * largest_tensor), _mb(output_bytes))


def compute_imatrix(plan: Mapping[str, Any]) -> Needs:
    """Return the needs of llama-imatrix on the unquantized GGUF."""
    return Needs(_mb(_RUN_BYTES + unquantized_bytes(plan) + _LOGIT_BYTES * vocabulary(plan)), _mb(METADATA_BYTES))


def evaluate(plan: Mapping[str, Any], quantization: str | None) -> Needs:
    """Return the needs of llama-perplexity on a quantization, or on the unquantized GGUF (None).

    The log-probabilities of the latter go to the disk only where there is room.
    """
    weights = (
        unquantized_bytes(plan) if quantization is None else _COPIES_OF_WEIGHTS * quantized_bytes(plan, quantization)
    )
    return Needs(_mb(_RUN_BYTES + weights + _LOGIT_BYTES * vocabulary(plan)), 1)


def measure_speed(plan: Mapping[str, Any], quantization: str) -> Needs:
    """Return the needs of llama-bench on a quantization."""
    return Needs(_mb(_RUN_BYTES + _COPIES_OF_WEIGHTS * quantized_bytes(plan, quantization)), 1)


def vocabulary(plan: Mapping[str, Any]) -> int:
    """Return the rows of the embedding."""
    return max((one["shape"][0] for one in _tensors(plan) if one["name"].endswith(_EMBEDDINGS)), default=0)


def largest_job(plan: Mapping[str, Any], quantizations: Iterable[str]) -> tuple[str, Needs]:
    """Return (what it does, needs) of the job of a build that needs the most memory."""
    kind, largest = unquantized_type(plan), largest_tensor(plan)
    jobs = [(f"merging {one['file']}", merge_shard(plan, one["file"])) for one in plan["shards"]]
    jobs.append(("converting to GGUF", convert(plan)))
    jobs += [
        (f"quantizing to {name}", quantize(kind, name, largest, quantized_bytes(plan, name))) for name in quantizations
    ]
    return max(jobs, key=lambda job: job[1].mem_mb)


def shard_bytes(tensors: Iterable[Mapping[str, Any]]) -> int:
    """Return the bytes of planned tensors as they are stored."""
    return sum(tensor_bytes(tensor["stored"], tensor["shape"]) for tensor in tensors)


def unquantized_type(plan: Mapping[str, Any]) -> str:
    """Return the type of the unquantized GGUF, F16, BF16 or F32: the widest of the matrices, as gguf_conversion chooses it."""
    matrices = {tensor["stored"] for tensor in _tensors(plan) if len(tensor["shape"]) >= 2}
    return next((kind for kind in ("F32", "F16", "BF16") if kind in matrices), "F16")


def unquantized_bytes(plan: Mapping[str, Any]) -> int:
    """Return about how many bytes the unquantized GGUF has."""
    return elements(plan) * BITS[unquantized_type(plan)] // 8 + METADATA_BYTES


def quantized_bytes(plan: Mapping[str, Any], quantization: str) -> int:
    """Return about how many bytes a quantized GGUF has."""
    return round(elements(plan) * QUANTIZATION_TYPES[quantization].bits_per_weight / 8) + METADATA_BYTES


def elements(plan: Mapping[str, Any]) -> int:
    """Return the elements of all merged tensors: the parameters of the model."""
    return sum(math.prod(tensor["shape"]) for tensor in _tensors(plan))


def largest_tensor(plan: Mapping[str, Any]) -> int:
    """Return the elements of the largest tensor of the GGUF, where the experts of a layer are one."""
    return _largest_tensor(plan)[0]


def _largest_tensor(plan: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the elements of the largest tensor of the GGUF, and whether it is stacked from several of the checkpoint."""
    sizes: dict[str, int] = {}
    for tensor in _tensors(plan):
        name = _EXPERT.sub(".experts.", tensor["name"])
        sizes[name] = sizes.get(name, 0) + math.prod(tensor["shape"])
    names = {tensor["name"] for tensor in _tensors(plan)}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    return sizes.get(largest, 0), largest not in names


def _tensors(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [tensor for shard in plan["shards"] for tensor in shard["tensors"]]


def _bytes_in_peft(plan: Mapping[str, Any], tensors: Iterable[Mapping[str, Any]]) -> int:
    """Return the bytes of the module that takes the most of them in peft's layer; a bias comes with its weight."""
    edits = [edit for tensor in tensors for edit in tensor["edits"] if edit["kind"] == "module"]
    sizes = {tensor["name"]: math.prod(tensor["shape"]) for tensor in _tensors(plan)} if edits else {}
    most = 0
    for edit in edits:
        adapter = plan["adapters"][edit["adapter"]]
        kind = adapter["config"].get("peft_type")
        width = _PEFT_BYTES_PER_ELEMENT_OF.get(kind, _PEFT_BYTES_PER_ELEMENT)
        needed = width * max(sizes.get(name, 0) for name in edit["parameters"].values())
        if kind in _SQUARE:
            inputs = (adapter["shapes"].get(edit["module"]) or [0])[-1]
            needed += _SQUARE_BYTES_PER_ELEMENT * inputs**2
        most = max(most, needed)
    return most


def _adapter_bytes(plan: Mapping[str, Any], tensors: Iterable[Mapping[str, Any]]) -> int:
    """Return the bytes of the adapters that a shard reads: they are mapped, and stay mapped until the job ends."""
    used = {edit["adapter"] for tensor in tensors for edit in tensor["edits"]}
    files = [Path(plan["adapters"][number]["path"]) for number in used]
    return sum(file.stat().st_size for file in files if file.is_file())


def _mb(count: float) -> int:
    return max(1, math.ceil(count / 1e6))
