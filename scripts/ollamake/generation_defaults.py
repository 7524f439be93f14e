"""What generation_config.json says of sampling and stopping, as Ollama's parameters.

Ollama's own defaults are others (temperature 0.8, top_k 40, top_p 0.9), so a model that nobody gives parameters does not
answer as its makers meant. Keys: transformers' generation/configuration_utils.py; repetition_penalty works there on the
whole text and in Ollama on the last `repeat_last_n` tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.json_object import parse_json, read_json
from ollamake.ollama_parameters import checked_parameters

log = logging.getLogger("ollamake")

_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
}

ORIGIN = "the base's generation_config.json"


def generation_parameters(config_file: Path, token_texts: Mapping[int, str]) -> dict[str, Any]:
    """Return the parameters that a generation_config.json gives; ``stop`` has the texts of its end tokens.

    ``token_texts`` is id -> text of the special tokens. A value that Ollama would not take is left out, with a line in the
    log. Raises OllamakeError if the file is not a JSON object.
    """
    config = read_json(config_file)
    if not isinstance(config, dict):
        raise OllamakeError(f"{config_file}: expected a JSON object; found {str(config)[:60]}")
    found = {name: config[key] for key, name in _NAMES.items() if config.get(key) is not None}
    if config.get("do_sample") is False:
        # Greedy: what stands beside it is not used.
        found = {name: value for name, value in found.items() if name == "repeat_penalty"} | {"temperature": 0}
    ends = config.get("eos_token_id")
    ids = ends if isinstance(ends, list) else [ends]
    stop = [token_texts[number] for number in ids if isinstance(number, int) and number in token_texts]
    strings = config.get("stop_strings")
    stop += strings if isinstance(strings, list) else [strings] if strings else []
    if stop:
        found["stop"] = list(dict.fromkeys(stop)) if all(isinstance(text, str) for text in stop) else stop
    taken: dict[str, Any] = {}
    for name, value in found.items():
        try:
            taken |= checked_parameters({name: value}, str(config_file))
        except OllamakeError as error:
            log.warning("%s; it is left out", error)
    return taken


def special_tokens(folder: Path) -> dict[int, str]:
    """Return id -> text of the added tokens of the tokenizer in a folder; empty if it says none.

    They stand in tokenizer.json and, for tokenizers that have none (SentencePiece), in tokenizer_config.json. Raises
    OllamakeError if such a file is not what it should be.
    """
    for name, read in (("tokenizer.json", _added_tokens), ("tokenizer_config.json", _added_tokens_decoder)):
        file = folder / name
        if not file.is_file():
            continue
        try:
            tokens = read(parse_json(file.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise OllamakeError(f"{file} is not a tokenizer of Hugging Face's: {error}") from error
        if tokens:
            return tokens
    return {}


def _added_tokens(tokenizer: dict[str, Any]) -> dict[int, str]:
    return {int(token["id"]): str(token["content"]) for token in tokenizer.get("added_tokens") or []}


def _added_tokens_decoder(config: dict[str, Any]) -> dict[int, str]:
    return {int(number): str(token["content"]) for number, token in (config.get("added_tokens_decoder") or {}).items()}
