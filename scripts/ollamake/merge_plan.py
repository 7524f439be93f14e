"""Decides from headers alone which edit reaches which tensor, and proves that every adapter tensor is used once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollamake.adapter import Adapter
from ollamake.adapter_edits import AdapterEdits, Edit, sources_of
from ollamake.checkpoint import FLOATS, Checkpoint
from ollamake.errors import OllamakeError
from ollamake.safetensors_header import TensorEntry
from ollamake.tensor_names import EMBEDDING, HEAD, TensorNames
from ollamake.tied_head import TiedHead, find_tied_head

STORED_AS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_SHOWN = 6
"""Tensors that a message lists."""


def plan_merge(base: Checkpoint, adapters: Sequence[Adapter], dtype: str) -> dict[str, Any]:
    """Return the merge plan as it is written to merge_plan.json.

    ``dtype`` is the configuration's merge.dtype. Under ``auto`` a tensor that no edit reaches keeps its dtype, and an
    edited one of a 16-bit base is stored as float16, whose 11 significant bits keep updates that bfloat16's 8 round
    away. Raises OllamakeError listing the tensors if any of an adapter's is left over, used twice or of another shape.
    """
    entries = {tensor.name: tensor for shard in base.shards for tensor in shard.tensors}
    files = {tensor.name: str(shard.path) for shard in base.shards for tensor in shard.tensors}
    names = TensorNames(entries, base.config)
    edits: dict[str, list[Edit]] = {}
    rows: dict[str, int] = {}
    unstored: dict[str, list[Edit]] = {}
    unused: list[set[str]] = []
    for number, adapter in enumerate(adapters):
        found = AdapterEdits(number, adapter, names, entries)
        if found.problems:
            raise _does_not_fit(adapter, base, found.problems)
        if not found.edits and not found.heads:
            raise OllamakeError(
                f"{adapter.header.path} has no tensors: there is nothing to merge. Was the training finished?"
            )
        for table, own in ((edits, found.edits), (unstored, found.heads)):
            for name, more in own.items():
                table.setdefault(name, []).extend(more)
        rows |= found.rows
        unused.append(found.unused)
    tied = find_tied_head(base.ties_head, names, entries, edits, unstored, base.config)
    _settle_head(tied, base, adapters, edits, unstored, rows, names, entries)
    _refuse_collisions(edits, adapters, rows)
    _refuse_uneven_vocabulary(base, entries, rows, tied)
    _require_all_used(edits, adapters, unused)
    count = len(base.shards)
    shards = []
    for number, shard in enumerate(base.shards, start=1):
        tensors = [
            planned
            for entry in shard.tensors
            if entry.name not in base.scales
            for planned in _planned(entry, edits, rows, dtype, base, tied, files)
        ]
        shards.append(
            {"file": f"model-{number:05d}-of-{count:05d}.safetensors", "base": str(shard.path), "tensors": tensors}
        )
    return {
        "dtype": dtype,
        "adapters": [
            {
                "path": str(adapter.header.path),
                "weight": adapter.weight,
                "tensors": len(adapter.header.tensors),
                "config": dict(adapter.config),
                "shapes": _module_shapes(number, edits, entries),
            }
            for number, adapter in enumerate(adapters)
        ],
        "config": _config_changes(tied, rows),
        "shards": shards,
    }


def _planned(
    entry: TensorEntry,
    edits: Mapping[str, list[Edit]],
    rows: Mapping[str, int],
    dtype: str,
    base: Checkpoint,
    tied: TiedHead | None,
    files: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return what is stored for one tensor of the base: itself, and behind a tied embedding its parted head."""
    outputs = [(entry.name, entry)]
    if tied is not None and tied.parted and not tied.head_is_stored and entry.name == tied.embedding:
        outputs.append((tied.head, entry))
    planned = []
    for name, source in outputs:
        own = edits.get(name, [])
        height = rows.get(name, source.shape[0] if source.shape else 1)
        shape = [height, *source.shape[1:]] if source.shape else []
        tensor: dict[str, Any] = {
            "name": name,
            "shape": shape,
            "dtype": source.dtype,
            "stored": _stored(source.dtype, bool(own), dtype),
            "source": source.name,
            "edits": own,
        }
        if source.name in base.scale_of:
            scale = base.scale_of[source.name]
            tensor["scale"] = {"name": scale, "file": files[scale], "block": list(base.block)}
        elsewhere = {
            stored: files[stored] for edit in own for stored in edit.get("parameters", {}).values() if stored != name
        }
        if elsewhere:
            tensor["files"] = elsewhere
        planned.append(tensor)
    return planned


def _stored(dtype: str, edited: bool, wanted: str) -> str:
    if dtype == "F8_E4M3":
        return STORED_AS.get(wanted, "F16")
    if dtype not in FLOATS:
        return dtype
    if wanted != "auto":
        return STORED_AS[wanted]
    return "F16" if edited and dtype in ("F16", "BF16") else dtype


