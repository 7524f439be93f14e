"""What Ollama knows of a model in its store: GetModel and Capabilities of server/images.go, show and list of the API."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_header import BadGguf, Gguf, read_gguf
from go_templates import BARE_PROMPT, TemplateRefused, Variables, variables
from go_text import moment, shown, shown_as_literal
from model_name import Name
from store import IMAGE, MODEL, FileTrouble, Manifest, Store

_ROUND_TRIPS = (
    *("tool_response", "tool_results", "ipython"),
    *(f"{role} == {quote}tool{quote}" for quote in "'\"" for role in ("role']", 'role"]', "message.role")),
)
"""Words of a jinja template that takes the answers of tools (server/images.go)."""


@dataclass
class Model:
    """One model as it is before it is run."""

    name: Name
    manifest: Manifest
    config: dict[str, Any]
    path: Path | None = None
    """Blob of the weights, which is what a running model is known by."""
    adapters: list[Path] = field(default_factory=list)
    parent: str = ""
    gguf: Gguf | None = None
    template: str = BARE_PROMPT
    has_go_template: bool = False
    system: str = ""
    licenses: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def jinja(self) -> str:
        """The GGUF's own chat template."""
        return self.gguf.chat_template if self.gguf else ""

    @property
    def is_rendered_in_go(self) -> bool:
        """Whether Ollama writes the prompt itself; otherwise llama-server does, by the GGUF's chat template."""
        if self.config.get("renderer") or self.config.get("parser"):
            return True
        if not self.has_go_template:
            return False
        chosen = os.environ.get("OLLAMA_GO_TEMPLATE", "")
        if chosen:
            return chosen.lower() in ("1", "t", "true")
        return not (self.jinja and _prefers_jinja(self.jinja, self.template))

    @property
    def shown_template(self) -> str:
        """The template that is in force."""
        return self.jinja if self.jinja and not self.is_rendered_in_go else self.template

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, in Ollama's order."""
        found = [] if self.is_rendered_in_go else jinja_capabilities(self.jinja)
        if self.gguf is not None:
            pooled = self.gguf.of_architecture("pooling_type") is not None
            found.append("embedding" if pooled else "completion")
        if not self.has_go_template or self.is_rendered_in_go:
            found += [kind for kind in self.template_variables.capabilities if kind not in found]
        return found

    @property
    def template_variables(self) -> Variables:
        """What the Go template refers to."""
        return variables(self.template)

    @property
    def details(self) -> dict[str, Any]:
        """The details that show, list and ps give, but for the parent."""
        return {
            "format": self.config.get("model_format", ""),
            "family": self.config.get("model_family", ""),
            "families": self.config.get("model_families"),
            "parameter_size": self.config.get("model_type", ""),
            "quantization_level": self.config.get("file_type", ""),
        }


def read_model(store: Store, name: Name) -> Model:
    """Read a model's manifest and blobs. Raises FileTrouble, or ValueError or TemplateRefused for what is damaged."""
    manifest = store.manifest(name)
    model = Model(name, manifest, json.loads(_content(store, manifest.config.digest)))
    for layer in manifest.layers:
        kind = layer.media_type.removeprefix(IMAGE)
        if layer.media_type == MODEL:
            model.path, model.parent = store.blob(layer.digest), layer.source
            try:
                model.gguf = read_gguf(model.path)
            except (OSError, BadGguf):
                model.gguf = None
        elif kind == "adapter":
            model.adapters.append(store.blob(layer.digest))
        elif kind == "template":
            model.template, model.has_go_template = _content(store, layer.digest), True
            variables(model.template)
        elif kind == "system":
            model.system = _content(store, layer.digest)
        elif kind == "license":
            model.licenses.append(_content(store, layer.digest))
        elif kind == "params":
            model.options = json.loads(_content(store, layer.digest), parse_int=float)
        elif kind == "messages":
            model.messages = json.loads(_content(store, layer.digest))
    return model


def show(model: Model, *, verbose: bool) -> dict[str, Any]:
    """Return the answer of POST /api/show. Raises FileTrouble if the weights are not there, BadGguf if they are damaged."""
    if model.path is None:
        raise FileTrouble("open", Path(), FileNotFoundError(2, "no such file or directory"))
    try:
        gguf = read_gguf(model.path)
    except OSError as error:
        raise FileTrouble("open", model.path, error) from error
    lines = []
    for key, value in model.options.items():
        lines += [f"{key:<30} {shown_as_literal(item)}" for item in (value if isinstance(value, list) else [value])]
    details = {"parent_model": model.parent} | model.details
    if details["quantization_level"] == "unknown":
        details["quantization_level"] = gguf.file_type
    answer = {
        "license": "\n".join(model.licenses),
        "modelfile": _modelfile(model),
        "parameters": "\n".join(lines),
        "template": model.shown_template,
        "system": model.system,
        "details": details,
        "messages": [{"role": message["role"], "content": message["content"]} for message in model.messages],
        "model_info": _model_info(gguf, verbose=verbose),
        "tensors": [
            {"name": tensor.name, "type": tensor.type_name, "shape": list(tensor.shape)} for tensor in gguf.tensors
        ],
        "capabilities": model.capabilities,
        "modified_at": moment(model.manifest.modified),
        "requires": model.config.get("requires", ""),
    }
    return {key: value for key, value in answer.items() if value or key in ("model_info", "modified_at")}


