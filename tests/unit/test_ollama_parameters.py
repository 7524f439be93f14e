"""Parameters that Ollama would accept and choke on later are refused here."""

from typing import Any

import pytest

from ollamake.errors import OllamakeError
from ollamake.ollama_parameters import checked_parameters


def test_normal_form() -> None:
    given = {"temperature": 0, "top_p": 0.95, "num_ctx": 4096.0, "stop": "<|im_end|>", "use_mmap": True}
    expected = {"temperature": 0, "top_p": 0.95, "num_ctx": 4096, "stop": ["<|im_end|>"], "use_mmap": True}
    checked = checked_parameters(given, "p")
    assert checked == expected
    assert isinstance(checked["num_ctx"], int)
    assert checked_parameters({"stop": ["a", "b"], "num_predict": -1, "seed": -5}, "p")["stop"] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temprature", 1, "Did you mean temperature"),
        ("numa", True, "not a parameter"),
        ("zzzzzz", 1, "Known: num_ctx"),
        ("temperature", "hot", "expected a number; found 'hot'"),
        ("temperature", -0.1, "expected at least 0"),
        ("temperature", float("nan"), "expected a number"),
        ("temperature", True, "expected a number"),
        ("top_p", 1.5, "expected 0 to 1"),
        ("num_ctx", 0, "at least 1"),
        ("num_ctx", 1.5, "whole number"),
        ("num_ctx", True, "whole number"),
        ("top_k", "40", "whole number"),
        ("stop", [], "a text or a list"),
        ("stop", [""], "none of them empty"),
        ("stop", 5, "a text or a list"),
        ("use_mmap", 1, "true or false"),
    ],
)
def test_refusals(name: str, value: Any, words: str) -> None:
    with pytest.raises(OllamakeError) as caught:
        checked_parameters({name: value}, "models.m.ollama.parameters")
    assert str(caught.value).startswith(f"models.m.ollama.parameters.{name}")
    assert words in str(caught.value)
