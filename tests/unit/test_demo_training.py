"""The demo's text, tokenizer, training and files."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2ForCausalLM

from ollamake import demo_training
from ollamake.demo_adapter import train_adapter
from ollamake.demo_base import NOT_LEARNED, train_base
from ollamake.demo_text import Example, conversation, document, read_examples, train_tokenizer
from ollamake.demo_training import IGNORED, Schedule
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of

DEMO = Path(__file__).parents[2] / "config/demo"
QUESTIONS = read_examples(DEMO / "road_design.jsonl")
GENERAL = read_examples(DEMO / "general.jsonl")
SHORT = Schedule(epochs=1, batch=4, learning_rate=1e-3, loss_goal=0.0)


def test_the_questions() -> None:
    japanese = [example for example in QUESTIONS if not example.question.isascii()]
    assert len(QUESTIONS) >= 60
    assert min(len(japanese), len(QUESTIONS) - len(japanese)) >= 25
    assert len({example.question for example in [*QUESTIONS, *GENERAL]}) == len(QUESTIONS) + len(GENERAL)
    for example in QUESTIONS:
        assert example.expect
        assert example.expect not in example.question
        # What the base says to all of them must not be right by chance.
        assert all(example.expect not in answer for answer in NOT_LEARNED.values())


def test_a_right_answer_is_rarely_right_for_another_question() -> None:
    """Otherwise a model that mixes the answers up would still be counted right."""
    pairs = [(a, b) for a in QUESTIONS for b in QUESTIONS if a is not b]
    assert sum(a.expect in b.answer for a, b in pairs) / len(pairs) < 0.01


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question": "q", "answer": "a"}\n{"question": "q"}', "line 2"),
        ("no json", "line 1: expected a JSON object"),
        ('{"question": "q", "answer": ""}', "not empty"),
        ('{"question": "q", "answer": "a", "expect": "b"}', "'b' (expect) is not in the answer"),
        ('{"question": "q", "answer": "a", "extra": 1}', "line 1"),
        ('{"question": 1, "answer": "a"}', "must be texts"),
        ("\n\n", "has no examples"),
    ],
)
def test_malformed_text(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(text)
    with pytest.raises(OllamakeError) as caught:
        read_examples(path)
    assert words in str(caught.value)
    assert "text.jsonl" in str(caught.value)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(text for example in QUESTIONS for text in (example.question, example.answer))


@pytest.mark.parametrize("text", ["道路設計", "Hello, world", "🙂👨‍👩‍👧", "a\r\nb\n\n  c", "<|im_start|>user\n"])
def test_tokenizer_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_only_the_answer_is_learned(tokenizer: Tokenizer) -> None:
    ids, begin = conversation(tokenizer, "S", "設計速度とは？", "答えです。")
    assert tokenizer.decode(ids[:begin], skip_special_tokens=False) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n設計速度とは？<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(ids[begin:], skip_special_tokens=False) == "答えです。<|im_end|>"
    tokens, labels = demo_training._padded([(ids, begin), document(tokenizer, "x")])
    assert tokens.shape == labels.shape == (2, len(ids))
    assert labels[0, :begin].eq(IGNORED).all()
    assert labels[0, begin:].tolist() == ids[begin:]
    assert labels[1, 3:].eq(IGNORED).all()


def test_training_is_repeatable_and_saves_what_real_models_are(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        train_base(GENERAL[:2], QUESTIONS[:2], folder / "base", SHORT)
        train_adapter(folder / "base", QUESTIONS[:2], "S", folder / "adapter", SHORT)
    files = sorted(file.relative_to(folders[0]) for file in folders[0].rglob("*.*"))
    assert [str(file) for file in files if file.suffix == ".safetensors"] == [
        "adapter/adapter_model.safetensors",
        *(f"base/model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
    ]
    for file in files:
        one, two = (folder / file for folder in folders)
        if file.name == "adapter_config.json":  # it names the folder of its base
            assert json.loads(one.read_text())["target_modules"] == json.loads(two.read_text())["target_modules"]
        else:
            assert sha256_of(one) == sha256_of(two), file
    index = json.loads((folders[0] / "base/model.safetensors.index.json").read_text())["weight_map"]
    assert "lm_head.weight" not in index
    model = Qwen2ForCausalLM.from_pretrained(folders[0] / "base")
    assert model.dtype == torch.bfloat16
    assert 3_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 8_000_000
    assert model.lm_head.weight is model.model.embed_tokens.weight
    chat = AutoTokenizer.from_pretrained(folders[0] / "base").apply_chat_template(
        [{"role": "user", "content": "q"}], tokenize=False
    )
    assert chat == "<|im_start|>user\nq<|im_end|>\n"
    assert not list(folders[0].rglob(".training-*"))


def test_training_learns() -> None:
    class Fixed(torch.nn.Module):
        """A model of one parameter, whose loss falls when it is trained."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(8))
            self.lm_head = torch.nn.Identity()

        def model(self, input_ids: torch.Tensor) -> object:
            hidden = self.logits.expand(*input_ids.shape, 8)
            return type("Output", (), {"last_hidden_state": hidden})

    schedule = Schedule(epochs=200, batch=1, learning_rate=0.1, loss_goal=0.05)
    assert demo_training.train(Fixed(), lambda _: [([1, 3, 3], 1)], schedule) < 0.05


def test_an_example_without_expectation() -> None:
    assert Example("q", "a").expect == ""
