"""POST /api/create as server/create.go does it, from the JSON request to the manifest.

Played: `files` with GGUFs (models, and adapters and projectors as they are), `adapters` with one, `from` of a local model,
template, system, license, parameters, messages, renderer, parser, requires. Of the chat templates that Ollama recognises by
edit distance only ChatML is known here. Not played: safetensors, split GGUFs, quantize, draft models, info, remote models,
and what Ollama adds for single architectures (gemma4, laguna, nemotron_h).
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_header import MAGIC, BadGguf, Gguf, read_gguf
from go_templates import TemplateRefused, variables
from go_text import decoded, go_json, human_number
from model_name import InvalidName, Name, NoName, OfTheCloud, parsed_name, referred_name
from store import CONFIG, IMAGE, MODEL, FileTrouble, InvalidDigest, Layer, Store

log = logging.getLogger("ollama-0.33")

Status = dict[str, Any]

_CHATML_JINJA = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
_CHATML_STOP = ["<|im_start|>", "<|im_end|>"]
_RECOGNISED_BELOW = 100
"""Edits between a GGUF's chat template and a known one (template/template.go)."""

_COMPATIBILITY_TENSORS = ("a.", "mm.", "mtp.", "s.", "v.")
"""A GGUF with tensors of such names is kept as it is."""


class Refused(Exception):
    """The request fails with this HTTP status, if the answer has not begun."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    @property
    def as_json(self) -> bytes:
        """The answer's body."""
        return go_json({"error": str(self)}).encode()


@dataclass
class _Part:
    """A layer on its way, with its decoded header if it is a GGUF."""

    layer: Layer
    gguf: Gguf | None = None
    is_rewritten: bool = False


