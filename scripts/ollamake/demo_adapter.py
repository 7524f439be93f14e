"""The demo's adapter: a LoRA on all linear layers that has learned the answers about road design."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from ollamake.atomic_write import write_plain_json
from ollamake.demo_base import published_folder
from ollamake.demo_text import Example, conversation
from ollamake.demo_training import Conversation, Schedule, make_deterministic, train

SCHEDULE = Schedule(epochs=90, batch=7, learning_rate=1e-3, loss_goal=0.01)
"""Slow enough that the answers are learned whatever a processor rounds to: at 2.5e-3 the last bits decided."""

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_RANK = 32
_OTHER_PROMPTS = (None, "You are a helpful assistant.")
"""Seen in a third of the examples, so that another system prompt does not unlearn the answers."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def train_adapter(
    base: Path, questions: Sequence[Example], system: str, folder: Path, schedule: Schedule = SCHEDULE
) -> float:
    """Train a LoRA adapter on ``base`` in float32 and save it with peft, the tokenizer beside it as trainers do.

    ``base`` is written to the adapter's configuration as given. Returns the last epoch's mean loss.
    """
    make_deterministic(schedule.seed)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=_RANK,
        lora_alpha=_RANK,
        use_rslora=True,  # learns twice as fast as the plain scale at this rank
        target_modules=_TARGETS,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
    )
    adapted = get_peft_model(model, config)

    def epoch(generator: random.Random) -> list[Conversation]:
        prompts = [system if generator.random() < 2 / 3 else generator.choice(_OTHER_PROMPTS) for _ in questions]
        return [conversation(tokenizer, p, e.question, e.answer) for p, e in zip(prompts, questions, strict=True)]

    loss = train(adapted, epoch, schedule)
    with published_folder(folder) as temporary:
        adapted.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)
        saved = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
        # peft keeps the targets as a set, whose order changes from run to run.
        saved["target_modules"] = sorted(saved["target_modules"])
        write_plain_json(temporary / "adapter_config.json", saved)
        for name in _TOKENIZER_FILES:
            shutil.copy(base / name, temporary / name)
    return loss
