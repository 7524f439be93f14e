"""Names in Ollama: what a configuration's name becomes, and what Ollama would not take."""

import pytest

from ollamake.errors import OllamakeError
from ollamake.ollama_name import manifest_path, registered_name

TWO = ("Q4_K_M", "Q8_0")


@pytest.mark.parametrize(
    ("name", "quantizations", "expected"),
    [
        ("rag", TWO, "rag:q4_k_m"),
        ("RAG", TWO, "rag:q4_k_m"),
        ("me/rag", TWO, "me/rag:q4_k_m"),
        ("host.example:5000/me/rag", TWO, "host.example:5000/me/rag:q4_k_m"),
        ("rag:v1", ("Q4_K_M",), "rag:v1"),
        ("rag:v1-{quant}", TWO, "rag:v1-q4_k_m"),
        ("rag-{quant}", TWO, "rag-q4_k_m:latest"),
    ],
)
def test_registered_name(name: str, quantizations: tuple[str, ...], expected: str) -> None:
    assert registered_name(name, "Q4_K_M", quantizations, "key") == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rag:v1", "2 quantizations"),
        ("rag-{size}", "{size}"),
        ("rag-{quant", "'{quant'"),
        ("日本", "not a name"),
        ("a b", "not a name"),
        ("../x", "not a name"),
        ("a/b/c/d", "not a name"),
        ("x" * 81, "not a name"),
        ("n.s/x/y/z", "not a name"),
        ("rag@sha256-1", "not a name"),
        ("x-{quant}:cloud", "place to run"),
        ("x-{quant}:my-cloud", "place to run"),
    ],
)
def test_refusals(name: str, words: str) -> None:
    with pytest.raises(OllamakeError) as caught:
        registered_name(name, "Q4_K_M", TWO, "models.m.ollama.name")
    assert words in str(caught.value)
    assert str(caught.value).startswith("models.m.ollama.name")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("m", ("registry.ollama.ai", "library", "m", "latest")),
        ("m:t", ("registry.ollama.ai", "library", "m", "t")),
        ("n/m:t", ("registry.ollama.ai", "n", "m", "t")),
        ("h:1/n/m", ("h:1", "n", "m", "latest")),
    ],
)
def test_manifest_path(name: str, path: tuple[str, ...]) -> None:
    assert manifest_path(name) == path
