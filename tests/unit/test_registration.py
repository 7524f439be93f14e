"""What a server says is compared as values, not as text; the printed command fits where the model is."""

from pathlib import Path
from typing import Any

import pytest

from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.registration import _differences, _from_go, chat_command
from ollamake.store_server import serving


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("-1", -1),
        ("true", True),
        ('"<|im_end|>"', "<|im_end|>"),
        (r'"a\nb\t\"c\\"', 'a\nb\t"c\\'),
        (r'"\x00\u3000\U0001f642"', "\x00\u3000🙂"),
        (r'"\a\v"', "\x07\x0b"),
    ],
)
def test_go_literals(text: str, value: Any) -> None:
    assert _from_go(text) == value


def test_equal_values_in_another_order_and_spelling_are_no_difference() -> None:
    request = CreateRequest("m", "f", "S", None, {"temperature": 1.0, "stop": ["a", "b"]})
    assert (
        list(
            _differences(request, "d", "d", "S", "chosen by the server", {"temperature": ["1"], "stop": ['"b"', '"a"']})
        )
        == []
    )


def test_each_difference_is_named() -> None:
    request = CreateRequest("m", "f", "S", "T", {"temperature": 0.1, "stop": ["a"]})
    found = list(_differences(request, "d", "e", "s", "t", {"temperature": ["0.2"]}))
    assert [line.split(":")[0] for line in found] == ["weights", "system", "template", "temperature", "stop"]


@pytest.mark.parametrize(
    ("marker", "command"),
    [
        ({"target": "server", "host": "http://127.0.0.1:11434", "name": "m:q8_0"}, "ollama run m:q8_0"),
        (
            {"target": "server", "host": "http://gpu:11434", "name": "m:q8_0"},
            "OLLAMA_HOST=http://gpu:11434 ollama run m:q8_0",
        ),
        ({"target": "store", "store": "s", "name": "m"}, "python scripts/chat.py 'a b/registered.json'"),
    ],
)
def test_chat_command(marker: dict[str, Any], command: str) -> None:
    assert chat_command(marker, "a b/registered.json", "scripts/chat.py") == command


def test_serving_without_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(OllamakeError, match=r"`ollama` is not on PATH.*OLLAMA_MODELS="),
        serving(tmp_path, tmp_path / "log"),
    ):
        pass


def test_serving_with_an_ollama_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(OllamakeError, match="did not start"), serving(tmp_path, tmp_path / "log"):
        pass
