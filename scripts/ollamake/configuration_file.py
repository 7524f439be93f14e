"""A configuration file as what it says, or what is wrong with it and in which line, whoever wrote it.

Snakemake's own reader takes the last of two equal keys, says of a syntax error only that there is one, and runs the Python
that `__use_yte__` brings. Here the file is YAML 1.1 or JSON as there; nothing in it is run, left out or expanded without bound.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ollamake.errors import OllamakeError
from ollamake.text_encoding import guess

LARGEST = 4 * 2**20
"""Bytes of a configuration file; a thousand models are a quarter of it."""
DEEPEST = 64
"""Levels of keys and lists within each other, through aliases, too; the schema has eight."""
MOST_VALUES = 500_000
"""Values of a file once its aliases are written out."""

# libyaml, where PyYAML was built with it, is ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp")}
_MERGE = f"{_TAG}merge"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffe\uffff]")
"""What cannot stand in YAML as it is."""


def read_configuration_file(file: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML or JSON file. Raises OllamakeError that names it and, of YAML, line and column."""
    text = _text(file)
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _object(file, pairs))
    except (ValueError, RecursionError):
        content = _Yaml(file, text).content()
    if not isinstance(content, dict):
        raise OllamakeError(
            f"{file}: expected keys with values, `models:` among them; found {_kind(content)}. config/config.yaml is an example."
        )
    if "__use_yte__" in content:
        raise OllamakeError(
            f"{file}: __use_yte__ has expressions of a configuration run as Python. A configuration only says what to build, so"
            " that one from somebody else can be read: write the values themselves."
        )
    return content


