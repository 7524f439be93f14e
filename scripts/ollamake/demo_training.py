"""Trains a small language model on conversations, the same way to the last bit each time."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

log = logging.getLogger("ollamake")

THREADS = 2
"""Fixed, whatever --cores says: sums are split among threads, so another number gives other bits."""

IGNORED = -100
"""Label of tokens without loss, as in torch.nn.functional.cross_entropy."""

Conversation = tuple[list[int], int]
"""Token ids, and the index at which the answer, which alone is learned, begins."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. ``epochs`` bounds the time; training ends earlier at ``loss_goal``."""

    epochs: int
    batch: int
    learning_rate: float
    loss_goal: float
    """Nats a token, mean of an epoch: low enough that quantization to 4 bits leaves every answer the likeliest."""
    seed: int = 1


def train(
    model: torch.nn.Module,
    conversations: Callable[[random.Random], Sequence[Conversation]],
    schedule: Schedule,
) -> float:
    """Train the parameters of ``model`` that require it with AdamW; return the last epoch's mean loss.

    ``conversations`` gives those of one epoch. Batches are of conversations of like length, so little is padded.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    generator = random.Random(schedule.seed)
    step, loss = 0, math.inf
    for epoch in range(1, schedule.epochs + 1):
        batches = _batches(conversations(generator), schedule.batch, generator)
        total = schedule.epochs * len(batches)
        losses = []
        for batch in batches:
            rate = schedule.learning_rate * _rate(step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses.append(_step(model, optimizer, parameters, batch))
            step += 1
        loss = sum(losses) / len(losses)
        if epoch % 5 == 0 or loss < schedule.loss_goal:
            log.info("epoch %d of at most %d: loss %.4f", epoch, schedule.epochs, loss)
        if loss < schedule.loss_goal:
            break
    return loss


def make_deterministic(seed: int) -> None:
    """Fix everything that could make two runs differ on one machine."""
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)


def _rate(step: int, total: int) -> float:
    """Warm up over the first 5 %, then fall to a tenth along a cosine."""
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _batches(
    conversations: Sequence[Conversation], size: int, generator: random.Random
) -> list[Sequence[Conversation]]:
    ordered = sorted(conversations, key=lambda pair: (len(pair[0]), pair[0]))
    batches = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    generator.shuffle(batches)
    return batches


def _step(model: Any, optimizer: Any, parameters: list[torch.nn.Parameter], batch: Sequence[Conversation]) -> float:
    ids, labels = _padded(batch)
    learned = labels[:, 1:] != IGNORED
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.model(input_ids=ids).last_hidden_state[:, :-1]
    # The head is applied only where there is a loss: prompts are most of the tokens.
    loss = torch.nn.functional.cross_entropy(causal.lm_head(hidden[learned]), labels[:, 1:][learned])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return loss.item()


def _padded(batch: Sequence[Conversation]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels [batch, longest]. Padding stands behind, where causal attention never looks back from."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    labels = torch.full((len(batch), longest), IGNORED, dtype=torch.long)
    for row, (tokens, answer) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, answer : len(tokens)] = torch.tensor(tokens[answer:])
    return ids, labels
