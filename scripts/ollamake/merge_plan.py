"""Decides from headers alone which edit reaches which tensor, and proves that every adapter tensor is used once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ollamake.adapter import Adapter
from ollamake.checkpoint import FLOATS, Checkpoint
from ollamake.errors import OllamakeError
from ollamake.safetensors_header import TensorEntry

STORED_AS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_PREFIX = re.compile(r"^base_model\.model\.")
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<half>[AB])(\.default)?\.weight$")
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|lm_head)\.weight$")
_SHOWN = 6
"""Tensors that a message lists."""


def plan_merge(base: Checkpoint, adapter: Adapter | None, dtype: str) -> dict[str, Any]:
    """Return the merge plan as it is written to merge_plan.json.

    ``dtype`` is the configuration's merge.dtype. Under ``auto`` a tensor that no edit reaches keeps its dtype, and an
    edited one of a 16-bit base is stored as float16, whose 11 significant bits keep updates that bfloat16's 8 round
    away. Raises OllamakeError listing the tensors if any of the adapter's is left over, used twice or of another shape.
    """
    entries = {tensor.name: tensor for shard in base.shards for tensor in shard.tensors}
    edits = _edits(base, adapter, entries) if adapter is not None else {}
    count = len(base.shards)
    shards = [
        {
            "file": f"model-{number:05d}-of-{count:05d}.safetensors",
            "base": str(shard.path),
            "tensors": [_planned(tensor, edits.get(tensor.name), dtype) for tensor in shard.tensors],
        }
        for number, shard in enumerate(base.shards, start=1)
    ]
    source = {"path": str(adapter.header.path), "tensors": len(adapter.header.tensors)} if adapter is not None else None
    return {"dtype": dtype, "adapter": source, "shards": shards}


def _planned(tensor: TensorEntry, edit: dict[str, Any] | None, dtype: str) -> dict[str, Any]:
    stored = tensor.dtype
    if tensor.dtype in FLOATS:
        if dtype != "auto":
            stored = STORED_AS[dtype]
        elif edit is not None and tensor.dtype in ("F16", "BF16"):
            stored = "F16"
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "stored": stored,
        "edit": edit,
    }


def _edits(base: Checkpoint, adapter: Adapter, entries: Mapping[str, TensorEntry]) -> dict[str, dict[str, Any]]:
    """Return base tensor -> edit, each adapter tensor used exactly once."""
    halves: dict[str, dict[str, TensorEntry]] = {}
    replaced: dict[str, TensorEntry] = {}
    unknown: list[str] = []
    saved = tuple(adapter.config.get("modules_to_save") or ())
    for tensor in adapter.header.tensors:
        name = _PREFIX.sub("", tensor.name)
        if lora := _LORA.match(name):
            _once(halves.setdefault(lora["module"], {}), lora["half"], tensor)
        elif "lora_" not in name and saved:
            _once(replaced, re.sub(r"\.modules_to_save(\.default)?(?=\.)", "", name), tensor)
        else:
            unknown.append(tensor.name)
    if unknown:
        raise OllamakeError(
            f"{adapter.header.path}: {len(unknown)} tensors are not of a kind that can be merged yet: {_some(unknown)}."
            " Merge this adapter with peft's merge_and_unload() and give the result as `base`."
        )
    edits: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for module, pair in halves.items():
        target = _resolve(f"{module}.weight", entries)
        problem = (
            _lora_problem(module, pair, entries.get(target)) if target else f"{module}: the base has no such tensor"
        )
        if problem or target is None:
            problems.append(str(problem))
            continue
        rank = pair["A"].shape[0]
        scale = adapter.scale_of(target.removesuffix(".weight"), rank)
        _add(edits, target, {"kind": "lora", "a": pair["A"].name, "b": pair["B"].name, "rank": rank, "scale": scale})
    for name, tensor in replaced.items():
        target = _resolve(name, entries)
        if target is None:
            problems.append(_missing_replacement(base, name))
        elif entries[target].shape != tensor.shape:
            problems.append(
                f"{name}: the adapter saved {list(tensor.shape)}, the base has {list(entries[target].shape)}"
            )
        else:
            _add(edits, target, {"kind": "replace", "source": tensor.name})
    if problems:
        raise OllamakeError(
            f"the adapter {adapter.folder} does not fit the base {base.folder}:\n    "
            + "\n    ".join(problems[:_SHOWN])
            + (f"\n    ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
            + f"\n  It was trained on {adapter.config.get('base_model_name_or_path') or 'a base that it does not name'};"
            " give that model as `base`."
        )
    if not edits:
        raise OllamakeError(
            f"{adapter.header.path} has no tensors: there is nothing to merge. Was the training finished?"
        )
    _refuse_tied(base, edits)
    return edits


def _once(table: dict[str, TensorEntry], key: str, tensor: TensorEntry) -> None:
    if key in table:
        raise OllamakeError(f"two tensors of the adapter are for the same place: {table[key].name} and {tensor.name}")
    table[key] = tensor


def _add(edits: dict[str, dict[str, Any]], target: str, edit: dict[str, Any]) -> None:
    if target in edits:
        raise OllamakeError(f"two parts of the adapter reach the same tensor {target}: {edits[target]} and {edit}")
    edits[target] = edit


def _lora_problem(module: str, pair: Mapping[str, TensorEntry], target: TensorEntry | None) -> str | None:
    """Say what keeps B @ A from being added to ``target``, or None."""
    if pair.keys() != {"A", "B"}:
        return f"{module}: has lora_{next(iter(pair))} without its other half"
    a, b = pair["A"], pair["B"]
    if target is None:
        return f"{module}: the base has no such tensor"
    if any(len(tensor.shape) != 2 for tensor in (a, b, target)):
        return f"{module}: {list(target.shape)} with LoRA {list(a.shape)} and {list(b.shape)} is not a linear layer"
    if a.shape[0] != b.shape[1]:
        return f"{module}: lora_A {list(a.shape)} and lora_B {list(b.shape)} have different ranks"
    if (b.shape[0], a.shape[1]) != target.shape:
        return f"{module}: the update is {[b.shape[0], a.shape[1]]}, the base has {list(target.shape)}"
    if target.dtype not in FLOATS or a.dtype not in FLOATS or b.dtype not in FLOATS:
        return f"{module}: dtypes {target.dtype}, {a.dtype}, {b.dtype}; expected floating point"
    return None


def _resolve(name: str, entries: Mapping[str, TensorEntry]) -> str | None:
    """Return the base's name of a tensor, tolerating one `model.` or `language_model.` more or less if it is unambiguous."""
    if name in entries:
        return name
    candidates = {f"{prefix}{name}" for prefix in ("model.", "language_model.")}
    candidates |= {name.replace(prefix, "", 1) for prefix in ("model.", "language_model.")}
    found = sorted(candidate for candidate in candidates if candidate in entries)
    return found[0] if len(found) == 1 else None


def _missing_replacement(base: Checkpoint, name: str) -> str:
    if base.ties_head and _EMBEDDINGS.search(name):
        return f"{name}: trained whole, but the base ties it to the embedding and has no tensor of that name (not supported yet)"
    return f"{name}: the base has no such tensor"


def _refuse_tied(base: Checkpoint, edits: Mapping[str, Any]) -> None:
    """Refuse an edit of a tensor that serves as embedding and head at once: peft's model changes only one of the two."""
    tied = [name for name in edits if _EMBEDDINGS.search(name)] if base.ties_head else []
    if tied:
        raise OllamakeError(
            f"the adapter changes {', '.join(tied)}, which {base.folder} uses as embedding and as output head at once"
            " (tie_word_embeddings). Merging it would change both, which is not the model that was trained;"
            " untying the two is not supported yet."
        )


def _some(names: list[str]) -> str:
    more = f" ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
