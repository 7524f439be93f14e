"""The command lines of llama-perplexity."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.hardware import detect_hardware
from ollamake.llama_cpp_patch import PARSE_SPECIAL

_BATCH = 2048
"""Tokens that are evaluated together, in as many whole chunks as go into it: llama.cpp's own default."""
_MICRO_BATCH = 512
_MOST_CHUNKS_AT_ONCE = 64
"""llama.cpp's own bound is 256 sequences (LLAMA_MAX_SEQ)."""
_SECONDS_FOR_HELP = 60.0


def reference_command(
    program: Path, gguf: Path, text: Path, record: Mapping[str, Any], threads: int, logits: Path | None
) -> list[str]:
    """Return the command that measures the perplexity of ``gguf`` and writes its log-probabilities to ``logits``.

    ``record``: of the text. The number of layers on a GPU is llama.cpp's own choice.
    """
    command = [
        *_beginning(program, gguf, record["context"], threads),
        "-f",
        str(text),
        "--chunks",
        str(record["chunks"]),
    ]
    if record["parse_special"]:
        command.append(PARSE_SPECIAL)
    return command if logits is None else [*command, "--kl-divergence-base", str(logits)]


def comparison_command(program: Path, gguf: Path, context: int, threads: int, logits: Path) -> list[str]:
    """Return the command that compares ``gguf`` with the log-probabilities in ``logits``; the text's tokens are in there."""
    return [*_beginning(program, gguf, context, threads), "--kl-divergence", "--kl-divergence-base", str(logits)]


def batch_sizes(context: int, weights: int, gpu_memory: int) -> tuple[int, int]:
    """Return (tokens of a batch, tokens of a micro-batch) for chunks of ``context`` tokens; both sizes in bytes.

    A batch has to be whole chunks, or a part of one. Weights that do not fit the GPU are moved there once a micro-batch, so
    the fewer of these the better, at the price of more memory for the logits.
    """
    batch = _BATCH if context > _BATCH else context * min(_BATCH // context, _MOST_CHUNKS_AT_ONCE)
    return batch, batch if 0 < gpu_memory < weights else min(_MICRO_BATCH, batch)


def require_parse_special(program: Path) -> None:
    """Raise OllamakeError unless llama-perplexity can take special tokens for what they are."""
    try:
        done = subprocess.run(
            [program, "--help"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS_FOR_HELP, check=False,
        )  # fmt: skip
        usage = done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OllamakeError(f"{program} --help does not work: {error}") from error
    if PARSE_SPECIAL not in usage:
        raise OllamakeError(
            f"{program} cannot score a chat (quality.chat): it has no option {PARSE_SPECIAL}, so it would cut special tokens"
            ' such as "<|im_start|>" into pieces of text. Leave quality.chat out; or let ollamake build its own llama-perplexity,'
            " which has the option: take this one off PATH and set tools.llama_cpp to null."
        )


def _beginning(program: Path, gguf: Path, context: int, threads: int) -> list[str]:
    hardware = detect_hardware()
    # A GPU that works in the RAM moves nothing.
    memory = 0 if hardware.unified else round(sum(gpu.memory_gib for gpu in hardware.gpus) * 2**30)
    batch, micro_batch = batch_sizes(context, gguf.stat().st_size, memory)
    sizes = {"-c": context, "-b": batch, "-ub": micro_batch, "-t": threads}
    # NaN in the weights need not come out as NaN: where activations are quantized for the next product it is taken for a number.
    checked = [str(program), "-m", str(gguf), "--check-tensors"]
    return [*checked, *(part for option, size in sizes.items() for part in (option, str(size)))]
