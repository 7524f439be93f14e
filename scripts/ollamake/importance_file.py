"""The file of an importance matrix: what stands in it, whether it is whole, and one that is not yet.

Format: llama.cpp's tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp. For each weight a tensor ``.in_sum2``, the sum of
the squares of what goes into each column, [columns, experts], and a tensor ``.counts``, of how many tokens, [1, experts].
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter

from ollamake.atomic_write import temporary_beside
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.gguf_header import read_gguf_header

log = logging.getLogger("ollamake")

_MADE_OF = "ollamake.made_of"
"""Key of an unfinished matrix: JSON of all that decides about its sums."""
_SUMS, _COUNTS = ".in_sum2", ".counts"
_NAMED = 3
"""How many tensors or experts a warning names."""

_NOT_QUANTIZED = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight"),
    *("time_mix_w0.", "time_mix_w1.", "time_mix_w2.", "time_mix_v0.", "time_mix_v1.", "time_mix_v2.", "time_mix_a0."),
    *("time_mix_a1.", "time_mix_a2.", "time_mix_g1.", "time_mix_g2.", "time_mix_decay_w1.", "time_mix_decay_w2."),
    *("time_mix_lerp_fused.", "attn_rel_b.weight"),
)
"""Parts of names of matrices in blocks that llama-quantize leaves as they are (tensor_allows_quantization, llama-quant.cpp)."""


@dataclass(frozen=True)
class Importance:
    """``sums`` and ``counts``: weight -> float32, one row an expert. ``chunks``: of the text, as the file says."""

    chunks: int
    chunk_tokens: int
    sums: dict[str, np.ndarray[Any, Any]]
    counts: dict[str, np.ndarray[Any, Any]]


def read_importance(path: Path) -> Importance:
    """Read an importance matrix. Raises OllamakeError if it is none, not whole, or has a value that is not finite."""
    try:
        # The gguf package reads on without end where a count is wrong; this reader does not.
        read_gguf_header(path, ())
        reader = GGUFReader(path)
        if (kind := reader.fields["general.type"].contents()) != "imatrix":
            raise ValueError(f"general.type is {kind!r}")
        tensors = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
        chunks, tokens = (int(reader.fields[f"imatrix.chunk_{key}"].contents()) for key in ("count", "size"))
        sums = {name.removesuffix(_SUMS): data for name, data in tensors.items() if name.endswith(_SUMS)}
        counts = {name: tensors[name + _COUNTS].reshape(-1) for name in sums}
    except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
        raise OllamakeError(
            f"{path}: expected an importance matrix as llama-imatrix writes it, found none, or not a whole one ({error})."
            " Remove it to have it made again; the disk may have been full."
        ) from error
    if not sums or len(tensors) != 2 * len(sums):
        raise OllamakeError(f"{path}: expected sums and a count of each tensor, found {len(tensors)} tensors in all.")
    for name in sums:
        if not (np.isfinite(sums[name]).all() and np.isfinite(counts[name]).all()):
            raise OllamakeError(
                f"{path}: {name} has NaN or infinity, so the unquantized model computes them on this text."
                " Look at the adapter, or set `merge: {dtype: bfloat16}` (or float32) if float16 is too narrow for the model."
            )
    return Importance(chunks, tokens, sums, counts)


def importance_record(path: Path, gguf: Path, source: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a matrix that was just written for ``gguf``.

    ``source`` and ``text`` are the records of the unquantized GGUF and of the text. Raises OllamakeError if the file is not
    whole, or has nothing of this model.
    """
    found = read_importance(path)
    # GGUFReader has the columns first, and one dimension at least.
    shapes = {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in GGUFReader(gguf).tensors}
    unknown = [name for name in found.sums if name not in shapes]
    if unknown:
        raise OllamakeError(
            f"{path} has tensors that {gguf} does not have: {_some(unknown)}. Remove it to have it made again."
        )
    warnings = [*_without_entry(shapes, found), *_unused_experts(found)]
    if found.chunks != text["chunks"]:
        warnings.append(
            f"llama.cpp reads {found.chunks} chunks of {found.chunk_tokens} tokens in the text, its record says"
            f" {text['chunks']}: llama.cpp's tokenizer gives other tokens than that of the checkpoint"
        )
    return {
        "sha256": sha256_of(path),
        "size": path.stat().st_size,
        "chunks": found.chunks,
        "context": found.chunk_tokens,
        "entries": len(found.sums),
        "source_sha256": source["sha256"],
        "text_sha256": text["sha256"],
        "warnings": warnings,
    }


