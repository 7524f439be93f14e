"""Where the base model of an adapter is on this machine, by what its adapter_config.json says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ollamake.adapter_base import folders_named, named_base
from ollamake.errors import OllamakeError
from ollamake.json_object import read_json
from ollamake.source_files import is_hub_id, source_files


@dataclass(frozen=True)
class FoundBase:
    """A base model. ``place``: its folder, absolute, or its id on the hub where it is not here."""

    place: str
    said: str
    """Where it was found, or where it comes from."""


def find_base(adapter: Path, given: str | None) -> FoundBase:
    """Return the base of an adapter: ``given`` (--base), else what adapter_config.json names.

    A name is looked for as a folder: below the adapter's folder and those above it, then from the working directory; and as
    a hub id in the Hugging Face cache. Raises OllamakeError if it can neither be found nor be fetched by its hub id.
    """
    if given is not None:
        return _given(given)
    name, revision = _named_base(adapter)
    said = f"{adapter / 'adapter_config.json'} names {name!r}"
    looked = folders_named(name, [*_above(adapter), Path.cwd()])
    for folder in looked:
        if (folder / "config.json").is_file():
            return FoundBase(str(folder), f"{said}: found in {folder}")
    if is_hub_id(name):
        return _on_hub(name, revision, said, f"neither here as a folder (looked from {adapter} and {Path.cwd()}) nor")
    where = f"{looked[0]} is not here" if len(looked) == 1 else f"it is not in {_some(looked)}"
    raise OllamakeError(
        f"--lora-path: {said} as the model that the adapter was trained on, but {where} with a config.json."
        " Give that model's folder as --base."
    )


def _given(given: str) -> FoundBase:
    folder = Path(given).expanduser()
    if not folder.exists() and is_hub_id(given):
        name, _, revision = given.partition("@")
        return _on_hub(name, revision or None, f"--base is {given!r}", "neither here as a folder nor")
    source_files("base", str(folder), "--base")
    place = os.path.abspath(folder)  # noqa: PTH100, a link stays one
    return FoundBase(place, f"{place}, as --base says")


def _named_base(adapter: Path) -> tuple[str, str | None]:
    """Return what adapter_config.json names as the base, and the revision of it."""
    file = adapter / "adapter_config.json"
    try:
        config = read_json(file)
    except OllamakeError as error:
        raise OllamakeError(f"--lora-path: {error}") from error
    name, revision = named_base(config if isinstance(config, dict) else {})
    if name is None:
        raise OllamakeError(
            f"--lora-path: {file} does not say which model the adapter was trained on (no base_model_name_or_path)."
            " Give that model's folder as --base."
        )
    return name, revision


def _above(adapter: Path) -> list[Path]:
    """Return an adapter's folder and those above it, but for the root."""
    return [folder for folder in (adapter, *adapter.parents) if folder != folder.parent]


def _on_hub(name: str, revision: str | None, said: str, not_here: str) -> FoundBase:
    """Return the base in the Hugging Face cache, else its id."""
    whole = f"{name}@{revision}" if revision else name
    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True)
        source_files("base", folder, "--base")
    except (LocalEntryNotFoundError, HFValidationError, OllamakeError):
        # What is in the cache without its weights, or without all of them, is completed from the hub.
        return FoundBase(
            whole,
            f"{said}, which is {not_here} whole in the Hugging Face cache: what is missing is fetched from the hub."
            " If it is elsewhere on this machine, give its folder as --base.",
        )
    return FoundBase(folder, f"{said}: found in the Hugging Face cache ({folder})")


def _some(folders: list[Path]) -> str:
    more = f" and {len(folders) - 4} more" if len(folders) > 4 else ""
    return ", ".join(map(str, folders[:4])) + more
