"""Which files of a user's folder a model is made from, told from names alone when the workflow is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ollamake.awaited_shards import is_awaited
from ollamake.errors import OllamakeError
from ollamake.json_object import read_json
from ollamake.peft_methods import is_plain_lora

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
BASE_SINGLES = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files, the preferred first."""

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
)
"""What may lie beside the weights and goes into a merged checkpoint; of an adapter folder only the tokenizer's part."""

SMALL_FILES = ("adapter_config.json", *MODEL_FILES, *BASE_INDEXES)
"""All that is read of a folder beside its weights."""


Config = str | Mapping[str, Any]
"""A config.json or adapter_config.json: its path, or what is in it."""

_DIGEST = re.compile(r"[0-9a-f]{30}")
"""In the name of a file in a cache: of huggingface_hub (blobs/SHA), of DVC, of git-annex, of Ollama."""
_LONGEST_NAME = 255
"""Bytes: NAME_MAX of Linux."""
_SHOWN = 300
"""Characters of names that a message shows."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(@[\w./-]+)?", re.ASCII)


def is_hub_id(base: str) -> bool:
    """Return whether a base may be an id on the Hugging Face hub, org/name or org/name@revision; a path may look the same."""
    return _HUB_ID.fullmatch(base) is not None and ".." not in base


def is_on_hub(path: str) -> bool:
    """Return whether what the configuration names as a base or an adapter is looked for on the Hugging Face hub.

    It is if it can be an id there, and is no folder here. If only a folder of that organization's name is here, it is taken
    for the path of something that is missing; with a revision (org/name@main) it is meant for the hub all the same.
    """
    if not is_hub_id(path) or Path(path).exists():
        return False
    return "@" in path or not Path(path).parent.is_dir()


def source_files(
    kind: str, folder: str, key: str, elsewhere: Collection[str] = frozenset()
) -> tuple[list[str], list[str]]:
    """Return (weight files, small files) of a base or adapter folder, as paths below ``folder``, in order.

    ``kind`` is "base" or "adapter", ``key`` the configuration key that messages name. Only names and the base's index
    are read. ``elsewhere`` has the names of files that are in the same folder of a bucket; an index must be here as well.
    A base's shard that is still to come, but stands in headers.json, counts as there. Raises OllamakeError when the folder is
    not one of that kind.
    """
    path = Path(folder)
    if not path.is_dir() and not elsewhere:
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise OllamakeError(
            f"{key}: the folder {folder!r} {what} (looked from {Path.cwd()})."
            + (_nearby(path) if kind == "adapter" else "")
            + f" {_EXPECTED[kind]}"
        )
    weights = _base_weights(path, key, elsewhere) if kind == "base" else adapter_weights(path, key, elsewhere)
    small = small_files(kind, weights, lambda name: _is_there(path, name, elsewhere))
    _require_own(path, small, key)
    return [f"{folder}/{name}" for name in weights], [f"{folder}/{name}" for name in small]


def small_files(kind: str, weights: Sequence[str], is_there: Callable[[str], bool]) -> list[str]:
    """Return the names of the files beside the weights that belong to a base or adapter, in order, index included."""
    first = ["adapter_config.json"] if kind == "adapter" else []
    small = [name for name in (*first, *MODEL_FILES) if is_there(name)]
    if kind == "base":
        small += [name for name in BASE_INDEXES[:1] if is_there(name)]
        small += [name for name in BASE_INDEXES[1:] if is_there(name) and weights[0].endswith(".bin")]
    return small


_EXPECTED = {
    "base": "It must be the folder of the base model, with config.json and .safetensors (or .bin) files.",
    "adapter": f"It must be a PEFT adapter: a folder with adapter_config.json and {' or '.join(ADAPTER_WEIGHTS)}.",
}


def _is_there(folder: Path, name: str, elsewhere: Collection[str]) -> bool:
    return name in elsewhere or (folder / name).is_file() or is_awaited(folder / name)


def _base_weights(folder: Path, key: str, elsewhere: Collection[str]) -> list[str]:
    if not _is_there(folder, "config.json", elsewhere):
        raise OllamakeError(f"{key}: {str(folder)!r} has no config.json. {_EXPECTED['base']}")
    for index, single in zip(BASE_INDEXES, BASE_SINGLES, strict=True):
        if (folder / index).is_file():
            return _indexed_weights(folder, folder / index, key, elsewhere)
        if _is_there(folder, single, elsewhere):
            return [single]
    others = sorted(file.name for pattern in ("*.bin", "*.gguf", "*.safetensors") for file in folder.glob(pattern))
    found = f" It has {', '.join(others[:4])}, which cannot be merged as they are." if others else ""
    raise OllamakeError(
        f"{key}: {str(folder)!r} has none of {', '.join((*BASE_SINGLES, *BASE_INDEXES))}.{found} {_EXPECTED['base']}"
        " A model in another format becomes one with transformers' save_pretrained()."
    )


def _indexed_weights(folder: Path, index: Path, key: str, elsewhere: Collection[str]) -> list[str]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (OllamakeError, KeyError, AttributeError, TypeError) as error:
        raise OllamakeError(
            f"{key}: {index} is not an index of safetensors files ({error}); expected JSON with `weight_map`."
            " Fetch the file again."
        ) from error
    outside = [name for name in names if not is_name_in_folder(name)]
    if outside:
        raise OllamakeError(
            f"{key}: {index} names files outside its folder: {str(outside[:3])[:_SHOWN]}. Nothing of it is read."
        )
    missing = [name for name in names if not _is_there(folder, name, elsewhere)]
    if missing or not names:
        raise OllamakeError(
            f"{key}: {index} names {len(names)} shards, of which {len(missing)} are not there:"
            f" {', '.join(missing[:5]) or 'it names none'}. Complete the download."
        )
    return names


def is_name_in_folder(name: object) -> bool:
    """Whether a name that a stranger's file has is that of a file in the same folder, with nothing in it that deceives."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and Path(name).name == name
        and "\\" not in name
        and name.isprintable()
        and len(name.encode("utf-8")) <= _LONGEST_NAME
    )


