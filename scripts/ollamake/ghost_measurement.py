"""What llama.cpp's programs say of a model's sizes and memory, weights aside: ghost.json."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.bitsandbytes_sizes import transformers_bytes
from ollamake.errors import OllamakeError
from ollamake.gguf_quantization import type_argument
from ollamake.ghost import (
    REPAIR,
    DryRun,
    Ghost,
    make_ghost,
    memory_by_fit_params,
    types_by_dry_run,
    write_ghost_imatrix,
)
from ollamake.ghost_checkpoint import Tensor, ghost_of_merge, ghost_of_shape, tensors_of_merge, tensors_of_shape
from ollamake.importance_sizes import IMATRIX_FILE, imatrix_metadata_bytes
from ollamake.llama_cpp_source import usable_cores
from ollamake.memory_formula import KV_BITS, memory_by_formula
from ollamake.quantization_types import QUANTIZATION_TYPES
from ollamake.shape import Shape, estimated_metadata_bytes

log = logging.getLogger("ollamake")

CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
SLOTS = (1, 2, 4)
_LONGEST = 262_144
"""Tokens: a trained length beyond that is measured only if it is asked for."""
_ALIGNMENT = 32
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_FOLDER = "merged"
"""As the workflow calls a merged checkpoint's folder: the converter looks for words in that name, too."""


@dataclass(frozen=True)
class Programs:
    """llama.cpp's converter and programs on this machine; without ``fit_params`` memory comes from the formula."""

    converter: Path
    quantize: Path
    fit_params: Path | None = None


@dataclass(frozen=True)
class Wanted:
    """What to measure: types of QUANTIZATION_TYPES, and contexts and slots beyond those that are always measured."""

    types: Sequence[str] = tuple(QUANTIZATION_TYPES)
    contexts: Sequence[int] = ()
    parallel: Sequence[int] = ()
    memory: bool = True


def measure_merge(
    plan: Mapping[str, Any],
    base: Path,
    adapters: Sequence[Path],
    name: str,
    source: str,
    programs: Programs,
    wanted: Wanted | None = None,
) -> dict[str, Any]:
    """Return ghost.json of a merge: ``plan`` is a parsed merge_plan.json, ``base`` and ``adapters`` its folders.

    Sizes are exact to the byte. Raises OllamakeError if the converter does not know the model, or a program cannot be run,
    crashes where it should not, or refuses even the type that the model has.
    """

    def fill(folder: Path) -> str:
        return ghost_of_merge(plan, base, adapters, folder)

    described = {"name": name, "source": source, "exact": True, "adapter_bytes": adapter_bytes(plan)}
    return _measure(described, fill, tensors_of_merge(plan), None, programs, wanted or Wanted())


def measure_shape(shape: Shape, programs: Programs, wanted: Wanted | None = None) -> dict[str, Any]:
    """Return ghost.json of a fine-tune of a model that only the shape is known of; see ``measure_merge``.

    The tensors' bytes are exact; the tokenizer is as large as the shape says, or about as large as ``exact: false`` says.
    """
    known = shape.metadata_bytes
    metadata_bytes = estimated_metadata_bytes(shape.config) if known is None else known
    described = {"name": shape.name, "source": shape.source, "exact": known is not None, "adapter_bytes": 0}

    def fill(folder: Path) -> str:
        return ghost_of_shape(shape, folder)

    return _measure(described, fill, tensors_of_shape(shape), metadata_bytes, programs, wanted or Wanted())


def adapter_bytes(plan: Mapping[str, Any]) -> int:
    """Return what the low-rank updates of a merge plan take as an adapter beside the base: both halves in float32."""
    updates = [
        (edit["rank"], tensor["shape"])
        for shard in plan["shards"]
        for tensor in shard["tensors"]
        for edit in tensor["edits"]
        if edit["kind"] == "low_rank" and len(tensor["shape"]) == 2
    ]
    return sum(4 * rank * sum(shape) for rank, shape in updates)


def _measure(
    described: dict[str, Any],
    fill: Callable[[Path], str],
    tensors: Iterable[Tensor],
    metadata_bytes: int | None,
    programs: Programs,
    wanted: Wanted,
) -> dict[str, Any]:
    """``metadata_bytes`` replaces what the ghost has, which is without a tokenizer then."""
    name = described["name"]
    with tempfile.TemporaryDirectory(prefix="ghost-") as temporary:
        folder = Path(temporary)
        (folder / _FOLDER).mkdir()
        began = time.monotonic()
        outtype = fill(folder / _FOLDER)
        has_tokenizer = metadata_bytes is None
        ghost = make_ghost(programs.converter, folder / _FOLDER, outtype, name, folder, tokenizer=has_tokenizer)
        log.info(
            "%s: llama.cpp's converter, %d tensors without weights (%.1f s)", name, len(ghost.tensors), _since(began)
        )
        began = time.monotonic()
        file = _File(ghost, ghost.metadata_bytes if metadata_bytes is None else metadata_bytes)
        sizes = _sizes(file, outtype.upper(), programs.quantize, wanted.types, folder)
        log.info("%s: llama-quantize, %d types (%.1f s)", name, len(wanted.types), _since(began))
        result = described | file.described(outtype.upper()) | sizes
        if wanted.memory:
            began = time.monotonic()
            memory = _memory(name, ghost, programs.fit_params, wanted)
            log.info("%s: memory of %d contexts (%.1f s)", name, len(memory["rows"]), _since(began))
            result |= {"memory": memory}
    return result | {"transformers": transformers_bytes(tensors)}


