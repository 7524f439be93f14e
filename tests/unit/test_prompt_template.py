"""The policy of a template: what is registered, where it comes from, and what ends an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollamake.demo_text import CHAT_TEMPLATE
from ollamake.errors import OllamakeError
from ollamake.prompt_template import prompt_template, special_texts

FACTS = {"adds_bos": False}
NO_FAMILY = "{% for message in messages %}{{ loop.index * 7 }}{{ message.content | upper }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A merged checkpoint's tokenizer, as far as a template needs it."""
    tokens = [
        {"id": number, "content": text} for number, text in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    return tmp_path


def chosen(folder: Path, policy: str, jinja: str | None = CHAT_TEMPLATE) -> dict[str, Any]:
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    return prompt_template(folder, "chat_template.jinja" if jinja is not None else None, policy, FACTS)


def test_auto_takes_what_is_proven(folder: Path) -> None:
    record = chosen(folder, "auto")
    assert "<|im_start|>" in record["template"]
    assert (record["policy"], record["family"], record["end_of_turn"]) == ("auto", "ChatML", "<|im_end|>")
    assert len(record["proven"]) == 16
    assert "proven on 16 conversations" in record["origin"]


def test_auto_takes_none_where_nothing_is_proven(folder: Path) -> None:
    record = chosen(folder, "auto", NO_FAMILY)
    assert (record["template"], record["family"], record["proven"]) == (None, None, [])
    assert record["origin"].startswith("none")


def test_gguf_takes_none_though_one_could_be_proven(folder: Path) -> None:
    record = chosen(folder, "gguf")
    assert (record["template"], record["family"], record["end_of_turn"]) == (None, None, "<|im_end|>")


def test_ones_own_is_taken_as_it_is(folder: Path) -> None:
    record = chosen(folder, "{{ .Prompt }}")
    assert (record["policy"], record["template"]) == ("own", "{{ .Prompt }}")
    assert record["end_of_turn"] == "<|im_end|>"
    assert "ollama.template" in record["origin"]


def test_without_a_chat_template_it_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = chosen(folder, "auto", None)
    assert (record["template"], record["end_of_turn"]) == (None, None)
    assert "no chat template" in caplog.text


def test_texts_of_special_tokens(tmp_path: Path) -> None:
    assert special_texts(tmp_path) == ("", "")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}))
    assert special_texts(tmp_path) == ("<s>", "</s>")
    file.write_text(json.dumps({"bos_token": None}))
    assert special_texts(tmp_path) == ("", "")
    file.write_text("{")
    with pytest.raises(OllamakeError, match=r"tokenizer_config\.json cannot be read as JSON"):
        special_texts(tmp_path)
