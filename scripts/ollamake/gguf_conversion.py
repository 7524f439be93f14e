"""Checkpoint folder -> unquantized GGUF, by llama.cpp's own converter."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from ollamake import converter_process
from ollamake.errors import OllamakeError
from ollamake.json_object import read_json_object
from ollamake.progress import SECONDS_BETWEEN_LINES

log = logging.getLogger("ollamake")

OUTTYPE_OF = {"F16": "f16", "BF16": "bf16", "F32": "f32"}
"""safetensors dtype -> the converter's --outtype."""


def outtype_for(plan: dict[str, Any]) -> str:
    """Return the converter's --outtype that loses nothing of the merge: f16, bf16 or f32.

    ``plan`` is a parsed merge_plan.json. The widest matrix dtype decides. A 16-bit mixture (float16 where the adapter
    was merged, bfloat16 elsewhere) becomes f16: bfloat16 would round the merged update away, while a bfloat16 weight
    is exact in float16 down to 6.1e-5 and off by at most 3e-8 below that.
    """
    matrices = {
        tensor["stored"] for shard in plan["shards"] for tensor in shard["tensors"] if len(tensor["shape"]) >= 2
    }
    for dtype in ("F32", "F16", "BF16"):
        if dtype in matrices:
            return OUTTYPE_OF[dtype]
    raise OllamakeError(
        f"the merged checkpoint has no matrix in float16, bfloat16 or float32 (found {sorted(matrices) or 'none'});"
        " llama.cpp has nothing to convert. Choose a base model with 16-bit or 32-bit weights."
    )


def require_own_head(gguf: Path, plan: dict[str, Any]) -> None:
    """Raise OllamakeError if the merge parted head and embedding, and the GGUF has no head of its own.

    llama.cpp uses the embedding as head for some architectures (Gemma), whatever the checkpoint holds; that would be
    another model than the one that was trained.
    """
    if plan["config"].get("tie_word_embeddings") is not False:
        return
    if any(tensor.name == "output.weight" for tensor in GGUFReader(gguf).tensors):
        return
    raise OllamakeError(
        "the adapter was trained on only one of embedding and output head, which this model ties, so the merged model has"
        " both; but llama.cpp keeps them one for this architecture, and the GGUF would be another model."
        " Train with ensure_weight_tying=True, or without embed_tokens and lm_head."
    )


def model_name(checkpoint: Path, name: str) -> str:
    """Return general.name: llama.cpp strips white space after Phi-3's special tokens only where the name says Phi-3."""
    kind = read_json_object(checkpoint / "config.json").get("model_type")
    return f"{name} (phi-3)" if kind == "phi3" and not re.search(r"phi-?3", name.lower()) else name


def convert(converter: Path, checkpoint: Path, outtype: str, name: str, output: Path) -> None:
    """Run llama.cpp's convert_hf_to_gguf.py and write ``output``.

    It runs in a process of its own, since its tree brings a `gguf` package of its own. Raises OllamakeError with the
    converter's own word for an architecture or tokenizer it does not know, and for a weight that float16 cannot hold
    (which the converter itself only warns of).
    """
    program = Path(converter_process.__file__)
    arguments = [str(converter), str(checkpoint), "--outfile", str(output), "--outtype", outtype]
    run_converter_process(program, [*arguments, "--model-name", model_name(checkpoint, name)], output, checkpoint)


def run_converter_process(
    program: Path, arguments: list[str], output: Path, checkpoint: Path | str, level: int = logging.INFO
) -> None:
    """Run a Python program that runs the converter, and log its warnings and its progress at ``level``.

    Raises OllamakeError, which calls the model ``checkpoint``, if it fails or does not write ``output``.
    """
    command = [sys.executable, str(program), *arguments]
    last_lines: deque[str] = deque(maxlen=25)
    refusal = ""
    said = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            last_lines.append(line)
            if line.startswith(converter_process.REFUSAL):
                refusal = line.removeprefix(converter_process.REFUSAL).strip()
            elif line.startswith("WARNING") or (
                line.startswith("Writing:") and time.monotonic() - said > SECONDS_BETWEEN_LINES
            ):
                log.log(level, "%s", line.rstrip())
                said = time.monotonic()
    if child.returncode or not output.exists():
        raise OllamakeError(
            refusal
            or f"llama.cpp's converter failed on {checkpoint} (exit code {child.returncode}):\n{''.join(last_lines)}"
        )
