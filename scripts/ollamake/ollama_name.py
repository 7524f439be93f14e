"""Names of models in Ollama: [host/][namespace/]model[:tag].

The rules are Ollama's own (types/model/name.go): ASCII letters, digits, dot, dash and underscore (a namespace has no
dot), 80 characters a part. Names are case-insensitive there, but kept in the case of whatever came first, so only lower
case is ever used here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ollamake.errors import OllamakeError

_PART = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}")
_HOST = re.compile(r"[a-z0-9_][a-z0-9_.:-]{0,349}")
_SOURCE_TAGS = re.compile(r"cloud|local|.*-cloud")
"""Tags that Ollama reads as where a model runs (internal/modelref/modelref.go): such a model cannot be shown."""


def registered_name(name: str, quantization: str, quantizations: Sequence[str], key: str) -> str:
    """Return the name under which one quantization of a model is registered.

    ``name`` is the configuration's ollama.name: NAME becomes NAME:QUANT; NAME:TAG is taken as it is where there is one
    quantization; ``{quant}`` stands for the quantization. Raises OllamakeError naming ``key``.
    """
    for placeholder in re.findall(r"\{[^}]*\}?", name):
        if placeholder != "{quant}":
            raise OllamakeError(f"{key}: {placeholder!r} in {name!r} is not known; the only placeholder is {{quant}}.")
    filled = name.replace("{quant}", quantization).lower()
    path, _, tag = _split_tag(filled)
    if not tag:
        filled = f"{path}:{quantization.lower()}" if "{quant}" not in name else f"{path}:latest"
    elif "{quant}" not in name and len(quantizations) > 1:
        raise OllamakeError(
            f"{key}: {name!r} is one name with one tag, but there are {len(quantizations)} quantizations"
            f" ({', '.join(quantizations)}). Leave the tag out, or use {{quant}}: {path}:{{quant}}."
        )
    return checked_name(filled, key)


def checked_name(name: str, key: str) -> str:
    """Return ``name`` if Ollama takes it. Raises OllamakeError naming ``key``."""
    path, colon, tag = _split_tag(name)
    parts = path.split("/")
    rules = [_HOST, _NAMESPACE, _PART][-len(parts) :] if len(parts) <= 3 else []
    fits = rules and all(rule.fullmatch(part) for rule, part in zip(rules, parts, strict=True))
    if not fits or (colon and not _PART.fullmatch(tag)):
        raise OllamakeError(
            f"{key}: {name!r} is not a name that Ollama takes. Expected NAME, NAME:TAG or NAMESPACE/NAME:TAG of ASCII"
            " letters, digits, dot, dash and underscore, at most 80 characters each."
        )
    if _SOURCE_TAGS.fullmatch(tag):
        raise OllamakeError(
            f"{key}: Ollama reads the tag {tag!r} of {name!r} as a place to run the model; choose another."
        )
    return name


def manifest_path(name: str) -> tuple[str, str, str, str]:
    """Return host, namespace, model and tag, Ollama's defaults filled in: its manifest's path in a store."""
    path, _, tag = _split_tag(name)
    parts = path.split("/")
    host, namespace = ["registry.ollama.ai", "library"][: 3 - len(parts)] + parts[:-1]
    return host, namespace, parts[-1], tag or "latest"


def _split_tag(name: str) -> tuple[str, str, str]:
    """Split at the colon of the tag: the last one after the last slash, since a host may have a port."""
    head, slash, last = name.rpartition("/")
    model, colon, tag = last.partition(":")
    return f"{head}{slash}{model}", colon, tag