def _text(file: Path) -> str:
    if not file.is_file():
        what = "is no regular file" if file.exists() else "does not exist"
        raise OllamakeError(
            f"the configuration {str(file)!r} {what} (looked from {Path.cwd()}). Expected YAML or JSON."
        )
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise OllamakeError(f"{file} cannot be read: {os.strerror(error.errno or 0)}.") from error
    if len(content) > LARGEST:
        raise OllamakeError(
            f"{file} has {file.stat().st_size:,} bytes, and a configuration at most {LARGEST:,}. Is it another file? A long text,"
            " such as a system prompt or a license, can stand in a file of its own: `{file: PATH}`."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        likely = guess(content[:4096], content[content.rfind(b"\n", 0, error.start) + 1 :][:4096])
        advice = (
            f"It looks like {likely[0]}: convert it (`iconv -f {likely[1]} -t UTF-8 {file.name}`)."
            if likely
            else "Save it as UTF-8."
        )
        raise OllamakeError(
            f"{file}, line {line}: expected UTF-8; found byte 0x{content[error.start]:02X}. {advice}"
        ) from error


def _object(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise OllamakeError(
            f"{file}: the key {twice!r} stands twice in one object. Only one of them can be meant: remove the other."
        )
    return content


def _kind(content: object) -> str:
    if content is None:
        return "nothing but comments or blank lines"
    return "a list" if isinstance(content, list) else f"only {_shown(str(content))}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")


class _Yaml:
    """The text of a YAML file, and what is wrong in which line of it."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._text = text
        self._measured: dict[int, tuple[int, int]] = {}
        """Of each node that was looked at: how many values it has with aliases written out, and how many levels."""

    def content(self) -> Any:
        """Return what the text says. Raises OllamakeError."""
        if found := _CONTROL.search(self._text):
            self._fail(
                f"the character U+{ord(found[0]):04X} cannot stand in YAML as it is. Write it as an escape in double quotes",
                found.start(),
            )
        loader = None
        try:
            self._require_flat()
            loader = _Loader(self._text)
            node = loader.get_single_node()
            if node is None:
                return None
            self._loader = loader
            self._measure(node, ())
            return loader.construct_document(node)
        except yaml.YAMLError as error:
            self._explain(error)
        finally:
            if loader is not None:
                loader.dispose()

    def _require_flat(self) -> None:
        """Refuse, before anything descends into it, what is nested deeper than any configuration."""
        depth = 0
        for event in yaml.parse(self._text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                self._fail(
                    f"keys and lists are nested more than {DEEPEST} levels deep here. Check the brackets and the indentation",
                    event,
                )

    def _measure(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> tuple[int, int]:
        """Return how many values and levels a node has. Raises OllamakeError for what no configuration has."""
        if any(node is one for one in above):
            self._fail(
                "an alias stands within what it is an alias for: this would be without end. Write out what is meant",
                node,
            )
        if id(node) not in self._measured:
            if isinstance(node, yaml.ScalarNode):
                self._check_scalar(node)
                self._measured[id(node)] = 1, 0
                return 1, 0
            if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
                self._refuse_tag(node)
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
                parts = [value for _, value in node.value]
            else:
                parts = node.value
            inner = [self._measure(part, (*above, node)) for part in parts]
            self._measured[id(node)] = (
                1 + sum(size for size, _ in inner),
                1 + max((levels for _, levels in inner), default=0),
            )
        size, levels = self._measured[id(node)]
        if size > MOST_VALUES:
            self._fail(
                f"with its aliases written out this has {size:,} values, and a configuration at most {MOST_VALUES:,}. Write out"
                " what is meant",
                node,
            )
        if len(above) + levels > DEEPEST:
            self._fail(
                f"with its aliases written out this is nested more than {DEEPEST} levels deep. Write out what is meant",
                node,
            )
        return size, levels

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        if node.tag not in _SCALARS:
            self._refuse_tag(node)
        try:
            self._loader.construct_object(node)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
            kind = node.tag.removeprefix(_TAG)
            self._fail(f"{_shown(node.value)} cannot be read as {kind}. If a text is meant, put it in quotes", node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._fail("a list or keys with values stand where a key is expected, which is a text", key)
            if key.tag == _MERGE:
                continue
            if key.tag != f"{_TAG}str":
                kind = key.tag.removeprefix(_TAG)
                self._fail(
                    f"YAML reads the key {_shown(key.value)} as {kind}. Put it in quotes: {_quoted(key.value)}", key
                )
            if key.value in seen:
                first = seen[key.value].start_mark.line + 1
                self._fail(
                    f"the key {_shown(key.value)} stands there a second time; the first is in line {first}. Only one of them can"
                    " be meant: remove the other, or put what is below both together",
                    key,
                )
            seen[key.value] = key

    def _refuse_tag(self, node: yaml.Node) -> NoReturn:
        tag = node.tag.replace(_TAG, "!!", 1)
        self._fail(
            f"the tag {_shown(tag)} has no meaning here, and nothing is made or run for it. A configuration has texts, numbers,"
            " true, false, null, lists and keys with values",
            node,
        )

    def _explain(self, error: yaml.YAMLError) -> NoReturn:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        context = getattr(error, "context", None)
        advice = next(
            (hint for sign, hint in _ADVICE.items() if sign in problem),
            "Check quotes, brackets and indentation there and just before",
        )
        self._fail(f"this is neither YAML nor JSON: {problem}{f' ({context})' if context else ''}. {advice}", mark)

    def _fail(self, problem: str, place: Any) -> NoReturn:
        mark = getattr(place, "start_mark", place)
        if isinstance(mark, int):
            begin = self._text.rfind("\n", 0, mark) + 1
            line, column = self._text.count("\n", 0, mark), mark - begin
        elif mark is not None:
            line, column = mark.line, mark.column
        else:
            raise OllamakeError(f"{self._file}: {problem}.")
        there = [*self._text.split("\n"), ""][line].strip("\r ")
        raise OllamakeError(
            f"{self._file}, line {line + 1}, column {column + 1}: {problem}. There stands: {_shown(there)}"
        )


_ADVICE = {
    "'\\t'": "YAML is indented by spaces: replace the tab",
    "cannot start any token": "Put a text that begins with such a character in quotes. YAML is indented by spaces, not by tabs",
    "mapping values are not allowed": "Put a text that has a colon and a space in quotes; or the indentation is wrong",
    "undefined alias": "A text that begins with * stands in quotes",
    "but found another document": "A configuration is one document: remove the line ---",
}
"""What to do, by what libyaml and PyYAML say."""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
