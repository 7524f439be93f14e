"""Sets single values in somebody else's YAML and leaves every other character as it is.

No YAML writer keeps all that a person has written (line ends, quotes, blanks before a comment, how lists are indented). So a
reader only says where a value stands; the text is edited there; and two readers must find afterwards that nothing but the
wanted values has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.yaml_places import (
    Path,
    Value,
    behind_properties,
    filled,
    indent_of,
    put_at_end,
    put_into_block,
    put_into_flow,
    replaced,
    step_of,
)
from ollamake.yaml_tree import READERS, Document, Node, NotYaml, plain_value_is, read_documents

_TEXT = "tag:yaml.org,2002:str"
_KIND_WORDS = {"mapping": "keys with values", "sequence": "a list", "scalar": "a single value", "alias": "an alias"}


@dataclass(frozen=True)
class Found:
    """What stands at a path."""

    source: str | None
    """The value as it is written there, anchor and tag apart; None where there is none."""
    text: str | None
    """What a single value says, through an alias; None where there is none, or null."""
    as_wanted: bool
    """Whether every reader takes it for the wanted value."""


def set_values(text: str, wanted: Mapping[str, Value], file: str) -> str:
    """Return ``text`` with the values at dotted paths (`llm.ollama_model`) set, and put in where they are missing.

    A value that is there already, whatever its spelling, stays. Raises OllamakeError with ``file``, line and path where
    something of another kind stands, where a change would reach other places (anchors), and where it is ambiguous.
    """
    paths = {parts_of(dotted): value for dotted, value in wanted.items()}
    read_documents(text, file)
    edited = text
    try:
        for path, value in paths.items():
            edited = _with_value(edited, path, value, list(paths), file)
        safe = _nothing_else(text, edited, paths, file)
    except NotYaml:
        safe = False
    if not safe:
        raise OllamakeError(
            f"{file}: the values cannot be set without a change to something else; nothing has been written. Write"
            f" {', '.join(wanted)} as plain lines of the form `key: value`, then run again."
        )
    return edited


def look_up(text: str, wanted: Mapping[str, Value], file: str) -> dict[str, Found]:
    """Return dotted path -> what stands there. Raises OllamakeError for what is no YAML."""
    paths = [parts_of(dotted) for dotted in wanted]
    document = _document(text, paths, file)
    found = {}
    for (dotted, value), path in zip(wanted.items(), paths, strict=True):
        node = None if document is None else _at(document.root, path)
        if node is None:
            found[dotted] = Found(None, None, False)
            continue
        scalar = _behind_alias(node)
        says = scalar.value if scalar.kind == "scalar" and not scalar.is_null else None
        single = node.kind in ("scalar", "alias")
        source = text[behind_properties(text, node) : node.end].rstrip() if single else _KIND_WORDS[node.kind]
        found[dotted] = Found(source, says, _is(node, value))
    return found


def parts_of(dotted: str) -> Path:
    """Return the keys of a dotted path."""
    return tuple(dotted.split("."))


def _document(text: str, paths: Sequence[Path], file: str) -> Document | None:
    """Return the document to edit: the only one, else the only one with a first key of ours; None if there is none at all."""
    documents = read_documents(text, file)
    with_content = [one for one in documents if not one.root.is_null]
    if len(with_content) < 2:
        return next(iter(with_content or documents), None)
    tops = sorted({path[0] for path in paths})
    owners = [one for one in with_content if any(one.root.named(top) for top in tops)]
    if len(owners) == 1:
        return owners[0]
    lines = ", ".join(str(one.root.line) for one in owners or with_content)
    raise OllamakeError(
        f"{file}: of its {len(with_content)} documents (separated by ---), {'several have' if owners else 'none has'} the key"
        f" {' or '.join(tops)} (lines {lines}), so which one to change is not known. Put the key into one of them, or set"
        " rag.keys to keys that are in one only."
    )


def _behind_alias(node: Node) -> Node:
    return node.target if node.kind == "alias" and node.target is not None else node


def _at(root: Node, path: Path) -> Node | None:
    """Return the node at a path, whatever its kind; None where there is none."""
    node = root
    for part in path:
        entries = _behind_alias(node).named(part)
        if not entries:
            return None
        node = entries[-1][1]
    return node


def _is(node: Node, value: Value) -> bool:
    """Whether a node is a value to every reader."""
    node = _behind_alias(node)
    if node.kind != "scalar":
        return False
    if node.style is None and not node.has_tag:
        return plain_value_is(node.value, value)
    return isinstance(value, str) and node.value == value and node.tag == _TEXT


def _with_value(text: str, path: Path, value: Value, paths: Sequence[Path], file: str) -> str:
    document = _document(text, paths, file)
    if document is None:
        return put_at_end(text, len(text), path, value, "  ")
    root = node = key = document.root
    if node.is_null and node.start == node.end:
        return put_at_end(text, document.end, path, value, "  ")
    step, indent, flow = "  ", "", False
    for depth, part in enumerate(path):
        name = ".".join(path[:depth]) or "the whole file"
        _refuse_shared(node, name, file)
        if node.is_null and depth:
            return filled(text, key, node, path[depth:], value, flow, indent, step)
        if node.kind != "mapping":
            raise _wrong_kind(node, name, "mapping", file)
        flow = node.flow
        entries = node.named(part)
        if len(entries) > 1:
            lines = " and ".join(str(one.line) for one, _ in entries)
            raise OllamakeError(
                f"{file}: {'.'.join(path[: depth + 1])} stands there {len(entries)} times (lines {lines}); which one the"
                " application takes is not known. Leave one."
            )
        if not flow:
            indent, step = indent_of(text, node, file), step_of(text, root)
        if not entries:
            if flow:
                return put_into_flow(text, node, path[depth:], value)
            siblings = {other[depth] for other in paths if other[:depth] == path[:depth] and len(other) == depth + 1}
            ours = [one for one in node.entries if one[0].value in siblings] if len(path) == depth + 1 else []
            return put_into_block(text, node, (ours or node.entries)[-1], path[depth:], value, indent, step)
        key, node = entries[0]
    if _is(node, value):
        return text
    name = ".".join(path)
    if node.kind in ("mapping", "sequence"):
        raise _wrong_kind(node, name, "scalar", file)
    if node.kind != "alias":
        _refuse_shared(node, name, file)
    if node.has_tag:
        raise OllamakeError(
            f"{file}, line {node.line}: {name} has the tag {node.tag}, so the application reads it in a way of its own. Remove"
            " the tag, or set this key of rag.keys to null: then it stays yours."
        )
    return replaced(text, key, node, value, flow)


def _wrong_kind(node: Node, name: str, expected: str, file: str) -> OllamakeError:
    found = "nothing" if node.is_null else _KIND_WORDS[node.kind]
    found += f" ({node.value[:40]!r})" if node.kind == "scalar" and node.value else ""
    return OllamakeError(
        f"{file}, line {node.line}: {name}: expected {_KIND_WORDS[expected]}, found {found}. Mend the file, or set rag.keys to"
        " where the application has its values."
    )


def _refuse_shared(node: Node, name: str, file: str) -> None:
    """Refuse what is written once and stands in several places, so that a change would reach all of them."""
    if node.kind == "alias":
        raise OllamakeError(
            f"{file}, line {node.line}: {name} is the alias *{node.anchor} of what stands in line {_behind_alias(node).line}, and"
            f" to change it would change that, too. Write `{{<<: *{node.anchor}}}` in its place: it can have values of its own."
        )
    if node.used_at:
        raise OllamakeError(
            f"{file}, line {node.line}: {name} has the anchor &{node.anchor}, which is used in line"
            f" {', '.join(map(str, node.used_at))}; to change it here would change that, too. Write the values out in one of the"
            " two places."
        )


# Whether it is what was wanted --------------------------------------------------------------------------------------
def _nothing_else(before: str, after: str, paths: Mapping[Path, Value], file: str) -> bool:
    """Whether every reader that could read the text finds the wanted values, and all else as before."""
    for reader in READERS:
        try:
            old = read_documents(before, file, reader)
        except NotYaml:
            continue  # No application reads it with this one either; the first has read it.
        new = read_documents(after, file, reader)
        if _others(old, list(paths)) != _others(new, list(paths)):
            return False
        for path, value in paths.items():
            nodes = [_at(one.root, path) for one in new]
            if not any(node is not None and _is(node, value) for node in nodes):
                return False
    return True


def _others(documents: Sequence[Document], paths: Sequence[Path]) -> list[Any]:
    """Return all that documents say but for the values at paths."""
    rests = [_without(one.root, paths) for one in documents]
    return [rest for rest in rests if rest is not None]


def _without(node: Node, paths: Sequence[Path] = ()) -> Any:
    """Return what a node says, how it is written apart, without the values at paths; None if nothing is left of it."""
    if node.kind == "alias":
        return ("alias", node.anchor)
    if node.kind == "scalar":
        return None if paths and node.is_null else ("scalar", node.anchor, node.tag, node.value)
    if node.kind == "sequence":
        return ("sequence", node.anchor, node.tag, [_without(item) for item in node.items])
    entries = []
    for key, value in node.entries:
        below = [path[1:] for path in paths if key.kind == "scalar" and path[0] == key.value]
        if () in below:
            continue
        rest = _without(value, below)
        if rest is not None or not below:
            entries.append((_without(key), rest))
    return ("mapping", node.anchor, node.tag, entries) if entries or not paths else None
