"""What a base's generation_config.json says of sampling and stopping, in Ollama's words."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollamake.errors import OllamakeError
from ollamake.generation_defaults import generation_parameters, special_tokens

QWEN = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}
LLAMA = {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128008: "<|eom_id|>", 128009: "<|eot_id|>"}
GEMMA = {1: "<eos>", 2: "<bos>", 106: "<end_of_turn>"}

TABLE: list[tuple[str, dict[str, Any], dict[int, str], dict[str, Any]]] = [
    (
        "Qwen2.5",
        {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "repetition_penalty": 1.05,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
        QWEN,
        {
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "repeat_penalty": 1.05,
            "stop": ["<|im_end|>", "<|endoftext|>"],
        },
    ),
    (
        "Llama-3.1",
        {
            "bos_token_id": 128000,
            "do_sample": True,
            "eos_token_id": [128001, 128008, 128009],
            "temperature": 0.6,
            "top_p": 0.9,
        },
        LLAMA,
        {"temperature": 0.6, "top_p": 0.9, "stop": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]},
    ),
    (
        "Gemma-2",
        {"_from_model_config": True, "bos_token_id": 2, "eos_token_id": [1, 106], "cache_implementation": "hybrid"},
        GEMMA,
        {"stop": ["<eos>", "<end_of_turn>"]},
    ),
    ("one end token", {"eos_token_id": 151645}, QWEN, {"stop": ["<|im_end|>"]}),
    ("the same end twice", {"eos_token_id": [1, 1]}, GEMMA, {"stop": ["<eos>"]}),
    ("an end that is no special token", {"eos_token_id": [5, 1]}, GEMMA, {"stop": ["<eos>"]}),
    ("no known end", {"eos_token_id": 5}, GEMMA, {}),
    (
        "greedy",
        {"do_sample": False, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.1},
        {},
        {"temperature": 0, "repeat_penalty": 1.1},
    ),
    ("greedy and nothing else", {"do_sample": False, "eos_token_id": 1}, GEMMA, {"temperature": 0, "stop": ["<eos>"]}),
    (
        "nulls",
        {"temperature": None, "top_k": None, "eos_token_id": None, "stop_strings": None, "do_sample": None},
        GEMMA,
        {},
    ),
    (
        "every name",
        {"min_p": 0.05, "typical_p": 0.9, "top_k": 50.0},
        {},
        {"min_p": 0.05, "typical_p": 0.9, "top_k": 50},
    ),
    ("stop strings", {"stop_strings": ["END", "STOP"], "eos_token_id": 1}, GEMMA, {"stop": ["<eos>", "END", "STOP"]}),
    ("one stop string", {"stop_strings": "END"}, {}, {"stop": ["END"]}),
    ("nothing", {"transformers_version": "4.45.0", "max_new_tokens": 2048}, {}, {}),
]


@pytest.mark.parametrize(("config", "tokens", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_ollama_is_given(
    tmp_path: Path,
    config: dict[str, Any],
    tokens: dict[int, str],
    expected: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    found = generation_parameters(file, tokens)
    assert found == expected
    assert caplog.messages == []
    assert isinstance(found.get("top_k", 0), int)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("temperature", -1, "temperature"),
        ("temperature", "hot", "temperature"),
        ("top_p", 1.5, "top_p"),
        ("top_k", -1, "top_k"),
        ("top_k", 1.5, "top_k"),
        ("repetition_penalty", -1.0, "repeat_penalty"),
        ("stop_strings", [5], "stop"),
    ],
)
def test_what_ollama_would_not_take_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: Any, name: str
) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"min_p": 0.1, key: value}), encoding="utf-8")
    assert generation_parameters(file, {}) == {"min_p": 0.1}
    assert f"{file}.{name}: " in caplog.text
    assert "it is left out" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"5"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "generation_config.json"
    file.write_bytes(content)
    with pytest.raises(OllamakeError, match=r"generation_config\.json"):
        generation_parameters(file, {})


def test_texts_of_special_tokens(tmp_path: Path) -> None:
    assert special_tokens(tmp_path) == {}
    config = {"added_tokens_decoder": {"2": {"content": "</s>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert special_tokens(tmp_path) == {2: "</s>"}
    tokenizer = {"added_tokens": [{"id": 7, "content": "<終>"}], "model": {}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert special_tokens(tmp_path) == {7: "<終>"}
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": null}')
    assert special_tokens(tmp_path) == {2: "</s>"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"added_tokens": [{}]}'),
        ("tokenizer.json", '{"added_tokens": [5]}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(OllamakeError, match=rf"{name} is not a tokenizer"):
        special_tokens(tmp_path)