def takes_importance(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama-quantize would use figures of a tensor that llama-imatrix collects: a matrix in a block."""
    return (
        len(shape) > 1
        and name.startswith("blk.")
        and name.endswith(".weight")
        and not any(part in name for part in _NOT_QUANTIZED)
    )


def write_partial(matrix: Path, partial: Path, made_of: Mapping[str, Any], chunks: int) -> None:
    """Keep a matrix of the first ``chunks`` chunks, with what it is made of.

    It does not name its text, so that what goes on from it names the text once.
    """
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)  # It reports every file that it opens.
    found = read_importance(matrix)
    with temporary_beside(partial) as temporary:
        writer = GGUFWriter(temporary, "")
        writer.add_type("imatrix")
        writer.add_uint32("imatrix.chunk_count", chunks)
        writer.add_uint32("imatrix.chunk_size", found.chunk_tokens)
        writer.add_string(_MADE_OF, json.dumps(made_of, sort_keys=True))
        for name, sums in found.sums.items():
            writer.add_tensor(name + _SUMS, sums)
            writer.add_tensor(name + _COUNTS, found.counts[name].reshape(-1, 1))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def chunks_of_partial(partial: Path, made_of: Mapping[str, Any], most: int) -> int:
    """Return of how many chunks an unfinished matrix is, 0 if there is none that fits; what does not fit is removed."""
    if not partial.exists():
        return 0
    reason = "it is made of something else"
    try:
        chunks = read_importance(partial).chunks
        found = json.loads(GGUFReader(partial).fields[_MADE_OF].contents())
        if found == made_of and 0 < chunks <= most:
            return chunks
        if found == made_of:
            reason = f"it is of {chunks} chunks, which leaves too few to go on with"
    except (ValueError, TypeError, KeyError, IndexError, OSError, OllamakeError) as error:
        reason = f"it cannot be read ({error})"
    log.info("not going on from what a job before has left: %s", reason)
    partial.unlink()
    return 0


def _without_entry(shapes: Mapping[str, tuple[int, ...]], found: Importance) -> Iterable[str]:
    missing = [name for name, shape in shapes.items() if takes_importance(name, shape) and name not in found.sums]
    if missing:
        yield (
            f"{len(missing)} matrices took no part in reading the text: {_some(missing)}; they are quantized as without an"
            " importance matrix, and types that need one (IQ1, IQ2, IQ3_XXS) may be refused"
        )


def _unused_experts(found: Importance) -> Iterable[str]:
    unused = {name: np.flatnonzero(counts == 0) for name, counts in found.counts.items()}
    unused = {name: experts for name, experts in unused.items() if experts.size}
    if unused:
        all_experts = sum(counts.size for counts in found.counts.values() if counts.size > 1)
        number = sum(experts.size for experts in unused.values())
        named = [f"{name}: {_some([str(expert) for expert in experts])}" for name, experts in unused.items()]
        yield (
            f"{number:,} of {all_experts:,} experts' matrices saw no token of the text ({_some(named, '; ')}); they are quantized"
            " as without an importance matrix. More text, or more varied text, reaches more of them"
        )


def _some(names: list[str], between: str = ", ") -> str:
    more = f"{between}and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return between.join(names[:_NAMED]) + more
