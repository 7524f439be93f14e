"""From what was asked on the command line to a configuration, and to what it changes in one that is there."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.one_shot_spelling import AUTO

DEFAULT_QUANTIZATION = "Q4_K_M"

_CHECKPOINT = re.compile(r"(checkpoint|global_step|epoch|step)[-_]?\d+", re.IGNORECASE)
_SAYS_NOTHING = frozenset(
    {"adapter", "adapters", "lora", "peft", "final", "best", "last", "latest", "output", "outputs", "out", "runs", "results"}
)  # fmt: skip
"""Names of folders that are no name of a model: the folder above is asked."""


@dataclass(frozen=True)
class Asked:
    """What the arguments say; None or nothing for what they do not. Folders are absolute."""

    adapter: str
    base: str | None = None
    quantizations: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    """Formats of bitsandbytes."""
    name: str | None = None
    system: str | None = None
    target: str | None = None
    host: str | None = None


def configured(there: Mapping[str, Any] | None, asked: Asked, folder: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration that is asked for, and the key of its model.

    ``there`` is what stands in ``folder``/config.yaml now: it is kept but for what is asked, and quantizations and checkpoints
    are added to its. Without it ``asked.base`` must be given. Raises OllamakeError if it is about another model.
    """
    content = copy.deepcopy(dict(there)) if there else {"models": {}}
    of_name = model_key(asked.name) if asked.name else None
    if there:
        key = _model_of(there, asked, folder)
        model = content["models"][key]
    else:
        key = of_name or _key_of_folder(Path(asked.adapter), asked.base or "")
        model = content["models"][key] = {}
    if asked.base is not None and absolute(model.get("base"), folder) != asked.base:
        model["base"] = _short(asked.base, folder)
    if asked.adapter not in _adapters_of(model, folder):
        model["adapter"] = _short(asked.adapter, folder)
    if asked.quantizations or not there:
        model["quantizations"] = _added(model.get("quantizations"), asked.quantizations)
    if asked.checkpoints:
        section = dict(_section(model, "bitsandbytes"))
        there_too = section.get("types")
        listed = [str(kind) for kind in there_too] if isinstance(there_too, list) else []
        model["bitsandbytes"] = section | {"types": list(dict.fromkeys((*listed, *asked.checkpoints)))}
    in_ollama = {"name": asked.name, "system": asked.system}
    if asked.name == key and "name" not in _section(model):
        del in_ollama["name"]  # it is the default
    _set(model, "ollama", in_ollama)
    target = asked.target or ("server" if asked.host else None)
    _set(content, "ollama", {"target": target, "host": asked.host})
    return content, key


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return in which keys two configurations differ, in words."""
    before, after = dict(_leaves(there)), dict(_leaves(asked))
    return [
        f"{key}: {_shown(before.get(key))} there, {_shown(after.get(key))} by the arguments"
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]


def model_key(name: str) -> str:
    """Return the key of a model that is called ``name`` in Ollama: [namespace/]name[:tag].

    Raises OllamakeError for one of which nothing is left.
    """
    key = _plain(name.rpartition("/")[2].partition(":")[0])
    if not key:
        raise OllamakeError(
            f"--name: {name!r} is not a name that Ollama takes. Expected ASCII letters, digits, dot, dash and underscore."
        )
    return key


def absolute(path: object, folder: Path) -> str | None:
    """Return a path of the configuration in ``folder`` as an absolute one; None for what is no path."""
    if not isinstance(path, str):
        return None
    return os.path.normpath(folder / Path(path).expanduser())


def built_programs(folder: Path) -> dict[str, Any]:
    """Return the configuration's section ``tools`` where llama.cpp is not on PATH, but built in ``folder``; else nothing."""
    programs = ("llama-quantize", "llama-tokenize")
    if all(map(shutil.which, programs)) or not all(shutil.which(folder / "bin" / program) for program in programs):
        return {}
    return {"tools": {"llama_cpp": str(folder)}} if (folder / "source.json").is_file() else {}


def _model_of(there: Mapping[str, Any], asked: Asked, folder: Path) -> str:
    """Return the key of the model that is meant: the one of the adapter, else the one of the name."""
    models = there["models"]
    for key, model in models.items():
        if asked.adapter in _adapters_of(model, folder):
            return str(key)
    for key, model in models.items():
        called = _section(model).get("name") or key
        if asked.name in (called, key) or (asked.name is None and _key_of_folder(Path(asked.adapter), "") == key):
            return str(key)
    known = "; ".join(f"{key}, of the adapter {model.get('adapter')}" for key, model in models.items())
    raise OllamakeError(
        f"--output-dir: {folder / 'config.yaml'} is about another model ({known}), not about {asked.adapter}. Give another"
        f" --output-dir, or --name {next(iter(models))} to put this adapter in the place of that one."
    )


def _adapters_of(model: Mapping[str, Any], folder: Path) -> list[str | None]:
    """Return the adapters of a model as absolute paths, named in either of the two ways."""
    several = model.get("adapters")
    listed = [one.get("path") for one in several if isinstance(one, Mapping)] if isinstance(several, list) else []
    return [absolute(path, folder) for path in (model.get("adapter"), *listed)]


def _section(parent: Mapping[str, Any], name: str = "ollama") -> Mapping[str, Any]:
    """Return a section, empty where there is none; what is wrong with one that somebody wrote, the schema says."""
    section = parent.get(name)
    return section if isinstance(section, Mapping) else {}


def _key_of_folder(adapter: Path, base: str) -> str:
    """Return a name for a model from its adapter's folder, or those above it where that one says nothing."""
    for name in (adapter.name, adapter.parent.name, adapter.parent.parent.name):
        key = _plain(name)
        if re.search("[a-z]{2}", key) and not _CHECKPOINT.fullmatch(name) and key not in _SAYS_NOTHING:
            return key
    key = _plain(Path(base.partition("@")[0]).name)
    return f"{key}-finetuned"[-80:].lstrip("-._") if key else "finetuned"


def _plain(name: str) -> str:
    """Return a name in the letters that Ollama and the configuration take; an empty one if none of its own is left."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:80]


def _short(path: str, folder: Path) -> str:
    """Return a path relative to the configuration if it lies beneath it, so that the folder can be moved; else as it is."""
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) and Path(path) != folder else path


def _added(there: Any, more: tuple[str, ...]) -> list[str] | str:
    """Return the quantizations of both. ``auto`` stands for the choice, so it takes the place of a list, and a list its."""
    if more == (AUTO,):
        return AUTO
    listed = [str(kind) for kind in there] if isinstance(there, list) else []
    return list(dict.fromkeys((*listed, *more))) or [DEFAULT_QUANTIZATION]


def _set(parent: dict[str, Any], section: str, values: Mapping[str, str | None]) -> None:
    """Set what is said in a section. An empty text takes a key away."""
    own = dict(_section(parent, section))
    if own != (parent.get(section) or {}) and not any(values.values()):
        return
    for key, value in values.items():
        if value:
            own[key] = value
        elif value == "":
            own.pop(key, None)
    if own:
        parent[section] = own
    elif section in parent:
        del parent[section]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else f"[{', '.join(map(str, value))}]" if isinstance(value, list) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
