"""The model that an adapter was trained on, by its adapter_config.json: what it is called, and what is here under that name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ollamake.json_object import read_json_object
from ollamake.shape import read_shape, shipped_shape
from ollamake.source_files import is_hub_id


def named_base(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return what an adapter_config.json calls the base, a path or a hub id, and its revision; None for what is not said."""
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    return _text(name), _text(revision)


def folders_named(name: str, above: list[Path]) -> list[Path]:
    """Return where a base may be that an adapter names by a path: below each of ``above``, or where an absolute path says."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~ of somebody who is not here
        path = Path(name)
    return list(dict.fromkeys(Path(os.path.normpath(folder / path)) for folder in above))


def config_of_named(adapter: Path, config: Mapping[str, Any], shapes: Path | None) -> tuple[str, dict[str, Any]] | None:
    """Return where the base that an adapter names is known from, and its config.json; None if nothing here knows it.

    It is a folder (from the adapter's folder, the one above it or the working directory), in the Hugging Face cache, or among
    the shapes that come with ollamake, which lie in ``shapes`` and have the keys that matter. Nothing is fetched.
    """
    name, revision = named_base(config)
    if name is None:
        return None
    for folder in folders_named(name, [adapter, adapter.parent, Path.cwd()]):
        if os.path.isfile(folder / "config.json"):  # noqa: PTH113 - Path.is_file raises OSError for names that are too long
            return str(folder / "config.json"), read_json_object(folder / "config.json")
    if not is_hub_id(name):
        return None
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    if isinstance(cached, str):
        return cached, read_json_object(Path(cached))
    shipped = shipped_shape(name, shapes) if shapes is not None else None
    return None if shipped is None else (str(shipped), read_shape(shipped).config)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
