"""The file of log-probabilities that llama-perplexity writes for a reference and reads for a comparison.

Layout (perplexity() in tools/perplexity/perplexity.cpp of llama.cpp): "_logits_", int32 context, int32 vocabulary, int32 chunks,
int32 tokens [chunks, context], then for every scored token float32 scale, float32 smallest log-probability and uint16
[vocabulary], padded to an even number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ollamake.errors import OllamakeError
from ollamake.perplexity_output import scored_tokens

_MAGIC = b"_logits_"
_HEADER_BYTES = 20


@dataclass(frozen=True)
class LogitsHeader:
    """What a file of log-probabilities is of. ``tokens``: ids, [chunks, context]."""

    context: int
    vocabulary: int
    chunks: int
    tokens: npt.NDArray[np.int32]


def logits_bytes(context: int, vocabulary: int, chunks: int) -> int:
    """Return the exact size of the file: 7.8 GB for 100 chunks of 512 tokens and a vocabulary of 152 k."""
    row = 2 * ((vocabulary + 1) // 2) + 4
    return _HEADER_BYTES + 4 * chunks * context + 2 * row * scored_tokens(context, chunks)


def read_header(path: Path) -> LogitsHeader:
    """Read the header and the tokens. Raises OllamakeError if the file is something else or not as long as it says."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        if len(head) < _HEADER_BYTES or head[:8] != _MAGIC:
            raise OllamakeError(
                f"{path} is no file of log-probabilities of llama-perplexity. Remove it and run the workflow again."
            )
        context, vocabulary, chunks = struct.unpack("<3i", head[8:])
        expected, found = logits_bytes(context, vocabulary, chunks), path.stat().st_size
        if found != expected:
            raise OllamakeError(
                f"{path} has {found} bytes; {chunks} chunks of {context} tokens and a vocabulary of {vocabulary} make"
                f" {expected}. llama-perplexity does not notice a disk that gets full: make room and run it again."
            )
        tokens = np.frombuffer(file.read(4 * chunks * context), dtype="<i4").reshape(chunks, context)
    return LogitsHeader(context, vocabulary, chunks, tokens)
