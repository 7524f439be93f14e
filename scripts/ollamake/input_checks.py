"""What can be found wrong before work starts: base, adapter, disk, compiler, server; in seconds, one message each."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ollamake.adapter import read_adapter
from ollamake.checkpoint import read_checkpoint
from ollamake.errors import OllamakeError
from ollamake.free_disk import free_bytes, require_free_disk
from ollamake.llama_cpp_source import require_compiler
from ollamake.merge_plan import plan_merge
from ollamake.ollama_server import OllamaServer, ServerUnreachable
from ollamake.quantization_types import QUANTIZATION_TYPES
from ollamake.questions import read_questions
from ollamake.safetensors_header import tensor_bytes

log = logging.getLogger("ollamake")

_MADE_HERE_BYTES = 100_000_000
"""Allowance for a model of a few million parameters, whose files do not exist yet."""

_METADATA_BYTES = 10_000_000
"""Allowance for the metadata of one GGUF, mostly its tokenizer."""


def check_inputs(name: str, spec: dict[str, Any], results: Path) -> dict[str, Any]:
    """Check one model and return what was found.

    ``spec``: base, adapters (path, weight), made_here (those of the folders that a rule makes, which are checked when they are
    merged), dtype, quantizations, target, host, questions, compiler_needed. Raises OllamakeError for the first fault.
    """
    if spec["compiler_needed"]:
        require_compiler()
    if spec["questions"]:
        questions = read_questions(Path(spec["questions"]), f"models.{name}.answers.questions")
        log.info("%d questions", len(questions))
    _check_server(name, spec)
    if spec["made_here"]:
        needed, edited = _MADE_HERE_BYTES, None
    else:
        needed, edited = _check_model(name, spec, results)
    require_free_disk(results, needed, f"building {name}")
    return {
        "base": spec["base"],
        "adapters": spec["adapters"],
        "tensors_with_update": edited,
        "disk_needed_gb": round(needed / 1e9, 2),
        "disk_free_gb": round(free_bytes(results) / 1e9, 2),
    }


def _check_server(name: str, spec: dict[str, Any]) -> None:
    """Raise OllamakeError if the server does not answer, or if there is nobody to answer the questions."""
    server = OllamaServer(spec["host"])
    served = spec["target"] != "store"
    if served:
        try:
            log.info("Ollama %s at %s", server.version(), server.address)
        except ServerUnreachable as error:
            if spec["target"] == "server" or not error.nobody_there:
                raise
            served = False
    if spec["questions"] and not served and shutil.which("ollama") is None:
        raise OllamakeError(
            f"models.{name}.answers.questions: nobody can answer them: no Ollama server is used ({server.address}), and there is"
            " no `ollama` on PATH to serve the store. Install Ollama, set ollama.host, or leave out the questions."
        )


def _check_model(name: str, spec: dict[str, Any], results: Path) -> tuple[int, int]:
    """Return the bytes still to be written for a model, and how many tensors get an update."""
    base = read_checkpoint(spec["base"], f"models.{name}.base")
    adapters = [read_adapter(Path(adapter["path"]), adapter["weight"]) for adapter in spec["adapters"]]
    plan = plan_merge(base, adapters, spec["dtype"])
    tensors = [tensor for shard in plan["shards"] for tensor in shard["tensors"]]
    edited = sum(bool(tensor["edits"]) for tensor in tensors)
    log.info("%s: %d tensors in %d shards, %d of them get an update", name, len(tensors), len(plan["shards"]), edited)
    return _bytes_to_write(results / name, name, tensors, spec["quantizations"]), edited


def _bytes_to_write(folder: Path, name: str, tensors: Sequence[dict[str, Any]], quantizations: Sequence[str]) -> int:
    """Return about how many bytes the build of a model will add to what already exists of it."""
    merged = sum(tensor_bytes(tensor["stored"], tensor["shape"]) for tensor in tensors)
    elements = sum(tensor_bytes("U8", tensor["shape"]) for tensor in tensors)
    wanted = {
        folder / "gguf" / f"{name}.{quantization}.gguf": _METADATA_BYTES
        + round(elements * QUANTIZATION_TYPES[quantization].bits_per_weight / 8)
        for quantization in quantizations
    }
    missing = [size for file, size in wanted.items() if not file.exists()]
    needed = sum(missing)
    if missing and not (folder / "gguf" / f"{name}.unquantized.gguf").exists():
        needed += merged + _METADATA_BYTES
        done = sum(file.stat().st_size for file in (folder / "merged").glob("*.safetensors"))
        needed += max(0, merged - done)
    return needed


def refuse_incomplete(spec: dict[str, Any]) -> None:
    """Raise OllamakeError for a specification by hand that lacks a key."""
    expected = {"base", "adapters", "made_here", "dtype", "quantizations", "target", "host"}
    expected |= {"questions", "compiler_needed"}
    missing = expected - spec.keys()
    if missing:
        raise OllamakeError(f"--spec lacks {', '.join(sorted(missing))}")
