"""What a GGUF's tokenizer puts before a prompt and where it stops, as llama.cpp reads the same metadata."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from ollamake.gguf_header import read_gguf_header
from ollamake.gguf_tokenizer import KEYS, tokenizer_facts

TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "道"]


def facts(folder: Path, model: str | None, tokens: list[str] | None = None, **keys: Any) -> dict[str, Any] | None:
    """Return the facts of a GGUF written with these metadata; ``keys`` are methods of the writer without `add_`."""
    writer = GGUFWriter(folder / "m.gguf", "llama")
    if model is not None:
        writer.add_tokenizer_model(model)
        writer.add_token_list(tokens or TOKENS)
    for name, value in keys.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tokenizer_facts(read_gguf_header(folder / "m.gguf", KEYS).values)


def of(folder: Path, model: str, tokens: list[str] | None = None, **keys: Any) -> dict[str, Any]:
    found = facts(folder, model, tokens, **keys)
    assert found is not None
    return found


def test_no_tokenizer(tmp_path: Path) -> None:
    assert facts(tmp_path, None) is None


def test_all_facts(tmp_path: Path) -> None:
    template = "{{ messages }}道"
    assert of(
        tmp_path,
        "llama",
        bos_token_id=1,
        eos_token_id=2,
        eot_token_id=4,
        add_bos_token=True,
        chat_template=template,
    ) == {
        "model": "llama",
        "adds_bos": True,
        "bos": "<s>",
        "eos": "</s>",
        "end_tokens": {"</s>": 2, "<|im_end|>": 4, "<|eot_id|>": 5},
        "chat_template": hashlib.sha256(template.encode()).hexdigest(),
    }


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize(("model", "pre"), [("llama", "default"), ("gpt2", "qwen2"), ("gpt2", "llama-bpe")])
def test_what_the_metadata_say_of_a_bos_counts(tmp_path: Path, model: str, pre: str, says: bool) -> None:
    assert of(tmp_path, model, tokenizer_pre=pre, add_bos_token=says)["adds_bos"] is says


@pytest.mark.parametrize(
    ("model", "pre", "adds"),
    [
        ("llama", None, True),
        ("llama", "default", True),
        ("bert", None, True),
        ("t5", None, False),
        ("rwkv", None, False),
        ("plamo2", None, False),
        ("gpt2", None, False),
        ("gpt2", "qwen2", False),
        ("gpt2", "gpt-2", False),
        ("gpt2", "llama-bpe", True),
        ("gpt2", "llama3", True),
        ("gpt2", "tekken", True),
        ("gpt2", "falcon3", True),
        ("gpt2", "jina-v5-nano", True),
        ("gpt2", "chameleon", True),
    ],
)
def test_whether_a_bos_is_put_where_the_metadata_do_not_say(
    tmp_path: Path, model: str, pre: str | None, adds: bool
) -> None:
    keys = {} if pre is None else {"tokenizer_pre": pre}
    assert of(tmp_path, model, **keys)["adds_bos"] is adds


@pytest.mark.parametrize(("model", "pre"), [("gemma4", None), ("gpt2", "gemma4")])
def test_gemma_4_has_a_bos_whatever_the_metadata_say(tmp_path: Path, model: str, pre: str | None) -> None:
    keys = {} if pre is None else {"tokenizer_pre": pre}
    assert of(tmp_path, model, add_bos_token=False, **keys)["adds_bos"] is True


def test_ids_beyond_the_vocabulary_have_no_text(tmp_path: Path) -> None:
    found = of(tmp_path, "gpt2", bos_token_id=100, eos_token_id=7)
    assert (found["bos"], found["eos"]) == (None, None)
    assert found["end_tokens"] == {"</s>": 2, "<|im_end|>": 4, "<|eot_id|>": 5}


@pytest.mark.parametrize("name", ["eos_token_id", "eot_token_id", "eom_token_id"])
def test_tokens_that_the_metadata_name_end_an_answer(tmp_path: Path, name: str) -> None:
    assert of(tmp_path, "gpt2", ["a", "<END>"], **{name: 1})["end_tokens"] == {"<END>": 1}


def test_a_bos_ends_no_answer(tmp_path: Path) -> None:
    assert of(tmp_path, "gpt2", ["a", "<BOS>"], bos_token_id=1)["end_tokens"] == {}


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        (["<|end|>", "<|endoftext|>", "<|assistant|>"], ["<|end|>", "<|endoftext|>"]),
        (["<end_of_turn>", "<eos>", "<start_of_turn>"], ["<end_of_turn>", "<eos>"]),
        (["<｜end▁of▁sentence｜>", "<｜User｜>"], ["<｜end▁of▁sentence｜>"]),
        (["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]),
        (["<|END|>", "im_end"], []),
        # There <|end|> ends one of several parts of an answer.
        (["<|end|>", "<|return|>", "<|call|>"], ["<|return|>", "<|call|>"]),
        (["<|end|>", "<|calls|>", "<|flush|>"], ["<|calls|>", "<|flush|>"]),
        (["<|end|>", "<|return|>"], ["<|end|>", "<|return|>"]),
        # There </s> is an ordinary text.
        (["</s>", "<turn|>", "<|tool_response>"], ["<turn|>", "<|tool_response>"]),
        (["</s>", "<|plamo:eos|>"], ["</s>"]),
    ],
)
def test_tokens_whose_texts_end_an_answer(tmp_path: Path, tokens: list[str], ends: list[str]) -> None:
    assert of(tmp_path, "gpt2", tokens)["end_tokens"] == {text: tokens.index(text) for text in ends}


def test_the_end_of_plamo_takes_the_place_of_the_usual_one(tmp_path: Path) -> None:
    found = of(tmp_path, "plamo2", ["</s>", "<|plamo:eos|>"], eos_token_id=1)
    assert found["end_tokens"] == {"<|plamo:eos|>": 1}
