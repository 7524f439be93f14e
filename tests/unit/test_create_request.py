"""Who may say what a model is in Ollama, and the same said to the API, in a file and in a marker."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollamake.create_request import CreateRequest, compose_request, read_create_request, request_of_marker

ORIGIN = "the base's generation_config.json"


def compose(
    parameters: dict[str, Any], defaults: dict[str, Any], end: str | None = None, template: str | None = None
) -> CreateRequest:
    spec = {"name": "m:q8_0", "system": "S", "license": ["MIT"], "parameters": parameters}
    record = {"template": template, "origin": "said somewhere", "end_of_turn": end}
    return compose_request(spec, "m.gguf", record, defaults)


def test_the_user_wins_over_the_base() -> None:
    request = compose({"temperature": 0}, {"temperature": 0.7, "top_k": 20}, template="T")
    assert request == CreateRequest(
        name="m:q8_0",
        file="m.gguf",
        system="S",
        template="T",
        license=("MIT",),
        parameters={"temperature": 0, "top_k": 20},
        origins={"template": "said somewhere", "temperature": "the configuration", "top_k": ORIGIN},
    )


@pytest.mark.parametrize(
    ("defaults", "end", "stop", "origin"),
    [
        ({}, "<|im_end|>", ["<|im_end|>"], "the end of a turn in the chat template"),
        (
            {"stop": ["</s>"]},
            "<|im_end|>",
            ["<|im_end|>", "</s>"],
            f"the end of a turn in the chat template and {ORIGIN}",
        ),
        ({"stop": ["</s>", "<|im_end|>"]}, "<|im_end|>", ["</s>", "<|im_end|>"], ORIGIN),
        ({"stop": ["</s>"]}, None, ["</s>"], ORIGIN),
        ({}, None, None, None),
    ],
)
def test_the_end_of_a_turn_stops(
    defaults: dict[str, Any], end: str | None, stop: list[str] | None, origin: str | None
) -> None:
    given = json.dumps(defaults)
    request = compose({}, defaults, end)
    assert request.parameters.get("stop") == stop
    assert request.origins.get("stop") == origin
    assert json.dumps(defaults) == given, "what the other quantizations are given, too, was changed"


def test_a_stop_of_the_user_replaces_all_others() -> None:
    request = compose({"stop": ["END"]}, {"stop": ["</s>"], "top_p": 0.8}, "<|im_end|>")
    assert request.parameters == {"stop": ["END"], "top_p": 0.8}
    assert request.origins["stop"] == "the configuration"


def test_request_for_the_api() -> None:
    request = CreateRequest("m:q8_0", "m.gguf", "S", "T", ("MIT", "BSD"), {"top_k": 1}, {"top_k": "somebody"})
    assert request.as_api("ab") == {
        "model": "m:q8_0",
        "files": {"m.gguf": "sha256:ab"},
        "system": "S",
        "template": "T",
        "license": ["MIT", "BSD"],
        "parameters": {"top_k": 1},
        "stream": False,
    }


@pytest.mark.parametrize("empty", [CreateRequest("m", "f"), CreateRequest("m", "f", "", "", [], {})])
def test_an_empty_text_is_none_to_the_api(empty: CreateRequest) -> None:
    assert empty.as_api("ab") == {"model": "m", "files": {"f": "sha256:ab"}, "stream": False}


def test_the_file_has_nothing_that_is_none_or_empty(tmp_path: Path) -> None:
    request = CreateRequest("m", "f")
    assert request.as_json() == {"name": "m", "file": "f"}
    full = CreateRequest("m", "f", "S\r\n", "T", ("MIT",), {"top_k": 1}, {"top_k": "somebody"})
    for one in (request, full):
        (tmp_path / "r.json").write_text(json.dumps(one.as_json()), encoding="utf-8")
        assert read_create_request(tmp_path / "r.json") == one


@pytest.mark.parametrize(
    "request_made",
    [
        CreateRequest("m:q8_0", "m.gguf"),
        CreateRequest("m:q8_0", "m.gguf", "S", "T", ("MIT", "BSD"), {"top_k": 1, "stop": ["a"]}),
    ],
)
def test_a_marker_says_what_was_asked(request_made: CreateRequest) -> None:
    marker = json.loads(json.dumps({"name": "m:q8_0", "request": request_made.as_api("ab" * 32)}))
    assert request_of_marker(marker) == (request_made, "ab" * 32)
