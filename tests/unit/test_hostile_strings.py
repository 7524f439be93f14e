"""Every text of the configuration as somebody hostile would write it: it is taken as it is, or refused with its key named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fuzzed_configuration import HOSTILE_TEXTS, SCHEMA, schema

from ollamake.configuration import read_configuration
from ollamake.errors import OllamakeError

NEEDED: dict[str, Any] = {"base": "base"}
BESIDE: dict[str, dict[str, Any]] = {"file": {}, "path": {}, "name": {"memory_gib": 8}}
"""What must stand beside a key for the rest to be right."""
TEXTS = ("system", "template", "license", "parameters")


def text_keys(part: Mapping[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every text that the schema allows and that is no word of a list; [] is an item, * any name."""
    if "$ref" in part:
        part = schema()["$defs"][part["$ref"].removeprefix("#/$defs/")]
    kinds = part["type"] if isinstance(part["type"], list) else [part["type"]]
    if "string" in kinds and "enum" not in part and "pattern" not in part:
        yield place
    if "items" in part:
        yield from text_keys(part["items"], (*place, "[]"))
    for key, inner in part.get("properties", {}).items():
        yield from text_keys(inner, (*place, key))
    others = part.get("additionalProperties")
    if isinstance(others, Mapping):
        yield from text_keys(others, (*place, "m"))
    elif place[-1:] == ("parameters",):
        yield (*place, "stop")


def configured(place: tuple[str, ...], text: str) -> dict[str, Any]:
    """Return a configuration that is right but for ``text`` at ``place``."""
    value: Any = text
    for key in reversed(place):
        value = [value] if key == "[]" else {**BESIDE.get(key, {}), key: value}
    content: dict[str, Any] = value
    model = content.setdefault("models", {}).setdefault("m", {})
    content["models"]["m"] = NEEDED | model
    for section in ("rag",):
        if section in model:
            model[section].setdefault("file", "rag.yaml")
    return content


PLACES = [place for place in text_keys(schema()) if place[0] != "defaults"]


def test_all_texts_of_the_schema_are_tried() -> None:
    assert len(PLACES) > 30
    for place in (("models", "m", "base"), ("ollama", "host"), ("models", "m", "ollama", "license", "[]", "file")):
        assert place in PLACES


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_taken_or_refused(place: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rag.yaml").write_text("llm: {}\n")
    refusals: dict[str, str] = {}
    for text in HOSTILE_TEXTS:
        try:
            read_configuration(configured(place, text), SCHEMA)
        except OllamakeError as error:
            refusals[text] = str(error)
    key = [part for part in place if part != "[]"][-1]
    assert [text for text, message in refusals.items() if key not in message] == []
    assert [path.name for path in tmp_path.iterdir()] == ["rag.yaml"]


@pytest.mark.parametrize(
    "place", [place for place in PLACES if not set(TEXTS) & set(place) or place[-1] == "file"], ids=".".join
)
@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "\x1b[2J", "x" * 300, "\ud800", "-rf"], ids=ascii)
def test_what_no_path_and_no_name_has_is_refused(place: tuple[str, ...], text: str) -> None:
    with pytest.raises(OllamakeError) as caught:
        read_configuration(configured(place, text), SCHEMA)
    assert [part for part in place if part != "[]"][-1] in str(caught.value)


def test_a_text_for_people_is_taken_as_it_is() -> None:
    """Quotes, lines and what would end a Modelfile's text: see test_create_request and test_modelfile for what becomes of it."""
    system = 'A"""\nFROM evil\nSYSTEM """$(touch PWNED)\x1b[2J-'
    model = read_configuration({"models": {"m": NEEDED | {"ollama": {"system": system}}}}, SCHEMA).models["m"]
    assert model.system == system
