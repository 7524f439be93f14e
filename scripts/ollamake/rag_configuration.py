"""What the configuration says of a RAG application's own configuration file: `models.NAME.rag`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError


@dataclass(frozen=True)
class RagConfiguration:
    """A file of somebody else's, and what is written there."""

    file: str
    keys: dict[str, str]
    """What is written (use_finetuned, ollama_model, ...) -> dotted path in the file; without what is switched off."""
    use_ollama_fallback: bool
    quantization: str | None
    """None for the first one, which for an automatic model is the plan's."""
    backup: bool

    def as_spec(self) -> dict[str, Any]:
        """Return what scripts/write_rag_config.py is given."""
        return {
            "file": self.file,
            "keys": self.keys,
            "use_ollama_fallback": self.use_ollama_fallback,
            "backup": self.backup,
        }


def rag_of(filled: Mapping[str, Any], key: str, quantizations: Sequence[str]) -> RagConfiguration | None:
    """Return `rag` of a model, None where there is none.

    Raises OllamakeError for a file that is not there, keys that cannot be paths, and a quantization that is not built.
    """
    given, key = filled["rag"], f"{key}.rag"
    if given is None:
        return None
    file = os.path.normpath(Path(given["file"]).expanduser())
    if not Path(file).is_file():
        raise OllamakeError(
            f"{key}.file: there is no file {file}. Expected the YAML that the application reads; paths are relative to where"
            " Snakemake runs."
        )
    keys = {name: path for name, path in given["keys"].items() if path is not None}
    for name, path in keys.items():
        if not all(part.strip() == part and part for part in path.split(".")):
            raise OllamakeError(
                f"{key}.keys.{name}: expected keys with a dot between them, such as llm.{name}, or null; found {path!r}."
            )
    for name, path in keys.items():
        for other, one in keys.items():
            if other != name and _overlap(path, one):
                raise OllamakeError(f"{key}.keys: {name} ({path}) and {other} ({one}) are the same place of {file}.")
    if not keys:
        raise OllamakeError(f"{key}.keys: all are null, so nothing would be written. Leave out `rag` instead.")
    quantization = given["quantization"]
    if quantization is not None and quantization not in quantizations:
        raise OllamakeError(
            f"{key}.quantization: {quantization} is not built. Expected one of {', '.join(quantizations) or 'quantizations'},"
            " or null for the first one."
        )
    return RagConfiguration(file, keys, given["use_ollama_fallback"], quantization, given["backup"])


def refuse_shared_keys(rags: Iterable[tuple[str, RagConfiguration | None]]) -> None:
    """Raise OllamakeError if two models (name, its `rag`) write to the same place of the same file."""
    owners: list[tuple[str, Path, str]] = []
    for model, rag in rags:
        if rag is None:
            continue
        file = Path(rag.file).resolve()
        mine = [(f"models.{model}.rag.keys.{name}", file, path) for name, path in rag.keys.items()]
        for owner, _, path in mine:
            for other, other_file, other_path in owners:
                if other_file == file and _overlap(path, other_path):
                    raise OllamakeError(
                        f"{owner} and {other} would both be written to {path} of {rag.file}. Give one of the models other keys or"
                        " another file, or no `rag`."
                    )
        owners += mine


def _overlap(path: str, other: str) -> bool:
    """Whether one path is the other or leads to it."""
    shorter, longer = sorted((path.split("."), other.split(".")), key=len)
    return longer[: len(shorter)] == shorter
