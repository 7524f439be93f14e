"""Somebody else's YAML after an edit: the wanted values, and every other byte as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ollamake.errors import OllamakeError
from ollamake.yaml_edit import look_up, set_values

NAME = "rag:q4_k_m"
MODEL = {"llm.ollama_model": NAME}
HOST = {"llm.ollama_host": "http://gpu:11434"}
TRUE = {"llm.use_finetuned": True}
CONTEXT = {"llm.num_ctx": 8192}

LONG = "x" * 300 + " " + "y" * 300

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "plain": (MODEL, "llm:\n  ollama_model: llama3\n", "llm:\n  ollama_model: rag:q4_k_m\n"),
    "single quotes": (MODEL, "llm:\n  ollama_model: 'llama3'\n", "llm:\n  ollama_model: 'rag:q4_k_m'\n"),
    "double quotes": (MODEL, 'llm:\n  ollama_model: "llama3"\n', 'llm:\n  ollama_model: "rag:q4_k_m"\n'),
    "blanks before a comment": (
        MODEL,
        "llm:\n  ollama_model:   llama3     # 道路\t設計\n",
        "llm:\n  ollama_model:   rag:q4_k_m     # 道路\t設計\n",
    ),
    "CRLF": (
        MODEL | CONTEXT,
        "# 設定\r\nllm:\r\n    ollama_model: a # b\r\nother: [1,  2]\r\n",
        "# 設定\r\nllm:\r\n    ollama_model: rag:q4_k_m # b\r\n    num_ctx: 8192\r\nother: [1,  2]\r\n",
    ),
    "CR": (MODEL, "llm:\r  ollama_model: a\r  b: c\r", "llm:\r  ollama_model: rag:q4_k_m\r  b: c\r"),
    "mixed line ends": (CONTEXT, "llm:\n  a: 1\r\nb: 2\n", "llm:\n  a: 1\r\n  num_ctx: 8192\r\nb: 2\n"),
    "no newline at the end": (MODEL, "llm:\n  ollama_model: a", "llm:\n  ollama_model: rag:q4_k_m"),
    "no newline at the end, one more key": (CONTEXT, "llm:\n  a: 1", "llm:\n  a: 1\n  num_ctx: 8192"),
    "no newline behind a block scalar": (CONTEXT, "llm:\n  a: |\n    x", "llm:\n  num_ctx: 8192\n  a: |\n    x"),
    "a long line": (
        MODEL,
        f"text: {LONG}\nq: \"{LONG}\"\nllm: {{ollama_model: 'a',   note: {LONG}}}\n",
        f"text: {LONG}\nq: \"{LONG}\"\nllm: {{ollama_model: 'rag:q4_k_m',   note: {LONG}}}\n",
    ),
    "lists in two styles": (
        MODEL,
        "a:\n- 1\n-   2\nb:\n    - 1\n    -  2\nllm:\n  list:\n  - x\n  ollama_model: a\n",
        "a:\n- 1\n-   2\nb:\n    - 1\n    -  2\nllm:\n  list:\n  - x\n  ollama_model: rag:q4_k_m\n",
    ),
    "behind a list": (
        CONTEXT,
        "llm:\n  stop:\n  - a\n  -  b # last\n\n# next\nz: 1\n",
        "llm:\n  stop:\n  - a\n  -  b # last\n  num_ctx: 8192\n\n# next\nz: 1\n",
    ),
    "behind an empty item": (
        CONTEXT,
        "llm:\n  stop:\n  - a\n  - # empty\n# c\n\nz: 1\n",
        "llm:\n  stop:\n  - a\n  - # empty\n  num_ctx: 8192\n# c\n\nz: 1\n",
    ),
    "behind an empty value": (CONTEXT, "llm:\n  a:\n\n# c\nz: 1\n", "llm:\n  a:\n  num_ctx: 8192\n\n# c\nz: 1\n"),
    "behind a nested mapping": (
        CONTEXT,
        "llm:\n   deep:\n       er: 1\nz: 1\n",
        "llm:\n   deep:\n       er: 1\n   num_ctx: 8192\nz: 1\n",
    ),
    "beside our other keys": (
        MODEL | CONTEXT,
        "llm:\n  ollama_model: a\n  # how warm\n  temperature: 0.1\n",
        "llm:\n  ollama_model: rag:q4_k_m\n  num_ctx: 8192\n  # how warm\n  temperature: 0.1\n",
    ),
    "odd numbers and words": (
        TRUE,
        "mode: 0755\nold: 010\nx: 0x1F\nt: 12:30\nn: ~\ny: yes\nno: no\nllm: {use_finetuned: no}\n",
        "mode: 0755\nold: 010\nx: 0x1F\nt: 12:30\nn: ~\ny: yes\nno: no\nllm: {use_finetuned: true}\n",
    ),
    "yes is true to some readers only": (TRUE, "llm:\n  use_finetuned: yes\n", "llm:\n  use_finetuned: true\n"),
    "True is true to all": (TRUE, "llm:\n  use_finetuned: True\n", "llm:\n  use_finetuned: True\n"),
    "a text true is not true": (TRUE, "llm:\n  use_finetuned: 'true'\n", "llm:\n  use_finetuned: true\n"),
    "8192 in another spelling": (CONTEXT, "llm:\n  num_ctx: 0x2000\n", "llm:\n  num_ctx: 0x2000\n"),
    "an octal number that is one to some readers only": (
        {"llm.num_ctx": 8},
        "llm:\n  num_ctx: 010\n",
        "llm:\n  num_ctx: 8\n",
    ),
    "a name that some readers take for a number": (
        {"llm.ollama_model": "1:20"},
        "llm:\n  ollama_model: a\n",
        'llm:\n  ollama_model: "1:20"\n',
    ),
    "a name that some readers take for a truth value": (
        {"llm.ollama_model": "on"},
        "llm:\n  ollama_model: a\n",
        'llm:\n  ollama_model: "on"\n',
    ),
    "an empty value": (MODEL, "llm:\n  ollama_model:\n  b: 1\n", "llm:\n  ollama_model: rag:q4_k_m\n  b: 1\n"),
    "an empty value with a comment": (
        MODEL,
        "llm:\n  ollama_model:  # which\n",
        "llm:\n  ollama_model: rag:q4_k_m  # which\n",
    ),
    "null": (MODEL, "llm:\n  ollama_model: ~ # none\n", "llm:\n  ollama_model: rag:q4_k_m # none\n"),
    "a literal": (
        MODEL,
        "llm:\n  ollama_model: |-  # old\n    llama3\n\n\n  b: 1\n",
        "llm:\n  ollama_model: rag:q4_k_m  # old\n\n\n  b: 1\n",
    ),
    "a text over several lines": (
        MODEL,
        'llm:\n  ollama_model: "lla\\\n    ma3" # old\n  b: 1\n',
        'llm:\n  ollama_model: "rag:q4_k_m" # old\n  b: 1\n',
    ),
    "block scalars elsewhere": (
        MODEL,
        "p: |\n  llm:\n    ollama_model: not this\n\nf: >-\n   a\n\n   b\n\nllm:\n  ollama_model: a\n",
        "p: |\n  llm:\n    ollama_model: not this\n\nf: >-\n   a\n\n   b\n\nllm:\n  ollama_model: rag:q4_k_m\n",
    ),
    "behind a block scalar": (
        CONTEXT,
        "llm:\n  prompt: |\n    a\n    b\n\nz: 1\n",
        "llm:\n  prompt: |\n    a\n    b\n  num_ctx: 8192\n\nz: 1\n",
    ),
    "not behind one that keeps its empty lines": (
        CONTEXT,
        "llm: # ours\n  prompt: |+\n    a\n\nz: 1\n",
        "llm: # ours\n  num_ctx: 8192\n  prompt: |+\n    a\n\nz: 1\n",
    ),
    "a missing parent": (MODEL, "a:\n    b: 1\n", "a:\n    b: 1\nllm:\n    ollama_model: rag:q4_k_m\n"),
    "missing parents": ({"app.llm.model": NAME}, "a: 1\n", "a: 1\napp:\n  llm:\n    model: rag:q4_k_m\n"),
    "an empty parent": (
        MODEL | TRUE,
        "llm:   # ours\n  # ollama_model: a\nb: 1\n",
        "llm:   # ours\n  ollama_model: rag:q4_k_m\n  use_finetuned: true\n  # ollama_model: a\nb: 1\n",
    ),
    "a parent that is null": (MODEL, "llm: null\nb: 1\n", "llm:\n  ollama_model: rag:q4_k_m\nb: 1\n"),
    "a parent that is null, with a comment": (MODEL, "llm: ~  # x\n", "llm:   # x\n  ollama_model: rag:q4_k_m\n"),
    "an empty mapping": (MODEL, "llm: {}\n", 'llm: {"ollama_model": "rag:q4_k_m"}\n'),
    "a flow mapping": (
        MODEL | CONTEXT,
        "llm: {a: 1 ,  ollama_model: b} # c\n",
        'llm: {a: 1 ,  ollama_model: "rag:q4_k_m", "num_ctx": 8192} # c\n',
    ),
    "a flow mapping with a comma at its end": (CONTEXT, "llm: {a: 1, }\n", 'llm: {a: 1, "num_ctx": 8192 }\n'),
    "a flow mapping with comments": (
        CONTEXT,
        "llm: {\n    a: 1, # one, two\n    b: [1, 2] # three, four\n  }\n",
        'llm: {\n    a: 1, # one, two\n    b: [1, 2], # three, four\n    "num_ctx": 8192\n  }\n',
    ),
    "a flow mapping with an empty value": (
        MODEL,
        "llm: {ollama_model, b: 1}\n",
        'llm: {ollama_model: "rag:q4_k_m", b: 1}\n',
    ),
    "a flow mapping with an empty parent": (MODEL, "{llm: , b: 1}\n", '{llm: {"ollama_model": "rag:q4_k_m"} , b: 1}\n'),
    "JSON": (
        MODEL | TRUE | CONTEXT,
        '{\n  "llm": {\n    "ollama_model": "a",\n    "use_finetuned": false\n  }\n}\n',
        '{\n  "llm": {\n    "ollama_model": "rag:q4_k_m",\n    "use_finetuned": true,\n    "num_ctx": 8192\n  }\n}\n',
    ),
    "an anchor that nobody uses": (
        MODEL,
        "llm:\n  ollama_model: &m a # b\n",
        "llm:\n  ollama_model: &m rag:q4_k_m # b\n",
    ),
    "an alias gets a value of its own": (
        MODEL,
        "m: &m a\nllm:\n  ollama_model: *m # b\nx: *m\n",
        "m: &m a\nllm:\n  ollama_model: rag:q4_k_m # b\nx: *m\n",
    ),
    "a value of its own beside a merge key": (
        MODEL,
        "d: &d\n  ollama_model: a\nllm:\n  <<: *d\n  b: 1\nother:\n  <<: *d\n",
        "d: &d\n  ollama_model: a\nllm:\n  <<: *d\n  b: 1\n  ollama_model: rag:q4_k_m\nother:\n  <<: *d\n",
    ),
    "document markers": (
        MODEL,
        "%YAML 1.2\n---\n# c\nllm:\n  ollama_model: a\n...\n",
        "%YAML 1.2\n---\n# c\nllm:\n  ollama_model: rag:q4_k_m\n...\n",
    ),
    "the document that has the key": (
        MODEL | CONTEXT,
        "a: 1\n---\nllm:\n  ollama_model: b\n---\nllm2: 3\n",
        "a: 1\n---\nllm:\n  ollama_model: rag:q4_k_m\n  num_ctx: 8192\n---\nllm2: 3\n",
    ),
    "an empty file": (MODEL | CONTEXT, "", "llm:\n  ollama_model: rag:q4_k_m\n  num_ctx: 8192\n"),
    "comments only": (MODEL, "# 何もない", "# 何もない\nllm:\n  ollama_model: rag:q4_k_m"),
    "an empty document": (MODEL, "---\n# c\n...\n", "---\n# c\nllm:\n  ollama_model: rag:q4_k_m\n...\n"),
    "a key in quotes": (MODEL, "'llm':\n  \"ollama_model\" : a\n", "'llm':\n  \"ollama_model\" : rag:q4_k_m\n"),
    "tags of the application": (
        MODEL,
        "a: !env X\nllm:\n  key: !secret y\n  ollama_model: a\n",
        "a: !env X\nllm:\n  key: !secret y\n  ollama_model: rag:q4_k_m\n",
    ),
    "a root that is indented": (
        CONTEXT,
        "  llm:\n     a: 1\n  b: 2\n",
        "  llm:\n     a: 1\n     num_ctx: 8192\n  b: 2\n",
    ),
    "Japanese keys and values": (
        {"設定.モデル": NAME},
        "設定:\n  モデル: 道路　設計　# 全角\n  他: 値\n",
        "設定:\n  モデル: rag:q4_k_m\n  他: 値\n",
    ),
    "beyond the first plane": (
        MODEL,
        "n: 𠮷野家 👨‍👩‍👧\nllm: {ollama_model: 𠮷}\n",
        'n: 𠮷野家 👨‍👩‍👧\nllm: {ollama_model: "rag:q4_k_m"}\n',
    ),
    "a comment with tabs": (
        MODEL,
        "#\t\tx\nllm:\n  ollama_model: a #\tb\t\n",
        "#\t\tx\nllm:\n  ollama_model: rag:q4_k_m #\tb\t\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_other_byte_stays(case: str) -> None:
    wanted, before, after = CASES[case]
    assert set_values(before, wanted, "c.yaml") == after
    assert set_values(after, wanted, "c.yaml") == after
    assert all(found.as_wanted for found in look_up(after, wanted, "c.yaml").values())


REFUSED: dict[str, tuple[str, list[str]]] = {
    "a list in place of keys": ("a: 1\nllm: [a]\n", ["c.yaml, line 2: llm: expected keys with values, found a list"]),
    "a text in place of keys": ("llm: gpt\n", ["line 1: llm: expected keys with values, found a single value ('gpt')"]),
    "keys in place of a value": (
        "llm:\n  ollama_model:\n    a: 1\n",
        ["line 3: llm.ollama_model: expected a single value"],
    ),
    "a list for the whole file": ("- a\n", ["line 1: the whole file: expected keys with values, found a list"]),
    "no YAML": ("a: 1\nllm: {a: [\n", ["c.yaml, line ", "this is no YAML"]),
    "a tab for indentation": ("llm:\n\tollama_model: a\n", ["c.yaml, line 2", "no YAML"]),
    "the same key twice": (
        "llm:\n  ollama_model: a\n  ollama_model: b\n",
        ["llm.ollama_model", "2 times (lines 2 and 3)"],
    ),
    "the same parent twice": ("llm: {}\nb: 1\nllm: {}\n", ["llm stands there 2 times (lines 1 and 3)"]),
    "an anchor that others use": (
        "llm:\n  ollama_model: &m a\nx: *m\n",
        ["line 2: llm.ollama_model has the anchor &m, which is used in line 3"],
    ),
    "a parent that others use": ("llm: &l\n  a: 1\nx:\n  <<: *l\n", ["llm has the anchor &l, which is used in line 4"]),
    "a parent that is an alias": ("d: &d\n  a: 1\nllm: *d\n", ["line 3: llm is the alias *d", "line 1", "{<<: *d}"]),
    "a tag of the application": ("llm:\n  ollama_model: !env MODEL\n", ["line 2: llm.ollama_model has the tag !env"]),
    "two documents with the key": (
        "llm: {}\n---\nllm: {}\n",
        ["of its 2 documents", "several have the key llm (lines 1, 3)"],
    ),
    "two documents without the key": ("a: 1\n---\nb: 1\n", ["of its 2 documents", "none has the key llm"]),
    "an alias of nothing": ("llm: *x\n", ["line 1: the alias *x stands for nothing"]),
    "complex keys": ("? llm\n: {a: 1}\n", ["line 1: expected a key at the beginning of its line, found '?'"]),
    "a control character": ("llm: {a: \x1b[0m}\n", ["c.yaml", "no YAML"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_file_line_and_key(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(OllamakeError) as error:
        set_values(text, MODEL, "c.yaml")
    for word in words:
        assert word in str(error.value)


def test_what_stands_there() -> None:
    text = 'h: &h "http://a"\nllm:\n  ollama_host: *h\n  num_ctx: 4_096 # c\n  use_finetuned: {a: 1}\n'
    found = look_up(text, HOST | CONTEXT | TRUE | MODEL, "c.yaml")
    host, context, truth, model = (found[key] for key in (*HOST, *CONTEXT, *TRUE, *MODEL))
    assert (host.source, host.text, host.as_wanted) == ("*h", "http://a", False)
    assert (context.source, context.as_wanted) == ("4_096", False)
    assert (truth.source, truth.text) == ("keys with values", None)
    assert (model.source, model.text, model.as_wanted) == (None, None, False)


# Generated ----------------------------------------------------------------------------------------------------------
ODD = ["llm", "a", "b c", "ollama_model", "道路", "yes", "010", "#x", "x: y", "- z", "'", '"', "\n", "", "1:20", "a, b"]
WORDS = st.sampled_from(ODD)
TEXTS = st.text("ab: #-'\"道\n\t", max_size=12)
SCALARS = st.one_of(WORDS, st.booleans(), st.none(), st.integers(-9, 99), TEXTS, st.floats(0, 1))
KEYS = st.one_of(WORDS, st.text("ab道 ", max_size=3))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
FILES = st.dictionaries(st.sampled_from(["a", "z", "道路", "x y", "0"]), TREES, max_size=4)
OURS = ["ollama_model", "ollama_host", "num_ctx", "use_finetuned"]
SECTIONS = st.one_of(st.none(), st.dictionaries(st.sampled_from(["k", "道", *OURS]), SCALARS, max_size=5))
WANTED = TRUE | MODEL | HOST | CONTEXT


def section_of(text: str) -> tuple[int, int, list[tuple[int, int]]]:
    """Return where PyYAML finds the section `llm`, and where its pieces are that are not our values; all may be empty."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in root.value if root is not None else []:
        if key.value == "llm" and key.tag.endswith(":str"):
            first, last = key.start_mark.index, max(value.end_mark.index, key.end_mark.index)
            if not isinstance(value, yaml.MappingNode):
                return first, last, []
            ours = [one for name, one in value.value if name.value in OURS]
            begins = [value.start_mark.index, *(one.end_mark.index for one in ours)]
            ends = [*(one.start_mark.index for one in ours), last - value.flow_style]
            return first, last, list(zip(begins, ends, strict=True))
    end = text.rindex("}") if root is not None and root.flow_style else len(text)
    return end, end, []


