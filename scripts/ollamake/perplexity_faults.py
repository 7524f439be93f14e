"""What llama-perplexity could not do, in words that say what to do; its exit code is 0 for most of it."""

from __future__ import annotations

import re
from pathlib import Path

from ollamake.errors import OllamakeError
from ollamake.nonfinite_weights import nonfinite_tensors
from ollamake.perplexity_output import SMALLEST_SAMPLE, chunks_needed, scored_tokens
from ollamake.perplexity_run import Ended

_TOO_SHORT = re.compile(r"you need at least (\d+) tokens")
_INVALID = re.compile(r"has invalid data|found tensors with invalid data")
_TOKENS = re.compile(r"tokenizes to only (\d+) tokens")


def require_enough_chunks(context: int, chunks: int, text: Path) -> None:
    """Raise OllamakeError if ``chunks`` chunks of ``context`` tokens are too few for llama-perplexity's statistics."""
    needed = chunks_needed(context)
    if chunks >= needed:
        return
    scored = scored_tokens(context, chunks)
    raise OllamakeError(
        f"{text}: {chunks} chunks of {context} tokens have {scored} scored tokens, and llama-perplexity makes no statistics of"
        f" less than {SMALLEST_SAMPLE}. It takes {needed - chunks} chunks more: give a longer text (quality.text,"
        " quality.chat), raise quality.chunks, or raise quality.context if it is very small."
    )


def nonfinite_fault(ended: Ended, gguf: Path, kind: str) -> OllamakeError | None:
    """Return the error of a run that met NaN or infinity, in the weights when they were loaded or in a chunk's figures."""
    if _INVALID.search(ended.stderr):
        return nonfinite(gguf, kind, "llama.cpp refuses to load it (--check-tensors)")
    if ended.nonfinite_chunk is None:
        return None
    return nonfinite(
        gguf, kind, f"llama-perplexity's figures are NaN or infinite from chunk {ended.nonfinite_chunk} on"
    )


def failed(ended: Ended, gguf: Path, text: Path, missing: list[str]) -> OllamakeError:
    """Return the error of a program that died, or ended without what it should have printed (``missing``: labels)."""
    if found := _TOO_SHORT.search(ended.stderr):
        tokens = _TOKENS.search(ended.stderr)
        has = f"it has {tokens[1]}" if tokens else "it has fewer"
        return OllamakeError(
            f"{text} is too short to be evaluated: llama.cpp needs {found[1]} tokens, two chunks, and by its tokenizer {has}."
            " Give more text (quality.text, quality.chat), or set quality.context to a smaller number."
        )
    if ended.returncode:
        what = f"failed on {gguf} ({ended.how()})"
    else:
        what = f"ended without all of its figures of {gguf} (exit code 0; missing: {', '.join(missing)})"
    hint = "" if ended.returncode else _HINT
    return OllamakeError(f"{ended.program} {what}. It said:\n{ended.last_words()}{hint}")


_HINT = (
    "\nIf nothing above explains it, this llama.cpp may print other lines than the pinned version, or has lost the last (its"
    " issue 22142): take it off PATH or out of tools.llama_cpp, and ollamake builds its own."
)


def nonfinite(gguf: Path, kind: str, seen: str) -> OllamakeError:
    """Return the error of NaN or infinity, and name the tensors of ``gguf`` that are the reason.

    ``kind``: the type of the GGUF; ``seen``: where it showed. All of the tensors are read if none is at fault.
    """
    tensors, unknown = nonfinite_tensors(gguf)
    if tensors:
        names = "; ".join(map(str, tensors))
        return OllamakeError(
            f"{gguf}: {seen}. Its weights hold NaN or infinity: {names} (the first of these tensors). If the unquantized GGUF has"
            " them, too, they come from the base or an adapter: look at them there. If not, leave this type out of quantizations."
        )
    unread = f" ({len(unknown)} tensors of types that could not be looked at aside)" if unknown else ""
    remedy = (
        "F16 holds no number beyond 65504: set `merge: {dtype: bfloat16}` (or float32)"
        if kind == "F16"
        else "choose another type, or float32 for merge.dtype"
    )
    return OllamakeError(
        f"{gguf}: {seen}, so nothing can be said about its quality. Its weights hold neither NaN nor infinity{unread}, so the"
        f" likely cause is an overflow in the computation, as with models of large activations: {remedy}."
    )
