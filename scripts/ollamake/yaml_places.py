"""Where in the text of a YAML file something is replaced or put in, and what it looks like there.

Works on positions that a reader gave (yaml_tree); knows nothing of what is wanted, and checks nothing: yaml_edit does.
"""

from __future__ import annotations

import json
import re

from ollamake.errors import OllamakeError
from ollamake.yaml_tree import Node, plain_value_is

Value = bool | int | str
Path = tuple[str, ...]

_BREAK = re.compile(r"\r\n|\n|\r")
_PROPERTY = re.compile(r"[&!][^\s,\[\]{}]*(?:\s++|#[^\r\n]*+)*+")
_COMMA = re.compile(r"(?:\s++|#[^\r\n]*+)*+,")
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./:@+~-]*(?<!:)")
_BLOCK_HEADER = re.compile(r"[|>][-+0-9]*")
_BEYOND_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")
"""Characters that JSON lets stand and YAML does not, or takes for line breaks."""


# What is written ----------------------------------------------------------------------------------------------------
def written(value: Value, style: str | None = None, flow: bool = False) -> str:
    """Return a value as YAML, in the quotes that it had; plain only where every reader takes it for what it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if style == "'" and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    if style != '"' and not flow and _PLAIN.fullmatch(value) and plain_value_is(value, value):
        return value
    return _BEYOND_JSON.sub(lambda one: f"\\u{ord(one[0]):04x}", json.dumps(value, ensure_ascii=False))


def block_lines(path: Path, value: Value, indent: str, step: str, line_break: str) -> str:
    """Return a path in block style, a line for each part, without the last line break."""
    lines = [f"{indent}{step * depth}{written(part)}:" for depth, part in enumerate(path)]
    return f"{line_break.join(lines)} {written(value)}"


def flow_entry(path: Path, value: Value) -> str:
    """Return a path in flow style, which is JSON as far as it goes."""
    *outer, last = (written(part, flow=True) for part in path)
    return "".join(f"{part}: {{" for part in outer) + f"{last}: {written(value, flow=True)}" + "}" * len(outer)


# Where it is written ------------------------------------------------------------------------------------------------
def replaced(text: str, key: Node, node: Node, value: Value, flow: bool) -> str:
    """Return the text with the scalar or alias ``node`` replaced."""
    start = behind_properties(text, node)
    if node.style in ("|", ">"):
        # The comment behind the sign stays, the lines of the text go.
        header = _BLOCK_HEADER.match(text, start)
        header_end, line_end = header.end() if header else start, _line_end(text, start)
        content_end = max(line_end, len(text[: node.end].rstrip()))
        return text[:start] + written(value, flow=flow) + text[header_end:line_end] + text[content_end:]
    word = written(value, node.style, flow)
    if start == node.end:
        colon = "" if ":" in text[key.end : node.start] else ":"
        word = f"{colon}{'' if not colon and text[start - 1].isspace() else ' '}{word}"
    return text[:start] + word + text[node.end :]


def filled(text: str, key: Node, node: Node, rest: Path, value: Value, flow: bool, indent: str, step: str) -> str:
    """Return the text with a path below ``key``, whose value ``node`` is empty or null."""
    start = behind_properties(text, node)
    if flow:
        colon = "" if ":" in text[key.end : node.start] else ":"
        blank = "" if not colon and text[start - 1].isspace() else " "
        return text[:start] + f"{colon}{blank}{{{flow_entry(rest, value)}}}" + text[node.end :]
    if not text[node.end : _line_end(text, node.end)].strip():
        start = len(text[:start].rstrip(" \t"))
    text = text[:start] + text[node.end :]
    return _with_line_after(text, start, block_lines(rest, value, indent + step, step, line_break_at(text, start)))


def put_into_block(
    text: str, mapping: Node, behind: tuple[Node, Node], rest: Path, value: Value, indent: str, step: str
) -> str:
    """Return the text with a path behind an entry of a mapping in block style."""
    end = _end_of(text, *behind)
    position = mapping.entries[0][0].start if end is None else end
    lines = block_lines(rest, value, indent, step, line_break_at(text, position))
    if end is not None:
        return _with_line_after(text, end, lines)
    start = position - len(indent)
    return text[:start] + lines + line_break_at(text, position) + text[start:]


def put_into_flow(text: str, mapping: Node, rest: Path, value: Value) -> str:
    """Return the text with a path behind the last entry of a mapping in flow style, on a line of its own if that has one."""
    entry = flow_entry(rest, value)
    if not mapping.entries:
        inside = behind_properties(text, mapping) + 1
        return text[:inside] + entry + text[inside:]
    key, last = mapping.entries[-1]
    end = max(key.end, last.end)
    comma = _COMMA.match(text, end, mapping.end)
    behind = comma.end() if comma else end
    before = text[:behind] + ("" if comma else ",")
    indent = text[len(text[: key.start].rstrip(" \t")) : key.start]
    if not text[: key.start - len(indent)].endswith(("\n", "\r")):
        return before + f" {entry}" + text[behind:]
    line_end = _line_end(text, behind)
    if mapping.end <= line_end:
        return before + line_break_at(text) + indent + entry + text[behind:]
    rest_of_line = text[behind:line_end]
    return before + rest_of_line + line_break_at(text, behind) + indent + entry + ("," * bool(comma)) + text[line_end:]


def put_at_end(text: str, position: int, rest: Path, value: Value, step: str) -> str:
    """Return the text with a path at the end of an empty document."""
    before, after = text[:position], text[position:]
    broken = not before or before.endswith(("\n", "\r"))
    line_break = line_break_at(text)
    lines = block_lines(rest, value, "", step, line_break)
    return before + ("" if broken else line_break) + lines + (line_break if after or broken else "") + after


def behind_properties(text: str, node: Node) -> int:
    """Return where a node begins behind its anchor and tag."""
    position = node.start
    while node.kind != "alias" and position < node.end and (found := _PROPERTY.match(text, position, node.end)):
        position = found.end()
    return position


def indent_of(text: str, mapping: Node, file: str) -> str:
    """Return the blanks before the keys of a mapping in block style. Raises OllamakeError if there is something else."""
    key = mapping.entries[0][0]
    before = _before(text, key)
    if before.strip(" "):
        raise OllamakeError(
            f"{file}, line {key.line}: expected a key at the beginning of its line, found {before.strip()!r} before it. Write"
            " it as `key: value`, or set rag.keys to keys of another place."
        )
    return before


def step_of(text: str, root: Node) -> str:
    """Return by how many blanks the first nested mapping is indented; two where there is none."""
    inner = [value for _, value in root.entries if value.kind == "mapping" and not value.flow] if not root.flow else []
    steps = [len(_before(text, value.entries[0][0])) - len(_before(text, root.entries[0][0])) for value in inner]
    return " " * next((step for step in steps if step > 0), 2)


def _before(text: str, node: Node) -> str:
    """Return what stands in the line of a node before it."""
    return text[max(text.rfind("\n", 0, node.start), text.rfind("\r", 0, node.start)) + 1 : node.start]


def line_break_at(text: str, position: int = 0) -> str:
    """Return the break that ends the line of a position; the text's first one where it ends without."""
    found = _BREAK.search(text, position) or _BREAK.search(text)
    return found[0] if found else "\n"


