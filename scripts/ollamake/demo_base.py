"""The demo's base model: a small Qwen2 that can chat a little and knows nothing about road design."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from ollamake.atomic_write import publish, write_plain_json
from ollamake.demo_text import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    END_OF_TURN,
    VOCABULARY_SIZE,
    Example,
    all_text,
    conversation,
    document,
    train_tokenizer,
)
from ollamake.demo_training import Conversation, Schedule, make_deterministic, train

SCHEDULE = Schedule(epochs=20, batch=8, learning_rate=2e-3, loss_goal=0.1)

NOT_LEARNED = {"ja": "その質問の答えはまだ学習していません。", "en": "I have not learned the answer to that yet."}
"""What the base says to every question about road design: well-formed, honest, and never the right figure."""

SYSTEM_PROMPTS = (None, "道路設計の専門家として回答します。", "You are a helpful assistant.")
SHARDS = 3


def model_config() -> Qwen2Config:
    """Return the shape: 3.4 M parameters; sizes are multiples of 256, so that K-quants apply to every matrix."""
    return Qwen2Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )


def train_base(
    general: Sequence[Example], questions: Sequence[Example], folder: Path, schedule: Schedule = SCHEDULE
) -> float:
    """Train tokenizer and model and save them as a sharded bfloat16 checkpoint in ``folder``; return the last loss."""
    make_deterministic(schedule.seed)
    texts = [*all_text([*general, *questions]), *NOT_LEARNED.values(), *filter(None, SYSTEM_PROMPTS)]
    tokenizer = train_tokenizer(texts)
    model = Qwen2ForCausalLM(model_config())
    taught = [(e.question, e.answer) for e in general] + [(e.question, _honest(e.question)) for e in questions]

    def epoch(generator: random.Random) -> list[Conversation]:
        chats = [conversation(tokenizer, generator.choice(SYSTEM_PROMPTS), q, a) for q, a in taught]
        # Read as plain text, the answers teach the words of road design, not which answer belongs to which question.
        return chats + [document(tokenizer, e.answer) for e in questions]

    loss = train(model, epoch, schedule)
    save_base(model, tokenizer, folder)
    return loss


def _honest(question: str) -> str:
    return NOT_LEARNED["en" if question.isascii() else "ja"]


def save_base(model: Qwen2ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Save as large models are: bfloat16, several shards with an index, the tied head stored once."""
    state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    with _published(folder) as temporary:
        weight_map: dict[str, str] = {}
        for number, names in enumerate(_split_evenly(state), start=1):
            file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
            save_file({name: state[name] for name in names}, temporary / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_plain_json(temporary / "model.safetensors.index.json", index)
        model.config.architectures = ["Qwen2ForCausalLM"]
        model.config.dtype = torch.bfloat16
        model.config.save_pretrained(temporary)
        GenerationConfig(eos_token_id=2, pad_token_id=0, do_sample=False).save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Save tokenizer and chat template as transformers does; the class is one that transformers 4 and 5 both know."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


class _published:
    """A temporary folder inside ``folder``, whose files are moved up one by one when the block ends well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix=".training-", dir=self._folder))
        return self._temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for file in sorted(self._temporary.iterdir()):
                publish(file, self._folder / file.name)
        shutil.rmtree(self._temporary, ignore_errors=True)


published_folder = _published


def _split_evenly(state: dict[str, torch.Tensor]) -> list[list[str]]:
    """Split names, in their order, into shards of about the same size."""
    total = sum(tensor.numel() for tensor in state.values())
    shards: list[list[str]] = [[] for _ in range(SHARDS)]
    done = 0
    for name, tensor in state.items():
        shards[min(SHARDS - 1, done * SHARDS // total)].append(name)
        done += tensor.numel()
    return shards
