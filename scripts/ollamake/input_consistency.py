"""Whether base, adapter, tokenizer and training belong together: what shapes alone do not tell, before anything is merged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ollamake.adapter import Adapter
from ollamake.adapter_base import config_of_named, named_base
from ollamake.awaited_shards import HEADERS
from ollamake.checkpoint import Checkpoint
from ollamake.errors import OllamakeError
from ollamake.json_object import read_json, read_json_object
from ollamake.model_files import TOKENIZER_FILES, embedding_rows, tokenizer_owner, vocabulary
from ollamake.tensor_names import EMBEDDING, ROUTER

log = logging.getLogger("ollamake")

_SIZES = (
    ("hidden_size", "n_embd", "d_model"),
    ("num_hidden_layers", "n_layer", "num_layers"),
    ("num_attention_heads", "n_head"),
    ("num_key_value_heads",),
    ("intermediate_size", "n_inner", "ffn_dim"),
    ("num_local_experts", "num_experts", "n_routed_experts"),
    ("vocab_size",),
)
"""Keys of config.json that tell models of one architecture apart, under the names that architectures have for them."""

_TOKENS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a tokenizer has one: of Hugging Face's tokenizers, of SentencePiece, and the older BPE's."""

_SHOWN = 4
"""Tokens that a message lists."""


def require_same_base(base: Checkpoint, adapter: Adapter, key: str, adapter_key: str, shapes: Path | None) -> list[str]:
    """Refuse a base that is another model than the one which the adapter names; another folder of the same one is fine.

    Architecture and sizes are compared where the named model is known here (adapter_base.config_of_named). Where it is not, and
    the base is not called so either, that is returned as a warning. ``key`` and ``adapter_key`` are the configuration's.
    """
    name, _ = named_base(adapter.config)
    if name is None:
        return []
    said = f"{adapter.folder / 'adapter_config.json'} ({adapter_key}) names {name!r}"
    known = config_of_named(adapter.folder, adapter.config, shapes)
    if known is None:
        if _last(name) in _names_of(base):
            return []
        return [
            f"{said} as its base, which is not here to be compared with {key}, {base.folder}; the shapes of all tensors of the"
            " adapter fit."
        ]
    place, config = known
    found = list(_differences(base.config, config))
    if found:
        listed = "\n    ".join(
            f"{what}: {ours} in {key}, {theirs} in what the adapter names" for what, ours, theirs in found
        )
        raise OllamakeError(
            f"{key}: {base.folder} is another model than the one that the adapter was trained on. {said}, known from"
            f" {place}:\n    {listed}\n  Give that model as `base`; or correct the name in adapter_config.json if it is wrong."
        )
    return []


def require_tokenizer(key: str, base: Path, adapters: Sequence[Path], plan: Mapping[str, Any]) -> None:
    """Raise OllamakeError if the merged model would have no tokenizer, or one of which a file cannot be read.

    ``key``: of the configuration, of the base.
    """
    owner = tokenizer_owner(base, adapters, plan)
    if not any((owner / name).is_file() for name in _TOKENS):
        raise OllamakeError(
            f"{key}: {str(base)!r} has no tokenizer: none of {', '.join(_TOKENS)}. Without it llama.cpp's converter makes no"
            " GGUF. Fetch the tokenizer's files of the base, too, or save them there with tokenizer.save_pretrained()."
        )
    for name in TOKENIZER_FILES:
        if name == "tokenizer.json" and (owner / name).is_file():
            vocabulary(owner)
        elif name.endswith(".json") and (owner / name).is_file():
            read_json_object(owner / name)


