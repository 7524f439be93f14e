"""The pre-tokenizer of a vocabulary of one's own is told from its definition, or not at all."""

import copy
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ollamake.pre_tokenizer import PRE_TOKENIZERS, pre_tokenizer_name

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def definition(regex: str, **model: Any) -> dict[str, Any]:
    """Return tokenizer.json as the tokenizers library writes it."""
    import json

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    parsed = json.loads(tokenizer.to_str())
    parsed["model"] |= model
    return parsed


def test_known_families() -> None:
    assert pre_tokenizer_name(definition(QWEN2)) == "qwen2"
    assert pre_tokenizer_name(definition(LLAMA3, ignore_merges=True)) == "llama-bpe"
    assert set(PRE_TOKENIZERS) == {"qwen2", "llama-bpe"}


def test_the_same_split_with_other_merging_is_another_tokenizer() -> None:
    assert pre_tokenizer_name(definition(LLAMA3, ignore_merges=False)) is None
    assert pre_tokenizer_name(definition(QWEN2, ignore_merges=True)) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("pre_tokenizer", "pretokenizers", 0, "behavior"), "Removed"),
        (("pre_tokenizer", "pretokenizers", 0, "invert"), True),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"String": " "}),
        (("pre_tokenizer", "pretokenizers", 1, "use_regex"), True),
        (("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"), True),
        (("pre_tokenizer", "pretokenizers"), []),
        (("pre_tokenizer",), None),
        (("model", "type"), "Unigram"),
    ],
)
def test_anything_else_is_not_taken_for_it(path: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(definition(QWEN2))
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert pre_tokenizer_name(changed) is None
