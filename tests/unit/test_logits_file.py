"""The file of log-probabilities: its size, and what its header says."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ollamake.errors import OllamakeError
from ollamake.logits_file import logits_bytes, read_header
from ollamake.perplexity_command import batch_sizes


def write(path: Path, context: int = 6, vocabulary: int = 5, chunks: int = 2) -> bytes:
    """Write a file as the comment in perplexity.cpp has it, with zeros for log-probabilities; return its bytes."""
    tokens = np.arange(chunks * context, dtype="<i4")
    scored = chunks * (context - 1 - context // 2)
    row = b"\0" * (8 + 2 * (vocabulary + vocabulary % 2))
    content = b"_logits_" + struct.pack("<3i", context, vocabulary, chunks) + tokens.tobytes() + row * scored
    path.write_bytes(content)
    return content


def test_sizes_of_files_that_llama_perplexity_wrote() -> None:
    """The demo, a random model with a vocabulary of 32 k, one of 259 tokens; the last is published for Llama 3."""
    assert logits_bytes(512, 4096, 20) == 41_860_980
    assert logits_bytes(512, 32_000, 4) == 65_296_372
    assert logits_bytes(512, 128_256, 565) == pytest.approx(37e9, rel=0.01)


def test_header(tmp_path: Path) -> None:
    content = write(tmp_path / "m.kld")
    assert len(content) == logits_bytes(6, 5, 2)
    header = read_header(tmp_path / "m.kld")
    assert (header.context, header.vocabulary, header.chunks) == (6, 5, 2)
    assert header.tokens.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length_is_refused(tmp_path: Path, change: int) -> None:
    content = write(tmp_path / "m.kld")
    (tmp_path / "m.kld").write_bytes((content + b"\0")[: len(content) + change])
    with pytest.raises(OllamakeError, match=rf"has {len(content) + change} bytes; .* make {len(content)}.*disk"):
        read_header(tmp_path / "m.kld")


@pytest.mark.parametrize("content", [b"", b"_logits_\0\0", b"The log-probabilities of the reference did not fit"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.kld").write_bytes(content)
    with pytest.raises(OllamakeError, match="no file of log-probabilities"):
        read_header(tmp_path / "m.kld")


def test_batches_are_whole_chunks() -> None:
    """llama-perplexity asserts that (n_batch < n_ctx || n_batch % n_ctx == 0), and llama.cpp has 256 sequences at most."""
    for context in (8, 64, 100, 512, 700, 2000, 2048, 2049, 8192):
        batch, micro = batch_sizes(context, 10, 0)
        assert batch < context or batch % context == 0
        assert max(1, batch // context) <= 256
        assert batch <= 2048
        assert micro <= 512
    assert batch_sizes(512, 10, 0) == (2048, 512)


def test_weights_that_do_not_fit_the_gpu_are_moved_as_seldom_as_possible() -> None:
    assert batch_sizes(512, 65_000, 24_000) == (2048, 2048)
    assert batch_sizes(512, 20_000, 24_000) == (2048, 512)