@dataclass
class Creation:
    """One request, checked as Ollama checks it before it begins to work. Raises Refused."""

    request: dict[str, Any]
    store: Store
    llama_quantize: Path
    name: Name = field(init=False)

    def __post_init__(self) -> None:
        for file, digest in (self.request.get("files") or {}).items():
            if file != posixpath.normpath(file) or file.startswith(("/", "..")) or file == "":
                raise Refused(400, "file path must be relative")
            if not digest:
                raise Refused(400, "invalid digest format")
        try:
            name = parsed_name(str(self.request.get("model") or self.request.get("name") or ""))
        except InvalidName:
            raise Refused(400, "invalid model name") from None
        self.name = self.store.existing_name(name)

    def run(self) -> Iterator[Status]:
        """Do the work, yielding what Ollama reports. Raises Refused."""
        try:
            yield from self._run()
        except (FileTrouble, BadGguf, ValueError) as error:
            raise Refused(500, str(error)) from error
        except InvalidDigest:
            raise Refused(500, "invalid digest format") from None

    def _run(self) -> Iterator[Status]:
        try:
            old = self.store.manifest(self.name)
        except (FileTrouble, ValueError):
            old = None
        config: dict[str, Any] = {key: self.request.get(key) or "" for key in ("renderer", "parser", "requires")}
        if self.request.get("from"):
            parts = yield from self._from_model(config)
        elif self.request.get("files") is not None:
            parts = yield from self._from_files()
        else:
            raise Refused(400, "neither 'from' or 'files' was specified")
        if self.request.get("adapters") is not None:
            parts += yield from self._from_adapters()
        layers = []
        for part in parts:
            if part.is_rewritten:
                part = yield from self._copied(part)
            _describe(part, config)
            layers.append(part.layer)
        layers = self._with_texts(layers)
        blob = self.store.add([f"{go_json(_ordered(config))}\n".encode()], CONFIG)
        yield from ({"status": layer.status} for layer in layers if layer.status)
        yield {"status": "writing manifest"}
        self.store.write_manifest(self.name, blob, layers)
        if old is not None and not os.environ.get("OLLAMA_NOPRUNE"):
            self.store.remove_unused(old.all_layers)
        yield {"status": "success"}

    def _from_model(self, config: dict[str, Any]) -> Iterator[Any]:
        try:
            source = referred_name(str(self.request["from"]))
        except (InvalidName, NoName, OfTheCloud):
            raise Refused(400, "invalid model name") from None
        try:
            manifest = self.store.manifest(source)
        except FileTrouble:
            yield {"status": "pulling manifest"}
            # What a registry's 404 ends in; there is no registry here.
            raise Refused(500, "pull model manifest: file does not exist") from None
        base = json.loads(self.store.blob(manifest.config.digest).read_bytes())
        for key in ("renderer", "parser", "requires", "model_format", "capabilities"):
            config[key] = config.get(key) or base.get(key) or ""
        parts = []
        for layer in manifest.layers:
            reused = self.store.reuse(layer.digest, layer.media_type, source.shortest)
            is_gguf = layer.media_type.removeprefix(IMAGE) in ("model", "projector", "adapter", "draft")
            parts.append(_Part(reused, read_gguf(self.store.blob(layer.digest)) if is_gguf else None))
        return parts

    def _from_files(self) -> Iterator[Any]:
        files: dict[str, str] = self.request["files"]
        parts = yield from self._parts(files)
        for part in list(parts):
            if part.gguf and part.gguf.chat_template and _is_chatml(part.gguf.chat_template):
                template = self.store.add_text(_CHATML, "template")
                template.status = "using autodetected template chatml"
                stop = self.store.add_text(f"{go_json({'stop': _CHATML_STOP})}\n", "params")
                parts += [_Part(template), _Part(stop)]
        return parts

    def _from_adapters(self) -> Iterator[Any]:
        files: dict[str, str] = self.request["adapters"]
        try:
            if len(files) > 1 and any(self._is_gguf(file, digest) for file, digest in files.items()):
                raise Refused(400, "only one adapter is currently supported")
            return (yield from self._parts(files))
        except (FileTrouble, BadGguf) as error:
            raise Refused(400, str(error)) from error

    def _parts(self, files: dict[str, str]) -> Iterator[Any]:
        """Read the GGUFs of a request; what they are says their header, not the key of the request."""
        if not any(self._is_gguf(file, digest) for file, digest in files.items()):
            raise Refused(400, "unknown type")
        parts = []
        for file in sorted(files):
            yield {"status": "parsing GGUF"}
            blob = self.store.blob(files[file])
            try:
                with blob.open("rb") as content:
                    magic = content.read(4)
            except OSError as error:
                raise FileTrouble("open", blob, error) from error
            if magic != MAGIC:
                raise Refused(400, "supplied file was not in GGUF format")
            gguf = read_gguf(blob)
            kind = _kind(gguf)
            kept = any(tensor.name.startswith(_COMPATIBILITY_TENSORS) for tensor in gguf.tensors)
            parts.append(_Part(self.store.reuse(files[file], IMAGE + kind, file), gguf, kind == "model" and not kept))
        return parts

    def _is_gguf(self, file: str, digest: str) -> bool:
        if file.endswith(".safetensors"):
            raise Refused(500, "the stand-in converts no safetensors")
        if file.endswith(".gguf"):
            return True
        try:
            with self.store.blob(digest).open("rb") as content:
                return content.read(4) == MAGIC
        except (OSError, InvalidDigest):
            return False

    def _copied(self, part: _Part) -> Iterator[Any]:
        """Rewrite a model with llama-quantize, which is Ollama's check that llama.cpp can load it."""
        source, target = self.store.blob(part.layer.digest), self.store.temporary("COPY")
        try:
            yield from self._llama_quantize(source, target, part.layer.size)
            yield {"status": "verifying conversion"}
            layer = self.store.add_file(target, MODEL)
            return _Part(layer, read_gguf(target))
        finally:
            target.unlink(missing_ok=True)

    def _llama_quantize(self, source: Path, target: Path, size: int) -> Iterator[Status]:
        prefix = "failed to validate GGUF with llama-quantize without compatibility patches: "
        if not self.llama_quantize.exists():
            missing = f"llama-quantize binary not found (checked: {self.llama_quantize})"
            raise Refused(500, f"{prefix}llama-quantize unavailable: {missing}")
        command = [str(self.llama_quantize), "--allow-requantize", str(source), str(target), "COPY"]
        environment = {**os.environ, "OLLAMA_LLAMA_CPP_COMPAT": "0"}
        log.info("quantizing model command=%s", command)
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, errors="replace") as child:
            assert child.stdout is not None
            for line in child.stdout:
                if step := re.search(r"\[\s*(\d+)/\s*(\d+)\]", line):
                    done = int(size * int(step[1]) / int(step[2]))
                    progress = {"digest": "0" * 19, "total": size, "completed": done}
                    yield {"status": "validating GGUF model"} | progress
        if child.returncode:
            how = f"exit status {child.returncode}" if child.returncode > 0 else f"signal: {-child.returncode}"
            raise Refused(500, f"{prefix}llama-quantize failed: {how}")

    def _with_texts(self, layers: list[Layer]) -> list[Layer]:
        """Add what is not weights, in place of the source's."""
        request = self.request
        if request.get("template"):
            layers = self._without(layers, "template")
            try:
                variables(request["template"])
            except TemplateRefused as error:
                raise Refused(400, f"template error: {error}") from error
            layers.append(self.store.add_text(request["template"], "template"))
        if request.get("system"):
            layers = self._without(layers, "system")
            layers.append(self.store.add_text(request["system"], "system"))
        licenses = request.get("license") or []
        for text in [licenses] if isinstance(licenses, str) else licenses:
            layers.append(self.store.add_text(text, "license"))
        parameters = decoded(request.get("parameters") or {})
        for layer in layers:
            if layer.media_type == IMAGE + "params":
                parameters = json.loads(self.store.blob(layer.digest).read_bytes(), parse_int=float) | parameters
        if parameters:
            layers = self._without(layers, "params")
            layers.append(self.store.add_text(f"{go_json(parameters, sort_keys=True)}\n", "params"))
        if request.get("messages"):
            layers = self._without(layers, "messages")
            messages = [_message(message) for message in request["messages"]]
            layers.append(self.store.add_text(f"{go_json(messages)}\n", "messages"))
        return layers

    def _without(self, layers: list[Layer], kind: str) -> list[Layer]:
        """Drop the layers of a kind, and their blobs at once where no manifest has them."""
        self.store.remove_unused(layer for layer in layers if layer.media_type == IMAGE + kind)
        return [layer for layer in layers if layer.media_type != IMAGE + kind]


