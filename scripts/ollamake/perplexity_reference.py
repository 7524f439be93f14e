"""Perplexity and log-probabilities of the unquantized fine-tune, which everything else is compared with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.atomic_write import temporary_beside, write_text
from ollamake.errors import OllamakeError
from ollamake.free_disk import MARGIN, free_bytes
from ollamake.gguf_vocabulary import read_vocabulary
from ollamake.logits_file import logits_bytes, read_header
from ollamake.perplexity_command import reference_command, require_parse_special
from ollamake.perplexity_faults import failed, nonfinite_fault, require_enough_chunks
from ollamake.perplexity_output import final_estimate, scored_tokens
from ollamake.perplexity_run import Ended, run_alone, until_all_is_said

log = logging.getLogger("ollamake")

_PIPED = (
    "The log-probabilities of the reference did not fit on the disk: {size} bytes were needed.\n"
    "They are computed again beside each quantization and handed over through a pipe.\n"
)


@dataclass(frozen=True)
class EvaluationText:
    """A text and its record (evaluation.json)."""

    path: Path
    record: Mapping[str, Any]


def evaluate_reference(
    program: Path, gguf: Path, gguf_record: Mapping[str, Any], text: EvaluationText, logits: Path, threads: int
) -> dict[str, Any]:
    """Run llama-perplexity on the unquantized GGUF, write ``logits`` and return its record (reference.json).

    If the log-probabilities do not fit on the disk, ``logits`` is a note of that, and the record says ``piped``. Raises
    OllamakeError if the text is too short, the program fails, or its figures are not finite.
    """
    context, chunks = text.record["context"], text.record["chunks"]
    require_enough_chunks(context, chunks, text.path)
    if text.record["parse_special"]:
        require_parse_special(program)
    vocabulary = read_vocabulary(gguf)
    if vocabulary.adds_eos:
        raise OllamakeError(
            f"{gguf}: its tokenizer puts an end token behind every text (tokenizer.ggml.add_eos_token), and llama-perplexity"
            " cannot measure such a model. Leave `quality` out for it."
        )
    size = logits_bytes(context, len(vocabulary.tokens), chunks)
    free = free_bytes(logits.parent)
    piped = free < size + MARGIN
    if piped:
        log.warning(
            "the log-probabilities of the reference take %.2f GB, and %s has %.2f GB free: they are not stored, but computed"
            " again beside each quantization. Fewer quality.chunks take less",
            size / 1e9, logits.parent, free / 1e9,
        )  # fmt: skip
        ended = _run(program, gguf, gguf_record, text, threads, None)
        write_text(logits, _PIPED.format(size=size))
    else:
        with temporary_beside(logits) as temporary:
            ended = _run(program, gguf, gguf_record, text, threads, temporary)
            header = read_header(temporary)
            if (header.context, header.vocabulary, header.chunks) != (context, len(vocabulary.tokens), ended.chunks):
                raise OllamakeError(
                    f"{logits}: llama-perplexity wrote {header.chunks} chunks of {header.context} tokens for a vocabulary of"
                    f" {header.vocabulary}, and said {ended.chunks} chunks; {gguf} has {len(vocabulary.tokens)} tokens and"
                    f" the context is {context}."
                )
        size = logits.stat().st_size
    if ended.chunks != chunks:
        log.info("llama.cpp's tokenizer makes %d chunks of the text, not %d", ended.chunks, chunks)
    return {
        "type": gguf_record["type"],
        "ppl": final_estimate(ended.stderr),
        "chunks": ended.chunks,
        "context": context,
        "tokens": scored_tokens(context, ended.chunks),
        "gguf_sha256": gguf_record["sha256"],
        "gguf_size": gguf_record["size"],
        "text_sha256": text.record["sha256"],
        "vocabulary": len(vocabulary.tokens),
        "logits_bytes": size,
        "piped": piped,
    }


def _run(
    program: Path, gguf: Path, gguf_record: Mapping[str, Any], text: EvaluationText, threads: int, logits: Path | None
) -> Ended:
    command = reference_command(program, gguf, text.path, text.record, threads, logits)
    ended = until_all_is_said(
        lambda: run_alone(command, "perplexity of the reference", text.record["chunks"]),
        lambda ended: final_estimate(ended.stderr) is not None,
    )
    # Log-probabilities of NaN can pass for numbers in the file, so this run's own figures decide.
    if fault := nonfinite_fault(ended, gguf, gguf_record["type"]):
        raise fault
    if ended.returncode or final_estimate(ended.stderr) is None or not ended.chunks:
        raise failed(ended, gguf, text.path, ["Final estimate: PPL"])
    return ended
