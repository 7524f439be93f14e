"""YAML as a tree that knows where in the text everything stands, by two independent readers.

Applications read their YAML by version 1.1 (PyYAML) or 1.2 (ruamel.yaml and most others), which differ in what a plain word
means: ``yes`` is true in one, a text in the other. What is said here of a value holds for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ruamel.yaml
import yaml
from ruamel.yaml.error import YAMLError as RuamelError

from ollamake.errors import OllamakeError

NULL = "tag:yaml.org,2002:null"
_COLON = re.compile(r"(?:\s++|#[^\r\n]*+)*+:")
_KINDS = {"Scalar": "scalar", "MappingStart": "mapping", "SequenceStart": "sequence"}


@dataclass(eq=False)
class Node:
    """One node; positions count characters of the text, lines from 1."""

    kind: str
    """scalar, mapping, sequence or alias."""
    start: int
    """Where it begins, anchor and tag included."""
    end: int
    """Where it ends; of a mapping or sequence only if it is in flow style."""
    line: int
    tag: str | None = None
    """As the reader resolves it, or as it stands there."""
    has_tag: bool = False
    """Whether a tag stands there."""
    anchor: str | None = None
    """Its anchor's name; of an alias, what it stands for."""
    value: str = ""
    """The text of a scalar."""
    style: str | None = None
    """Of a scalar: the sign that it begins with (quotes, | or >), None for a plain one."""
    flow: bool = False
    entries: list[tuple[Node, Node]] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)
    target: Node | None = None
    """What an alias stands for."""
    used_at: list[int] = field(default_factory=list)
    """Lines of the aliases that stand for this node."""

    @property
    def is_null(self) -> bool:
        """Whether it is nothing: an empty place, null or ~."""
        return self.kind == "scalar" and self.style is None and self.tag == NULL

    def named(self, key: str) -> list[tuple[Node, Node]]:
        """Return the entries of a mapping with this key."""
        return [entry for entry in self.entries if entry[0].kind == "scalar" and entry[0].value == key]


@dataclass(frozen=True)
class Document:
    """One document of a stream."""

    root: Node
    end: int
    """Where its content ends: at the next mark between documents, or at the end of the text."""


class NotYaml(OllamakeError):
    """A text that a reader does not take for YAML."""


class _Ruamel:
    """YAML 1.2."""

    def __init__(self) -> None:
        self._yaml = ruamel.yaml.YAML(typ="safe", pure=True)

    def events(self, text: str) -> Iterator[Any]:
        yield from self._yaml.parse(text)

    def tag(self, value: str, implicit: tuple[bool, bool]) -> str:
        return str(self._yaml.resolver.resolve(ruamel.yaml.ScalarNode, value, implicit))

    def plain(self, text: str) -> Any:
        return ruamel.yaml.YAML(typ="safe", pure=True).load(text)


class _PyYaml:
    """YAML 1.1."""

    def __init__(self) -> None:
        self._resolver = yaml.resolver.Resolver()

    def events(self, text: str) -> Iterator[Any]:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)

    def tag(self, value: str, implicit: tuple[bool, bool]) -> str:
        return str(self._resolver.resolve(yaml.ScalarNode, value, implicit))

    def plain(self, text: str) -> Any:
        return yaml.safe_load(text)


READERS = (_Ruamel, _PyYaml)


def read_documents(text: str, file: str, reader: type[_Ruamel] | type[_PyYaml] = _Ruamel) -> list[Document]:
    """Return the documents of a text. Raises NotYaml with ``file`` and the line."""
    try:
        return _documents(reader(), text, file)
    except (RuamelError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is not None:
            where, what = f", line {mark.line + 1}, column {mark.column + 1}", getattr(error, "problem", "")
        else:
            where, what = "", str(error).splitlines()[0]
        raise NotYaml(f"{file}{where}: this is no YAML ({what}). Mend the file, then run again.") from error
    except ValueError as error:
        raise NotYaml(f"{file}: this is no YAML ({error}). Mend the file, then run again.") from error


def plain_value_is(text: str, value: bool | int | str) -> bool:
    """Whether a plain scalar, on a line of its own, is this value to both readers, and of the same type."""
    for reader in READERS:
        try:
            found = reader().plain(text)
        except (RuamelError, yaml.YAMLError, ValueError):
            return False
        if type(found) is not type(value) or found != value:
            return False
    return True


def _documents(reader: _Ruamel | _PyYaml, text: str, file: str) -> list[Document]:
    documents: list[Document] = []
    anchors: dict[str, Node] = {}
    open_nodes: list[Node] = []
    waiting_keys: list[Node | None] = []
    root: Node | None = None
    for event in reader.events(text):
        name = type(event).__name__.removesuffix("Event")
        if name == "DocumentStart":
            anchors, root = {}, None
        elif name == "DocumentEnd":
            assert root is not None
            documents.append(Document(root, event.start_mark.index))
        elif name in ("MappingEnd", "SequenceEnd"):
            open_nodes.pop().end = event.end_mark.index
            waiting_keys.pop()
        elif name in _KINDS or name == "Alias":
            node = _node(reader, event, name)
            if name == "Alias":
                node.target = anchors.get(event.anchor)
                if node.target is None:
                    raise NotYaml(f"{file}, line {node.line}: the alias *{event.anchor} stands for nothing.")
                node.target.used_at.append(node.line)
            elif node.anchor is not None:
                anchors[node.anchor] = node
            if not open_nodes:
                root = node
            elif open_nodes[-1].kind == "sequence":
                open_nodes[-1].items.append(node)
            elif (key := waiting_keys[-1]) is None:
                waiting_keys[-1] = node
            else:
                if node.kind == "scalar" and node.start == node.end:
                    # A reader says of what is empty only where the next thing begins.
                    colon = _COLON.match(text, key.end)
                    node.start = node.end = colon.end() if colon else key.end
                open_nodes[-1].entries.append((key, node))
                waiting_keys[-1] = None
            if node.kind in ("mapping", "sequence"):
                open_nodes.append(node)
                waiting_keys.append(None)
    return documents


def _node(reader: _Ruamel | _PyYaml, event: Any, name: str) -> Node:
    start, end = event.start_mark, event.end_mark
    if name == "Alias":
        return Node("alias", start.index, end.index, start.line + 1, anchor=event.anchor)
    node = Node(_KINDS[name], start.index, end.index, start.line + 1, anchor=event.anchor)
    node.has_tag = event.tag is not None
    node.tag = str(event.tag) if node.has_tag else None
    if name == "Scalar":
        node.value = event.value
        node.style = event.style or None
        node.tag = node.tag or reader.tag(event.value, event.implicit)
    else:
        node.flow = bool(event.flow_style)
    return node
