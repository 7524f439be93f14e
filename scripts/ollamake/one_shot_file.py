"""The configuration that is written for those who do not write one: minimal, commented, and theirs as soon as they edit it."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ollamake.configuration_file import read_configuration_file
from ollamake.errors import OllamakeError

_DIGEST = re.compile(r"^# Unchanged since it was written: sha256 ([0-9a-f]{64})\n", re.MULTILINE)

_COMMENTS = {
    "base": "the model that the adapter was trained on",
    "quantizations": "types of llama-quantize, or auto: the best that fits",
    "types": "checkpoints for transformers and vLLM, beside the GGUFs",
    "name": "in Ollama; the type is added as its tag",
    "system": "the system prompt",
    "target": "server, store (a folder in Ollama's format), or auto: the server if it answers",
    "llama_cpp": "programs that are built already",
}


_LINES = re.compile(r"(?! )([^\n]*[^\n ]\n+)*[^\n]*[^\n ]\n?")
"""Lines that a block of YAML holds as they are: none begins the text with a blank, none ends in one."""


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as it would stand in a text file, and escapes what could be lost on the way."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = re.sub(r"[\n\u3000]", "", text).isprintable()
    style = '"' if not plain else None if "\n" not in text else "|" if _LINES.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


@dataclass(frozen=True)
class ConfigurationFile:
    """What a configuration file says. ``unedited``: not a byte of it has changed since the script wrote it."""

    path: Path
    content: dict[str, Any]
    unedited: bool


def read_file(path: Path) -> ConfigurationFile | None:
    """Return what stands in a configuration file, None if there is none.

    Raises OllamakeError if it is no configuration of ollamake, which is then somebody else's file.
    """
    if not path.exists():
        return None
    try:
        content = read_configuration_file(path)
    except OllamakeError as error:
        raise OllamakeError(f"{error} {_LEAVE}") from error
    text = path.read_bytes().decode("utf-8")
    models = content.get("models")
    if not isinstance(models, dict) or not models or not all(isinstance(model, dict) for model in models.values()):
        raise OllamakeError(f"{path} is not a configuration of ollamake: expected `models` with at least one. {_LEAVE}")
    found = _DIGEST.findall(text)
    return ConfigurationFile(path, content, found == [_digest(text)])


_LEAVE = "It is left as it is: mend it, move it away, or give another --output-dir."


def rendered(content: Mapping[str, Any], snakefile: Path) -> str:
    """Return the text of a configuration, with the checksum that tells whether it was edited.

    ``content`` has one model with base, adapter, quantizations and perhaps bitsandbytes and ollama, and perhaps the sections
    ollama and tools.
    """
    ((name, model),) = content["models"].items()
    lines = ["models:", f"  {_scalar(name)}: # the folder below results/"]
    for key in ("base", "adapter", "quantizations"):
        lines += _entry(key, model[key], 4)
    lines += _section("bitsandbytes", model.get("bitsandbytes"), 4) + _section("ollama", model.get("ollama"), 4)
    lines += _section("ollama", content.get("ollama"), 0) + _section("tools", content.get("tools"), 0)
    head = [
        "# Written by quantize_finetuned_for_ollama.py, which updates this file as long as nobody else has changed it.",
        "# It is yours to edit, and is used as it is then. Every key: config/README.md of ollamake. Paths are relative to",
        "# this folder.",
        "# To build without the script, here:",
        f"#     snakemake --snakefile {shlex.quote(str(snakefile))} --cores all all --configfile config.yaml",
    ]
    text = "\n".join((*head, *lines)) + "\n"
    digest = _digest(text)
    text = text.replace("\nmodels:\n", f"\n# Unchanged since it was written: sha256 {digest}\nmodels:\n", 1)
    if yaml.safe_load(text) != content:
        raise ValueError(f"YAML does not keep this configuration: {content!r}")
    return text


def _section(name: str, values: Mapping[str, Any] | None, indent: int) -> list[str]:
    if not values:
        return []
    return [
        f"{' ' * indent}{name}:",
        *(line for key, value in values.items() for line in _entry(key, value, indent + 2)),
    ]


def _entry(key: str, value: Any, indent: int) -> list[str]:
    """Return the lines of one key; a comment stands behind a value of one line."""
    if isinstance(value, list):
        text = f"{key}: [{', '.join(map(_scalar, value))}]"
    else:
        text = yaml.dump({key: value}, Dumper=_Dumper, allow_unicode=True, width=float("inf")).removesuffix("\n")
    first, *others = text.split("\n")
    comment = f" # {_COMMENTS[key]}" if key in _COMMENTS and not others else ""
    return [" " * indent + first + comment, *(" " * indent * bool(line) + line for line in others)]


def _scalar(value: str) -> str:
    return yaml.safe_dump(value, allow_unicode=True, width=float("inf")).removesuffix("\n").removesuffix("\n...")


def _digest(text: str) -> str:
    """Return the sha256 of a text without its line of the checksum."""
    return hashlib.sha256(_DIGEST.sub("", text).encode("utf-8")).hexdigest()