def check_tokenizers(base: Path, adapters: Sequence[Path], plan: Mapping[str, Any]) -> list[str]:
    """Refuse a tokenizer of an adapter that does not belong to the merged embedding; return what may be meant so.

    Tokens that the base has not need rows, which a resized embedding brings, or the base's own padding. Tokens that both have
    must have one id, unless the adapter brings the whole embedding.
    """
    tokenizer_owner(base, adapters, plan)
    warnings: list[str] = []
    for number, adapter in enumerate(adapters):
        if not all((folder / "tokenizer.json").is_file() for folder in (base, adapter)):
            continue
        theirs, ours = vocabulary(adapter), vocabulary(base)
        kinds = _embedding_edits(plan, number)
        moved = sorted(
            (token for token in theirs.keys() & ours.keys() if theirs[token] != ours[token]), key=theirs.__getitem__
        )
        if moved and "replace" not in kinds:
            shown = ", ".join(f"{token!r} {theirs[token]} instead of {ours[token]}" for token in moved[:_SHOWN])
            raise OllamakeError(
                f"{adapter / 'tokenizer.json'} gives {len(moved)} tokens another id than {base / 'tokenizer.json'} ({shown}), and"
                " the adapter brings no embedding with rows in that order. If it was trained with the base's tokenizer, remove"
                " the tokenizer's files from the adapter's folder; else give the base that it was trained on."
            )
        added = sorted(theirs.keys() - ours.keys(), key=theirs.__getitem__)
        if added and not kinds:
            warnings.append(
                f"{adapter / 'tokenizer.json'} has {len(added)} tokens that {base / 'tokenizer.json'} has not"
                f" ({', '.join(map(repr, added[:_SHOWN]))}); the adapter brings no embedding for them, so they have the rows with"
                f" which the base is padded to {embedding_rows(plan)}, untrained."
            )
    return warnings


def unfinished_training(adapter: Path) -> list[str]:
    """Return a warning if an adapter's folder is a checkpoint of a training that was to go on."""
    file = adapter / "trainer_state.json"
    try:
        state = read_json(file)
        step, last = int(state["global_step"]), int(state["max_steps"])
    except (OllamakeError, ValueError, KeyError, TypeError, OverflowError):
        return []  # The adapter is whole without that file.
    if step >= last:
        return []
    return [f"{file}: the adapter is from step {step} of {last}; training was to go on."]


def trained_routers(plan: Mapping[str, Any]) -> list[str]:
    """Return the routers of a mixture of experts that get an update: they are merged as every other weight is."""
    tensors = (tensor for shard in plan["shards"] for tensor in shard["tensors"])
    return sorted(tensor["name"] for tensor in tensors if tensor["edits"] and ROUTER.search(tensor["name"]))


def _embedding_edits(plan: Mapping[str, Any], number: int) -> set[str]:
    """Return the kinds of edits that an adapter makes to the input embedding."""
    return {
        edit["kind"]
        for shard in plan["shards"]
        for tensor in shard["tensors"]
        if EMBEDDING.search(tensor["name"])
        for edit in tensor["edits"]
        if edit["adapter"] == number
    }


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (what, ours, theirs) of what two config.json say differently; what one leaves out is not compared."""
    kinds = [_kinds(config) for config in (ours, theirs)]
    if all(kinds) and not set(kinds[0]) & set(kinds[1]):
        yield "model_type", *(kind[0] for kind in kinds)
        return  # Sizes of another architecture say nothing more.
    for keys in _SIZES:
        first, second = (_value(config, keys) for config in (ours, theirs))
        if first is not None and second is not None and first != second:
            yield keys[0], first, second


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Return the architecture of a model and that of its text part, which may be stored alone."""
    kinds = [one.get("model_type") for one in (config, _text_of(config))]
    return [kind for kind in kinds if isinstance(kind, str) and kind]


def _value(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    values = (one.get(key) for one in (_text_of(config), config) for key in keys)
    return next((value for value in values if isinstance(value, int)), None)


def _text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else {}


def _names_of(base: Checkpoint) -> set[str]:
    """Return what a base may be called: its folder, in the Hugging Face cache that of the model, and what it was saved from."""
    folder = base.folder.absolute()
    names = [folder.name, str(base.config.get("_name_or_path") or "")]
    if folder.parent.name == "snapshots":
        names.append(folder.parent.parent.name.replace("--", "/"))
    if (folder / HEADERS).is_file():  # fetched from the hub: .../ORG/NAME/TREE
        names.append(folder.parent.name)
    return {_last(name) for name in names}


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
