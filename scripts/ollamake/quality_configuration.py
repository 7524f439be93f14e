"""What the configuration says of a model's quality: text to calibrate on, text to measure on, and the limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.placeholders import is_missing
from ollamake.quantization_types import QUANTIZATION_TYPES

BEFORE_REGISTRATION = ("max_kld_mean", "max_kld_p99", "max_ppl_ratio", "min_top1")
"""The limits that are judged by the GGUF alone."""


@dataclass(frozen=True)
class DomainText:
    """Files of the user's own text, and how much of them is used."""

    text: tuple[str, ...] = ()
    chat: tuple[str, ...] = ()
    chunks: int | None = None
    """None for all of it."""
    context: int = 512

    @property
    def is_given(self) -> bool:
        """Whether there is any text."""
        return bool(self.text or self.chat)

    @property
    def files(self) -> tuple[str, ...]:
        """All files."""
        return self.text + self.chat


@dataclass(frozen=True)
class Quality:
    """How the quality of quantizations is measured and judged."""

    evaluation: DomainText
    compare: tuple[str, ...]
    """Types that are measured, not registered."""
    base: bool
    speed: bool
    limits: dict[str, float | None]
    """By the names in BEFORE_REGISTRATION."""
    min_answers: float | None
    on_fail: str

    @property
    def is_measured(self) -> bool:
        """Whether anything is measured."""
        return self.evaluation.is_given

    @property
    def guards_registration(self) -> bool:
        """Whether a quantization must be measured before it is registered."""
        return self.is_measured and self.on_fail == "stop" and any(limit is not None for limit in self.limits.values())


@dataclass(frozen=True)
class ScoreLimit:
    """The share of right answers that registered models must reach, the key that says so, and what less does."""

    min_score: float
    limit_key: str
    on_fail: str


NOT_MEASURED = Quality(DomainText(), (), False, False, {}, None, "stop")
"""Of a model that is only built for a comparison."""


def calibration_of(filled: Mapping[str, Any], key: str) -> DomainText:
    """Return the text of `imatrix`. Raises OllamakeError naming ``key`` for a file that is not there."""
    return _domain_text(filled["imatrix"], f"{key}.imatrix")


def quality_of(
    filled: Mapping[str, Any], key: str, *, quantizations: Sequence[str], has_adapter: bool, has_questions: bool
) -> Quality:
    """Return `quality` of a model, whose other keys are filled in.

    Raises OllamakeError for a file that is not there, and for keys that would have no effect.
    """
    given, key = filled["quality"], f"{key}.quality"
    evaluation = _domain_text(given, key)
    limits = {name: given[name] for name in BEFORE_REGISTRATION}
    if not evaluation.is_given:
        idle = [name for name, limit in limits.items() if limit is not None] + ["compare"] * bool(given["compare"])
        if idle:
            raise OllamakeError(
                f"{key}.{idle[0]}: nothing is measured without text. Name files in {key}.text (plain text) or {key}.chat"
                " (conversations) that the model was not calibrated on."
            )
    if given["min_answers"] is not None and not has_questions:
        raise OllamakeError(
            f"{key}.min_answers: no questions are asked. Name a file with questions in answers.questions of the same model."
        )
    return Quality(
        evaluation=evaluation,
        compare=tuple(kind for kind in given["compare"] if kind not in quantizations),
        base=bool(given["base"]) and has_adapter,
        speed=given["speed"],
        limits=limits,
        min_answers=given["min_answers"],
        on_fail=given["on_fail"],
    )


def score_limit(quality: Quality, min_score: float, key: str) -> ScoreLimit:
    """Return what the answers of a model are held to: quality.min_answers, else ``min_score`` of its `answers`."""
    if quality.min_answers is None:
        return ScoreLimit(float(min_score), f"{key}.answers.min_score", "stop")
    return ScoreLimit(float(quality.min_answers), f"{key}.quality.min_answers", quality.on_fail)


def refuse_without_imatrix(quantization: str, key: str, calibration: DomainText) -> None:
    """Raise OllamakeError if a type needs an importance matrix and there is no text to compute one from."""
    kind = QUANTIZATION_TYPES[quantization]
    if not kind.needs_imatrix or calibration.is_given:
        return
    others = [
        name
        for name, other in sorted(QUANTIZATION_TYPES.items(), key=lambda item: item[1].bits_per_weight)
        if not other.needs_imatrix and other.bits_per_weight >= kind.bits_per_weight
    ]
    raise OllamakeError(
        f"{key}: {quantization} can only be made with an importance matrix. Give text of your own to compute it from"
        " (`imatrix: {text: [FILES]}` or `imatrix: {chat: [FILES]}` of the same model), or take one of the next larger types"
        f" that need none: {', '.join(others[:3])}."
    )


def _domain_text(given: Mapping[str, Any], key: str) -> DomainText:
    files = {
        kind: tuple(os.path.normpath(Path(file).expanduser()) for file in given[kind]) for kind in ("text", "chat")
    }
    for kind, named in files.items():
        for file in named:
            if is_missing(file):
                raise OllamakeError(
                    f"{key}.{kind}: there is no file {file}. Paths are relative to where Snakemake runs."
                )
    return DomainText(**files, chunks=given["chunks"], context=given["context"])