def _line_end(text: str, position: int) -> int:
    found = _BREAK.search(text, position)
    return found.start() if found else len(text)


def _with_line_after(text: str, position: int, lines: str) -> str:
    """Return the text with lines behind the line of ``position``."""
    found = _BREAK.search(text, position)
    if found is None:
        return text + line_break_at(text) + lines
    return text[: found.end()] + lines + found[0] + text[found.end() :]


def _end_of(text: str, key: Node | None, node: Node) -> int | None:
    """Return where the content of an entry ends; None if what follows it on the next lines could belong to it."""
    if node.kind == "mapping" and not node.flow:
        return _end_of(text, *node.entries[-1])
    if node.kind == "sequence" and not node.flow:
        return _end_of(text, None, node.items[-1])
    if key is None and node.start == node.end:
        # A reader says of an empty item only where the next thing begins.
        lines = text[: node.start].splitlines(keepends=True)
        while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
            lines.pop()
        return len("".join(lines).rstrip())
    if node.style in ("|", ">"):
        content = len(text[: node.end].rstrip())
        header = _BLOCK_HEADER.match(text, behind_properties(text, node))
        keeps = header is None or "+" in header[0]
        return None if keeps or content == len(text) or text[content : node.end].strip("\r\n") else content
    return max(node.end, key.end if key is not None else 0)