class _File:
    """Bytes of a GGUF with the tensors of a ghost, for types of them."""

    def __init__(self, ghost: Ghost, metadata_bytes: int) -> None:
        self.ghost = ghost
        self.metadata_bytes = metadata_bytes
        self.parameters = sum(math.prod(shape) for _, shape in ghost.tensors.values())

    def described(self, outtype: str) -> dict[str, Any]:
        ghost = self.ghost
        start = self._start(squeezed=False)
        return {
            "architecture": ghost.architecture,
            "parameters": self.parameters,
            "trained_context": ghost.metadata.get(f"{ghost.architecture}.context_length"),
            "block_count": ghost.block_count,
            "outtype": outtype,
            "unquantized_bytes": start
            + sum(self._tensor_bytes(name, kind) for name, (kind, _) in ghost.tensors.items()),
            "metadata_bytes": start,
            "table_end": self._table_end(squeezed=True),
            "largest_tensor": max(math.prod(shape) for _, shape in ghost.tensors.values()),
        }

    def quantized(self, types: Mapping[str, str], imatrix: bool) -> dict[str, Any]:
        """Return the sizes in ghost.json of a file with these types: tensor -> type."""
        sizes = {name: self._tensor_bytes(name, kind) for name, kind in types.items()}
        blocks = [0] * self.ghost.block_count
        other = 0
        for name, size in sizes.items():
            number = _block_of(name)
            if number is not None and number < len(blocks):
                blocks[number] += size
            elif name != _EMBEDDING:
                other += size
        total = self._start(squeezed=True, more=imatrix_metadata_bytes(IMATRIX_FILE) if imatrix else 0) + sum(
            sizes.values()
        )
        return {
            "imatrix": imatrix,
            "bytes": total,
            "bits_per_weight": round(total * 8 / self.parameters, 3),
            "embedding_bytes": sizes.get(_EMBEDDING, 0),
            "tied": _HEAD not in sizes,
            "block_bytes": blocks,
            "other_bytes": other,
        }

    def _tensor_bytes(self, name: str, kind: str) -> int:
        elements, size = self.ghost.block_sizes[kind]
        return _padded(math.prod(self.ghost.tensors[name][1]) // elements * size)

    def _start(self, *, squeezed: bool, more: int = 0) -> int:
        """Return the offset of the first tensor, where ``more`` bytes of metadata are added."""
        return _padded(self._table_end(squeezed=squeezed) + more)

    def _table_end(self, *, squeezed: bool) -> int:
        """Return where the table of tensors ends; llama-quantize leaves out dimensions of 1 at the end, the converter does not.

        An entry of the table: name with its length (8 bytes), number of dimensions (4), these (8 each), type (4), offset (8).
        """
        table = 0
        for name, (_, shape) in self.ghost.tensors.items():
            dimensions = len(shape)
            while squeezed and dimensions > 1 and shape[len(shape) - dimensions] == 1:
                dimensions -= 1
            table += 8 + len(name.encode("utf-8")) + 4 + 8 * dimensions + 4 + 8
        return self.metadata_bytes + table


def _sizes(file: _File, outtype: str, quantize: Path, types: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return ``types`` and ``with_imatrix`` of ghost.json."""
    # Where an importance matrix lies has no influence on the types; ``_File`` counts its name as IMATRIX_FILE.
    imatrix = folder / "imatrix.gguf"
    shapes = [(name, shape) for name, (_, shape) in file.ghost.tensors.items()]
    write_ghost_imatrix(imatrix, shapes, values=False)

    def both(name: str) -> tuple[DryRun | str, DryRun | str]:
        argument = type_argument(name, outtype)
        found = types_by_dry_run(quantize, file.ghost.sizes, argument)
        return found, types_by_dry_run(quantize, file.ghost.sizes, argument, imatrix)

    plain: dict[str, Any] = {}
    better: dict[str, Any] = {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        for name, (without, with_one) in zip(types, pool.map(both, types), strict=True):
            if isinstance(without, str) or isinstance(with_one, str):
                plain[name] = {"refused": without if isinstance(without, str) else with_one}
                continue
            for found in (without, with_one):
                _require_all(file.ghost, found, name, quantize)
            # llama-quantize refuses some types by their name before it looks at a tensor (llama_cpp.md, 3.6).
            if QUANTIZATION_TYPES[name].needs_imatrix or without.wants_imatrix:
                plain[name] = file.quantized(with_one.types, True)
                continue
            plain[name] = file.quantized(without.types, False)
            if without.types != with_one.types:
                better[name] = file.quantized(with_one.types, True)
    _require_sizes(plain, outtype, quantize)
    return {"types": plain, "with_imatrix": better}


def _require_sizes(types: Mapping[str, Mapping[str, Any]], outtype: str, quantize: Path) -> None:
    """Raise OllamakeError if what was refused can only be the program's fault: a copy of the model, or all there is."""
    refused = {name: found["refused"] for name, found in types.items() if "refused" in found}
    if outtype in refused:
        raise OllamakeError(
            f"{quantize} --dry-run: expected the size of the model as it is, in {outtype}; it refuses: {refused[outtype]}."
            f" {REPAIR}"
        )
    if types and len(refused) == len(types):
        name, words = next(iter(refused.items()))
        raise OllamakeError(
            f"{quantize} --dry-run: expected the sizes of {len(types)} types; it refuses each of them, {name} with: {words}."
            f" {REPAIR}"
        )


def _require_all(ghost: Ghost, found: DryRun, name: str, quantize: Path) -> None:
    missing = ghost.tensors.keys() ^ found.types.keys()
    unknown = set(found.types.values()) - ghost.block_sizes.keys()
    if missing or unknown:
        raise OllamakeError(
            f"{quantize} --dry-run for {name}: expected a line for each of {len(ghost.tensors)} tensors with a type that"
            f" gguf-py knows; {len(missing)} tensors differ ({', '.join(sorted(missing)[:3])}), unknown types: {sorted(unknown)}."
            " Use the llama.cpp that ollamake pins (tools.llama_cpp: null)."
        )


def _memory(name: str, ghost: Ghost, program: Path | None, wanted: Wanted) -> dict[str, Any]:
    """Return ``memory`` of ghost.json."""
    trained = ghost.metadata.get(f"{ghost.architecture}.context_length")
    slots = sorted({*SLOTS, *wanted.parallel})
    contexts = sorted({*(c for c in CONTEXTS if trained is None or c <= trained), *wanted.contexts})
    if trained is not None:
        contexts = sorted({*contexts, min(trained, _LONGEST)})
    reason = "llama-fit-params is not here"
    if program is not None:
        fit_params = program
        found = _tabulated(
            lambda kv, count, tokens: memory_by_fit_params(fit_params, ghost.memory, kv, count, tokens), slots, contexts
        )
        if found["rows"]:
            return {"source": "llama-fit-params"} | found
        reason = f"llama-fit-params failed: {found['impossible']['f16']}"
        log.warning("%s: its memory is computed, as %s", name, reason)
    try:
        return {"source": "formula", "reason": reason} | _tabulated(
            lambda kv, count, tokens: (
                memory_by_formula(ghost.metadata, kv, count, tokens) or f"{kv} needs heads of a multiple of 32 elements"
            ),
            slots,
            contexts,
        )
    except OllamakeError as error:
        log.warning("%s: %s", name, error)
        return {"source": None, "reason": str(error), "rows": [], "impossible": {}, "impossible_slots": {}}


def _tabulated(
    ask: Callable[[str, int, int], tuple[int, int] | str], slots: Sequence[int], contexts: Sequence[int]
) -> dict[str, Any]:
    """Return ``rows``, ``impossible`` (cache -> words) and ``impossible_slots`` (cache -> slots, as text -> words).

    A type of cache is impossible if no number of slots can have it, and f16 alone decides of the rest. A longer context that
    fails where the shortest did not is left out.
    """
    rows: list[dict[str, Any]] = []
    impossible: dict[str, str] = {}
    impossible_slots: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        for kv in KV_BITS:
            # What a cache cannot have shows at the shortest context; asking for each would be as many crashes.
            first = {count: ask(kv, count, contexts[0]) for count in slots}
            refused = {str(count): words for count, words in first.items() if isinstance(words, str)}
            if len(refused) == len(slots):
                impossible[kv] = next(iter(refused.values()))
                if kv == "f16":
                    break
                continue
            if refused:
                impossible_slots[kv] = refused
            longer = [(count, tokens) for count in slots if str(count) not in refused for tokens in contexts[1:]]
            answers = {(count, contexts[0]): answer for count, answer in first.items() if str(count) not in refused}
            answers |= zip(longer, pool.map(lambda case, kv=kv: ask(kv, *case), longer), strict=True)
            for (count, tokens), answer in sorted(answers.items()):
                if isinstance(answer, str):
                    log.warning(
                        "memory of %d tokens in each of %d slots, KV cache of %s: unknown, %s",
                        tokens,
                        count,
                        kv,
                        answer,
                    )
                    continue
                rows.append(
                    {"kv": kv, "parallel": count, "context": tokens, "kv_mib": answer[0], "compute_mib": answer[1]}
                )
    return {"rows": rows, "impossible": impossible, "impossible_slots": impossible_slots}


def _block_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and parts[1].isdecimal() else None


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _since(began: float) -> float:
    return time.monotonic() - began