def _kind(gguf: Gguf) -> str:
    kind = gguf.values.get("general.type")
    if kind == "adapter":
        return "adapter"
    vision_alone = not gguf.of_architecture("block_count") and gguf.of_architecture("vision.block_count")
    return "projector" if kind in ("projector", "mmproj") or vision_alone else "model"


def _describe(part: _Part, config: dict[str, Any]) -> None:
    """Enter a model's header into the config; the first model counts."""
    if part.gguf is None or part.layer.media_type != MODEL:
        return
    gguf = part.gguf
    config["model_format"] = config.get("model_format") or "gguf"
    config.setdefault("model_family", gguf.architecture)
    config.setdefault("model_type", human_number(gguf.parameter_count))
    config.setdefault("file_type", gguf.file_type)
    config.setdefault("model_families", []).append(gguf.architecture)


def _ordered(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config in the order of Go's struct (types/model/config.go)."""
    always = {key: config.get(key) or "" for key in ("model_format", "model_family", "model_type", "file_type")}
    families = config.get("model_families")
    optional = {key: config[key] for key in ("renderer", "parser", "requires", "capabilities") if config.get(key)}
    ordered = {"model_format": always.pop("model_format"), "model_family": always.pop("model_family")}
    return ordered | {"model_families": families} | always | optional | {"architecture": "amd64", "os": "linux"}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message in the order of api.Message's fields; its role is in lower case."""
    fields = {"role": str(message.get("role", "")).lower(), "content": message.get("content") or ""}
    more = ("thinking", "images", "tool_calls", "tool_name", "tool_call_id")
    return fields | {key: message[key] for key in more if message.get(key)}


def _is_chatml(chat_template: str) -> bool:
    """Whether a chat template is less than a hundred edits from ChatML's (Levenshtein)."""
    if abs(len(chat_template) - len(_CHATML_JINJA)) >= _RECOGNISED_BELOW:
        return False
    above = list(range(len(_CHATML_JINJA) + 1))
    for number, left in enumerate(chat_template, 1):
        row = [number]
        for column, right in enumerate(_CHATML_JINJA, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (left != right)))
        above = row
    return above[-1] < _RECOGNISED_BELOW