def _settle_head(
    tied: TiedHead | None,
    base: Checkpoint,
    adapters: Sequence[Adapter],
    edits: dict[str, list[Edit]],
    unstored: Mapping[str, list[Edit]],
    rows: dict[str, int],
    names: TensorNames,
    entries: Mapping[str, TensorEntry],
) -> None:
    """Give the edits of a tied head their place, and refuse those of tensors that do not exist at all."""
    problems = []
    for name, heads in unstored.items():
        if tied is None or not names.is_head(name):
            problems.append(names.why_absent(name))
            continue
        embedding = entries[tied.embedding]
        for edit in heads:
            wanted = [rows.get(tied.embedding, embedding.shape[0]), *embedding.shape[1:]]
            shape = edit.get("shape") or edit.pop("made", wanted)
            if list(shape[1:]) != list(embedding.shape[1:]) or (shape != wanted and edit["kind"] != "replace"):
                problems.append(f"{name}: the update is {shape}, the base's tied embedding is {wanted}")
            elif shape[0] != embedding.shape[0] and edit["kind"] == "replace":
                rows[tied.head] = shape[0]
        edits.setdefault(tied.head, []).extend(heads)
    if problems:
        raise _does_not_fit(adapters[0], base, problems)
    if tied is not None:
        for edit in (edit for own in edits.values() for edit in own if edit["kind"] == "module"):
            # The head's weight is read from where it is stored.
            edit["parameters"] = {
                key: tied.embedding if stored == tied.head and not tied.head_is_stored else stored
                for key, stored in edit["parameters"].items()
            }
        tied.settle(list(adapters), edits, rows)
        if tied.parted and tied.embedding in rows and tied.head not in rows:
            if any(edit["kind"] == "replace" for edit in edits.get(tied.head, [])):
                return
            raise OllamakeError(
                f"{adapters[0].folder} brings an embedding of {rows[tied.embedding]} rows, but no head of that size, and"
                f" {base.folder} ties the two. Train with ensure_weight_tying, or save the head too."
            )


def _refuse_collisions(edits: Mapping[str, list[Edit]], adapters: Sequence[Adapter], rows: Mapping[str, int]) -> None:
    """Refuse two edits of one adapter for the same values; what several adapters do is added."""
    for name, all_edits in edits.items():
        for number in range(len(adapters)):
            kinds = [edit["kind"] for edit in all_edits if edit["adapter"] == number and "rows" not in edit]
            twice = [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]
            if twice:
                raise OllamakeError(
                    f"{adapters[number].header.path}: two tensors reach {name} in the same way ({twice[0]})"
                )
        if name in rows and len({edit["adapter"] for edit in all_edits}) > 1:
            raise OllamakeError(
                f"{name}: one adapter changes the number of its rows, and another edits it too; these cannot be added."
                " Merge them one after the other."
            )


def _refuse_uneven_vocabulary(
    base: Checkpoint, entries: Mapping[str, TensorEntry], rows: Mapping[str, int], tied: TiedHead | None
) -> None:
    """Refuse an embedding that grew without its head, or the head alone: no configuration describes such a model."""
    stored = {name: entry.shape[0] for name, entry in entries.items() if name in rows or _is_of_vocabulary(name)}
    if tied is not None and tied.parted:
        stored.setdefault(tied.head, entries[tied.embedding].shape[0])
    former = {stored[name] for name in rows if name in stored}
    after = {name: rows.get(name, count) for name, count in stored.items() if count in former}
    if len(set(after.values())) > 1:
        listed = ", ".join(f"{name} {count} rows" for name, count in sorted(after.items()))
        raise OllamakeError(
            f"{base.folder}: after the merge embedding and head would differ in size ({listed}). The adapter brings only one"
            " of the two resized; save it with save_embedding_layers=True, which saves both."
        )


def _is_of_vocabulary(name: str) -> bool:
    """Whether a tensor has a row for each token: embedding, head and the head's bias."""
    weight = f"{name.removesuffix('.bias')}.weight" if name.endswith(".bias") else name
    return HEAD.search(weight) is not None or EMBEDDING.search(name) is not None


def _require_all_used(edits: Mapping[str, list[Edit]], adapters: Sequence[Adapter], unused: Sequence[set[str]]) -> None:
    """The proof that nothing of an adapter is lost: each of its tensors is named by an edit."""
    for number, adapter in enumerate(adapters):
        used = {
            source
            for all_edits in edits.values()
            for edit in all_edits
            if edit["adapter"] == number
            for source in sources_of(edit)
        }
        left = sorted({tensor.name for tensor in adapter.header.tensors} - used - unused[number])
        if left:
            raise OllamakeError(f"{adapter.header.path}: {len(left)} tensors reach nothing in the base: {_some(left)}.")


def _module_shapes(
    number: int, edits: Mapping[str, list[Edit]], entries: Mapping[str, TensorEntry]
) -> dict[str, list[int]]:
    """Return module -> [outputs, inputs] of all that go through peft's layer; methods with one projection for all need it."""
    return {
        edit["module"]: list(entries[edit["parameters"]["weight"]].shape)[:: -1 if edit["layer"] == "conv1d" else 1]
        for all_edits in edits.values()
        for edit in all_edits
        if edit["adapter"] == number and edit["kind"] == "module" and edit["parameter"] == "weight"
    }


def _config_changes(tied: TiedHead | None, rows: Mapping[str, int]) -> dict[str, Any]:
    """Return what the merged config.json says otherwise than the base's."""
    changes: dict[str, Any] = {}
    if tied is not None and tied.parted:
        changes["tie_word_embeddings"] = False
    if rows:
        changes["vocab_size"] = max(rows.values())
    return changes


def _does_not_fit(adapter: Adapter, base: Checkpoint, problems: list[str]) -> OllamakeError:
    return OllamakeError(
        f"the adapter {adapter.folder} does not fit the base {base.folder}:\n    "
        + "\n    ".join(problems[:_SHOWN])
        + (f"\n    ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
        + f"\n  It was trained on {adapter.config.get('base_model_name_or_path') or 'a base that it does not name'};"
        " give that model as `base`."
    )


def _some(names: list[str]) -> str:
    more = f" ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