def assert_only_ours_changed(before: str, after: str) -> None:
    """Outside the section every character is as before; in it every line, but for our values, is still there, in order."""
    first, last, pieces = section_of(before)
    assert after.startswith(before[:first])
    assert after.endswith(before[last:])
    position = first
    for begin, end in pieces:
        for line in before[begin:end].splitlines():
            found = after.find(line.strip(), position)
            assert found >= 0, (line, after)
            position = found + len(line.strip())


@settings(deadline=None, max_examples=80)
@given(
    data=FILES,
    section=st.one_of(st.just("none"), SECTIONS),
    flow=st.sampled_from([None, True, False]),
    layout=st.tuples(st.integers(2, 6), st.integers(20, 90), st.sampled_from(["\n", "\r\n"]), st.booleans()),
    first=st.booleans(),
)
def test_pyyaml_reads_only_the_wanted_change(
    data: dict[str, Any], section: Any, flow: bool | None, layout: tuple[int, int, str, bool], first: bool
) -> None:
    if section != "none":
        data = {"llm": section} | data if first else data | {"llm": section}
    indent, width, line_break, ends = layout
    text = yaml.safe_dump(
        data,
        default_flow_style=flow,
        indent=indent,
        width=width,
        allow_unicode=True,
        sort_keys=False,
        line_break=line_break,
    )
    text = "# 設定\t" + line_break + (text if ends else text.removesuffix(line_break))
    after = set_values(text, WANTED, "c.yaml")
    # PyYAML does not always read what it has written.
    data = yaml.safe_load(text)
    expected = data | {
        "llm": (data.get("llm") or {}) | {key.removeprefix("llm."): value for key, value in WANTED.items()}
    }
    assert json.dumps(yaml.safe_load(after)) == json.dumps(reordered(expected, yaml.safe_load(after)))
    assert_only_ours_changed(text, after)
    assert set_values(after, WANTED, "c.yaml") == after


def reordered(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return what is expected with new keys where they are found: their place is free, all others keep theirs."""
    section = {key: expected["llm"][key] for key in found["llm"]}
    assert len(section) == len(expected["llm"])
    return expected | {"llm": section}
