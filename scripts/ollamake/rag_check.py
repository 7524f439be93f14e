"""Whether a RAG application's file could be told of a model: said before the model is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ollamake.errors import OllamakeError
from ollamake.rag_file import read_rag_file
from ollamake.yaml_edit import set_values
from ollamake.yaml_places import Value

KEYS = {
    "use_finetuned": "llm.use_finetuned",
    "use_ollama_fallback": "llm.use_ollama_fallback",
    "ollama_model": "llm.ollama_model",
    "ollama_host": "llm.ollama_host",
    "num_ctx": "llm.num_ctx",
}
"""What is written -> where, if the configuration does not say otherwise."""

_EXAMPLES: dict[str, Value] = {
    "use_finetuned": True,
    "use_ollama_fallback": True,
    "ollama_model": "name:tag",
    "ollama_host": "http://127.0.0.1:11434",
    "num_ctx": 8192,
}


def check_rag_file(file: Path, keys: Mapping[str, str], key: str) -> None:
    """Raise OllamakeError naming ``key`` if the file is no YAML, or if one of the keys could not be written there."""
    try:
        text = read_rag_file(file).text
        set_values(text, {path: _EXAMPLES[name] for name, path in keys.items()}, str(file))
    except OllamakeError as error:
        raise OllamakeError(f"{key}: {error}") from error