def listed(store: Store) -> list[dict[str, Any]]:
    """Return the models of GET /api/tags, the newest first; a model without its config or template is left out."""
    entries = []
    for name in store.all():
        try:
            model = read_model(store, name)
        except (FileTrouble, TemplateRefused, ValueError):
            continue
        found = []
        details = {"parent_model": model.parent} | model.details
        if model.gguf is not None:
            pooled = model.gguf.of_architecture("pooling_type") is not None
            found.append("embedding" if pooled else "completion")
            lengths = {key: model.gguf.of_architecture(key) for key in ("context_length", "embedding_length")}
            details |= {key: value for key, value in lengths.items() if value}
        found += [kind for kind in model.template_variables.capabilities if kind not in found]
        entry = {
            "name": name.shortest,
            "model": name.shortest,
            "modified_at": moment(model.manifest.modified),
            "size": sum(layer.size for layer in model.manifest.all_layers),
            "digest": model.manifest.digest,
            "details": details,
        }
        entries.append((model.manifest.modified // 10**9, entry | ({"capabilities": found} if found else {})))
    entries.sort(key=lambda timed: -timed[0])
    return [entry for _, entry in entries]


def jinja_capabilities(template: str) -> list[str]:
    """Return what a jinja chat template can do, as Ollama guesses from words in it."""
    found = ["tools"] if "tools" in template or "tool_call" in template else []
    tags = "<think>" in template and "</think>" in template
    splits = "content.split('</think>')" in template or 'content.split("</think>")' in template
    strips = splits and "reasoning_content" not in template and "<SPECIAL_12>" not in template
    return [*found, "thinking"] if tags or strips else found


def _prefers_jinja(jinja: str, template: str) -> bool:
    """Whether the GGUF's chat template is used although there is a TEMPLATE."""
    can, go = jinja_capabilities(jinja), variables(template)
    go_round_trip = {"tools", "toolcalls"} <= go.names and any(
        word in template for word in ('eq .Role "tool"', "tool_response", "TOOL_RESULTS")
    )
    calls = "tool_calls" in jinja or "assistant_tool_call" in jinja
    round_trip = "tools" in can and calls and any(word in jinja for word in _ROUND_TRIPS)
    if len(can) > len(go.capabilities):
        return not go_round_trip or round_trip
    same = set(can) == set(go.capabilities) and "tools" in can
    return same and round_trip and not go_round_trip


def _content(store: Store, digest: str) -> str:
    path = store.blob(digest)
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise FileTrouble("open", path, error) from error


def _model_info(gguf: Gguf, *, verbose: bool) -> dict[str, Any]:
    """Return the metadata as show gives it: arrays only if asked for."""
    left_out = ("general.name", "tokenizer.chat_template")
    values = gguf.values | {"general.parameter_count": gguf.parameter_count}
    return {
        key: value if verbose or not isinstance(value, list) or not value else None
        for key, value in sorted(values.items())
        if key not in left_out
    }


def _modelfile(model: Model) -> str:
    commands = [f"FROM {model.path}", *(f"ADAPTER {path}" for path in model.adapters)]
    commands.append(f"TEMPLATE {_in_quotes(model.template)}")
    if model.system:
        commands.append(f"SYSTEM {_in_quotes(model.system)}")
    for key in ("renderer", "parser"):
        if model.config.get(key):
            commands.append(f"{key.upper()} {model.config[key]}")
    for key, value in model.options.items():
        items = value if isinstance(value, list) else [value]
        commands += [f"PARAMETER {key} {_in_quotes(shown(item))}" for item in items]
    commands += [f"LICENSE {_in_quotes(text)}" for text in model.licenses]
    commands += [f"MESSAGE {message['role']} {_in_quotes(message['content'])}" for message in model.messages]
    head = '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
    return f"{head}# FROM {model.name.shortest}\n\n" + "".join(f"{command}\n" for command in commands)


def _in_quotes(text: str) -> str:
    """Quote a text as Modelfiles have it: only where it has a newline or a blank at an end (parser/parser.go)."""
    if "\n" in text or text.startswith(" ") or text.endswith(" "):
        return f'"""{text}"""' if '"' in text else f'"{text}"'
    return text