def _require_own(folder: Path, names: Sequence[str], key: str) -> None:
    """Raise OllamakeError for a small file that is a link out of its folder to something else than such a file.

    What stands in these goes into the model. A repository that was cloned may have links in it, to a key of the user's for
    example; those that users make lead to a file of the same name, those of caches to one that its digest names.
    """
    for name in names:
        path = folder / name
        if not path.is_symlink():
            continue
        target = path.resolve()
        if target.name != name and not _DIGEST.search(target.name) and not target.is_relative_to(folder.resolve()):
            raise OllamakeError(
                f"{key}: {path} is a link to {target}, outside of its folder. What stands there would go into the model. Remove"
                " the link; if that is the file that is meant, copy it here."
            )


def reads_across_shards(base_config: Config, *adapter_configs: Config) -> bool:
    """Whether one shard's merge may need tensors of another: scales of float8 weights, or a bias of the same module.

    A configuration is given as its file, or as what is in it.
    """
    (base,) = _configs_if_there(base_config) or ({},)
    adapters = _configs_if_there(*adapter_configs)
    return bool(base.get("quantization_config")) or any(
        not is_plain_lora(one) or one.get("use_dora") for one in adapters
    )


def merges_through_peft(*adapter_configs: Config) -> bool:
    """Whether the time of a merge goes into the arithmetic of peft's layers, rather than into reading and writing."""
    return any(not is_plain_lora(one) for one in _configs_if_there(*adapter_configs))


def _configs_if_there(*configs: Config) -> list[Mapping[str, Any]]:
    """Return JSON objects; none if one of them is not there yet (the demo's) or is none.

    What is wrong with a file is said by the job that reads it.
    """
    try:
        found = [read_json(Path(one)) if isinstance(one, str) else one for one in configs]
    except OllamakeError:
        return []
    return found if all(isinstance(one, Mapping) for one in found) else []


def adapter_weights(folder: Path, key: str, elsewhere: Collection[str] = frozenset()) -> list[str]:
    """Return the name of an adapter's weight file, alone in a list. Raises OllamakeError if the folder is no adapter."""
    found = [name for name in ADAPTER_WEIGHTS if _is_there(folder, name, elsewhere)]
    has_config = _is_there(folder, "adapter_config.json", elsewhere)
    if found and has_config:
        return found[:1]
    missing = [] if has_config else ["adapter_config.json"]
    missing += [] if found else [" or ".join(ADAPTER_WEIGHTS)]
    raise OllamakeError(
        f"{key}: {str(folder)!r} has no {' and no '.join(missing)}.{_unfinished(folder)} {_EXPECTED['adapter']}"
    )


def _unfinished(folder: Path) -> str:
    """Say what a training that did not come to its end has left in place of an adapter; else name adapters nearby."""
    checkpoints = sorted((path for path in folder.glob("checkpoint-*") if path.is_dir()), key=_number)
    whole = [path for path in checkpoints if _is_adapter(path)]
    if checkpoints:
        last = (
            f"The last whole one is {whole[-1]}: give that one" if whole else "None of them has an adapter: train again"
        )
        partial = " (its saving was interrupted)" if checkpoints[-1] not in whole else ""
        return (
            f" The training seems not to have come to its end: there are checkpoints up to {checkpoints[-1].name}{partial}, but"
            f" what training saves last is missing. {last}, or let the training go on from there and save it."
        )
    state = sorted(file.name for pattern in _TRAINING_STATE for file in folder.glob(pattern))
    if not state:
        return _nearby(folder)
    others = sorted((file.parent for file in folder.parent.glob("*/adapter_config.json")), key=_number)
    whole = [path for path in others if path != folder and _is_adapter(path)]
    return (
        f" It has the state of a training ({', '.join(state[:4])}), but not what was trained: the training is not finished, or"
        " its saving was interrupted." + (f" A whole one nearby is {whole[-1]}." if whole else "")
    )


_TRAINING_STATE = ("optimizer.*", "scheduler.pt", "trainer_state.json", "rng_state*.pth", "global_step*")
"""What transformers' Trainer and DeepSpeed save to let a training go on."""


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and any((folder / name).is_file() for name in ADAPTER_WEIGHTS)


def _number(path: Path) -> tuple[int, str]:
    """Return what checkpoints are ordered by: the number at the end of their names."""
    found = re.search(r"(\d+)$", path.name)
    return int(found[1]) if found else -1, path.name


def _nearby(folder: Path) -> str:
    """Name folders with an adapter beside or below a folder that is none: a checkpoint, or a typing error."""
    below = folder.glob("*/adapter_config.json") if folder.is_dir() else []
    beside = folder.parent.glob("*/adapter_config.json") if folder.parent.is_dir() else []
    near = [file.parent for file in below] or [file.parent for file in beside if file.parent != folder]
    names = [str(path) for path in sorted(near, key=_number, reverse=True)[:4]]
    return f" Adapters nearby: {', '.join(names)}." if names else ""


def normal_path(path: str) -> str:
    """Return one spelling of a path: the same folder must be the same input, `./base/` or `base`."""
    return os.path.normpath(Path(path).expanduser())
