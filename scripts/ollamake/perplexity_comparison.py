"""How far a quantization, or the base, is from the unquantized fine-tune, by llama-perplexity's own statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.gguf_vocabulary import difference, read_vocabulary
from ollamake.logits_file import read_header
from ollamake.perplexity_command import comparison_command, reference_command, require_parse_special
from ollamake.perplexity_faults import failed, nonfinite, nonfinite_fault, require_enough_chunks
from ollamake.perplexity_output import nonfinite_figures, parse_statistics, scored_tokens
from ollamake.perplexity_reference import EvaluationText
from ollamake.perplexity_run import Ended, run_alone, run_joined, until_all_is_said

BASE = "base"


@dataclass(frozen=True)
class Reference:
    """The unquantized fine-tune: its GGUF, its log-probabilities, and its record (reference.json).

    Log-probabilities that are not there, or had no room, are made beside the comparison.
    """

    gguf: Path
    logits: Path
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What is compared with it. ``name``: a type, or "base"; ``record``: the GGUF's."""

    name: str
    gguf: Path
    record: Mapping[str, Any]


def evaluate_quality(
    program: Path, measured: Measured, reference: Reference, text: EvaluationText, threads: int
) -> dict[str, Any]:
    """Run llama-perplexity on ``measured`` and return its record: the figures as printed, and the printed lines.

    For a base with another vocabulary the record has ``not_comparable``, a sentence, in place of figures. Raises OllamakeError
    if the reference is not of this text, the program fails, prints less than all, or a figure is not finite.
    """
    record = reference.record
    _require_same_text(record, text)
    identity = {
        "measured": measured.name,
        "gguf_sha256": measured.record["sha256"],
        "gguf_size": measured.record["size"],
        "reference_sha256": record["gguf_sha256"],
        "text_sha256": record["text_sha256"],
        "context": record["context"],
        "chunks": record["chunks"],
        "tokens": scored_tokens(record["context"], record["chunks"]),
    }
    if differs := difference(read_vocabulary(reference.gguf), read_vocabulary(measured.gguf)):
        if measured.name != BASE:
            raise OllamakeError(
                f"{measured.gguf} cannot be compared with {reference.gguf}: {differs}. A quantization has the vocabulary of its"
                " source, so one of the two is not of this build: remove both and run the workflow again."
            )
        return identity | {
            "not_comparable": f"The base cannot be compared with the fine-tune token by token: {differs}, the fine-tune's first."
        }
    # Below that nothing is printed, and everything would be said to be missing.
    require_enough_chunks(record["context"], record["chunks"], text.path)
    run = _run_on_file if reference.logits.exists() and not record["piped"] else _run_piped
    ended = until_all_is_said(lambda: run(program, measured, reference, text, threads), _is_complete)
    figures, printed, missing = parse_statistics(ended.stdout)
    if fault := nonfinite_fault(ended, measured.gguf, measured.record["type"]):
        raise fault
    if ended.returncode or missing:
        raise failed(ended, measured.gguf, text.path, missing)
    if names := nonfinite_figures(figures):
        raise nonfinite(measured.gguf, measured.record["type"], f"NaN or infinity in {', '.join(names)}")
    if ended.chunks != record["chunks"]:
        raise OllamakeError(
            f"llama-perplexity compared {ended.chunks} chunks of {measured.gguf}, not the {record['chunks']} of the reference."
        )
    return identity | figures | {"printed": printed}


def _run_on_file(program: Path, measured: Measured, reference: Reference, text: EvaluationText, threads: int) -> Ended:
    record = reference.record
    header = read_header(reference.logits)
    if (header.context, header.vocabulary, header.chunks) != (
        record["context"],
        record["vocabulary"],
        record["chunks"],
    ):
        raise OllamakeError(
            f"{reference.logits} is of {header.chunks} chunks of {header.context} tokens and a vocabulary of"
            f" {header.vocabulary}; its record says {record['chunks']}, {record['context']} and {record['vocabulary']}."
            " Remove it and run the workflow again."
        )
    command = comparison_command(program, measured.gguf, record["context"], threads, reference.logits)
    return run_alone(command, f"comparing {measured.name}", record["chunks"])


def _run_piped(program: Path, measured: Measured, reference: Reference, text: EvaluationText, threads: int) -> Ended:
    """Run the reference once more, beside the comparison; raise OllamakeError if it is the one that fails."""
    chunks = reference.record["chunks"]
    if text.record["parse_special"]:
        require_parse_special(program)
    text_record = dict(text.record) | {"chunks": chunks}
    writer, reader = run_joined(
        lambda pipe: reference_command(program, reference.gguf, text.path, text_record, threads, pipe),
        lambda pipe: comparison_command(program, measured.gguf, text.record["context"], threads, pipe),
        _is_complete,
        f"comparing {measured.name}",
        chunks,
    )
    if fault := nonfinite_fault(writer, reference.gguf, reference.record["type"]):
        raise fault
    # A reference that was stopped, or died of the closed pipe, is not the one to blame.
    to_blame = not writer.stopped and not writer.lost_its_reader
    if to_blame and (writer.returncode or (writer.errors() and not _is_complete(reader))):
        raise failed(writer, reference.gguf, text.path, ["the log-probabilities"])
    return reader


def _is_complete(ended: Ended) -> bool:
    return ended.returncode == 0 and not parse_statistics(ended.stdout)[2]


def _require_same_text(record: Mapping[str, Any], text: EvaluationText) -> None:
    wanted = (text.record["sha256"], text.record["context"])
    if (record["text_sha256"], record["context"]) != wanted:
        raise OllamakeError(
            f"the reference was evaluated on another text than {text.path} (sha256 {record['text_sha256'][:12]}, context"
            f" {record['context']}; now {wanted[0][:12]}, {wanted[1]}). Run the workflow again, so that it is evaluated anew."
        )
