"""A GGUF that is all of a model but its weights, and what llama.cpp's own programs say of it.

The converter writes its metadata and the table of its tensors (ghost_process.py); the weights are a hole in the file.
llama-quantize --dry-run and llama-fit-params ask no more of a file than that it is as long as it should be.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake import ghost_process
from ollamake.errors import OllamakeError
from ollamake.gguf_conversion import model_name, run_converter_process
from ollamake.importance_sizes import IMATRIX_DATASET

IMATRIX_CHUNKS = 100
"""What is assumed of an importance matrix; any number takes as many bytes."""

_DRY_RUN = re.compile(
    r"^\[ *\d+/ *\d+\] (?P<name>\S+) +- \[[^]]*\], type = +(?P<old>\w+), size = +[\d.]+ MiB"
    r"(?: -> +[\d.]+ MiB \((?P<new>\w+)\))?$",
    re.MULTILINE,
)
_FAILURE = re.compile(r"failed to quantize: (.+)")
_WANTS_IMATRIX = "will require an imatrix"
_FIT = re.compile(r"^(?P<device>.+) (?P<model>\d+) (?P<context>\d+) (?P<compute>\d+) *$", re.MULTILINE)
_SAYS_WHY = (
    re.compile(r"^[\d.]+ E +(.+)"),
    re.compile(r"^ *what\(\): *(.+)"),
    re.compile(r"(.*(?:error|fail|abort|assert|cannot|not supported|requires).*)", re.IGNORECASE),
)
"""Which line of a failed program is shown, the best first: what it logs as an error, or says of an exception."""
_FOLDER = re.compile(r"\S*/(?=[\w.+-]+:\d+: )")
REPAIR = "Build llama.cpp's programs again, or correct tools.llama_cpp."
"""What to do where a program of llama.cpp does not work at all."""
_SECONDS = 120
"""After which a program is taken for hung that needs well below one."""


@dataclass(frozen=True)
class Ghost:
    """A GGUF without weights; see ghost_process.py for what is in which file."""

    sizes: Path
    memory: Path
    architecture: str
    metadata: dict[str, Any]
    metadata_bytes: int
    """Header and key-value section."""
    data_start: int
    block_count: int
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name -> (type, shape with rows first)."""
    block_sizes: dict[str, tuple[int, int]]
    """Type -> (elements, bytes) of one block."""


@dataclass(frozen=True)
class DryRun:
    """What llama-quantize would write: tensor -> type, and whether it asks for an importance matrix to do so."""

    types: dict[str, str]
    wants_imatrix: bool


def make_ghost(converter: Path, checkpoint: Path, outtype: str, name: str, folder: Path, *, tokenizer: bool) -> Ghost:
    """Convert a checkpoint without weights (ghost_checkpoint.py) and return what is known of the GGUF, in ``folder``.

    ``outtype`` and ``name`` are as for ``gguf_conversion.convert``; ``tokenizer``: whether the checkpoint has one. Raises
    OllamakeError in the converter's own words if it does not know the model.
    """
    sizes = folder / "sizes.gguf"
    arguments = ["tokenizer" if tokenizer else "none", name, str(converter), str(checkpoint), "--outfile", str(sizes)]
    arguments += ["--outtype", outtype, "--model-name", model_name(checkpoint, name)]
    # Its warnings are those of the conversion, and belong there.
    run_converter_process(Path(ghost_process.__file__), arguments, sizes, name, logging.DEBUG)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    facts["tensors"] = {name: (kind, tuple(shape)) for name, kind, shape in facts["tensors"]}
    facts["block_sizes"] = {kind: tuple(sizes) for kind, sizes in facts["block_sizes"].items()}
    return Ghost(sizes=sizes, memory=folder / "memory.gguf", **facts)


def types_by_dry_run(llama_quantize: Path, gguf: Path, argument: str, imatrix: Path | None = None) -> DryRun | str:
    """Return the types that llama-quantize would write for ``argument`` (a type, or COPY), else its words of refusal.

    Raises OllamakeError if it cannot be run or crashes: unlike llama-fit-params it refuses what it cannot do in good order.
    """
    command = [str(llama_quantize.resolve()), "--dry-run"]
    command += ["--imatrix", str(imatrix)] if imatrix is not None else []
    done = _run([*command, str(gguf), argument])
    if done.returncode < 0:
        raise OllamakeError(
            f"{command[0]} --dry-run for {argument} was ended by signal {-done.returncode}"
            f" ({_signal_name(-done.returncode)}); its last words: {_last_words(done)}. {REPAIR}"
        )
    return parse_dry_run(done.stdout) if done.returncode == 0 else _refusal(done)


def parse_dry_run(output: str) -> DryRun:
    """Return what the lines of a dry run say; types are named as in gguf-py (Q4_K)."""
    types = {line["name"]: (line["new"] or line["old"]).upper() for line in _DRY_RUN.finditer(output)}
    return DryRun(types, _WANTS_IMATRIX in output)


def memory_by_fit_params(
    llama_fit_params: Path, gguf: Path, kv: str, parallel: int, context: int
) -> tuple[int, int] | str:
    """Return (KV cache, compute buffer) in MiB for ``context`` tokens in each of ``parallel`` slots, else why not.

    The arguments are those that Ollama gives llama-server. The processor is asked, so that the figures are the same on
    every machine; weights are not repacked, which would count them elsewhere. A model that llama.cpp gives up on with such
    a cache, even by aborting, cannot have it; its words are returned.
    """
    command = [str(llama_fit_params.resolve()), "-m", str(gguf), "-fitp", "on", "-dev", "none", "--no-repack"]
    command += ["-c", str(context * parallel), "-np", str(parallel), "-ctk", kv, "-ctv", kv]
    done = _run([*command, "-fa", "on", "-b", "512", "-ub", "512"])
    found = parse_fit_params(done.stdout) if done.returncode == 0 else None
    return _refusal(done) if found is None else found


def parse_fit_params(output: str) -> tuple[int, int] | None:
    """Return (context, compute) in MiB of the last device in the table of llama-fit-params -fitp on, the host."""
    rows = list(_FIT.finditer(output))
    return (int(rows[-1]["context"]), int(rows[-1]["compute"])) if rows else None


def write_ghost_imatrix(path: Path, tensors: Iterable[tuple[str, tuple[int, ...]]], *, values: bool = True) -> int:
    """Write an importance matrix of ones for every matrix but embedding and head; return how many it has.

    ``tensors``: (name, shape with rows first). Without ``values`` every matrix has one in place of one a column and expert:
    a dry run looks at none. Format: llama.cpp's tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp.
    """
    import numpy as np
    from gguf import GGUFWriter

    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)  # It reports every file that it opens.
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [IMATRIX_DATASET])
    writer.add_uint32("imatrix.chunk_count", IMATRIX_CHUNKS)
    writer.add_uint32("imatrix.chunk_size", 512)
    names = [(name, shape) for name, shape in tensors if has_importance(name, shape)]
    for name, shape in names:
        experts, columns = (shape[0] if len(shape) > 2 else 1, shape[-1]) if values else (1, 1)
        writer.add_tensor(f"{name}.in_sum2", np.ones((experts, columns), np.float32))
        writer.add_tensor(f"{name}.counts", np.ones((experts, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(names)


def has_importance(name: str, shape: Sequence[int]) -> bool:
    """Whether llama-imatrix collects figures of a tensor: a matrix that activations are multiplied with."""
    return len(shape) > 1 and name.endswith(".weight") and name not in ("token_embd.weight", "output.weight")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            # Where it aborts, which is an answer, too, no debugger has to be started.
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OllamakeError(f"{command[0]} cannot be run ({error}). {REPAIR}") from error


def _refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line in which a program says why it failed, and how it ended."""
    if found := _FAILURE.search(done.stdout):
        return found[1].strip()
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return f"{_last_words(done)} ({how})"


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stdout.splitlines()]
    said = [found[1] for pattern in _SAYS_WHY for line in lines if (found := pattern.search(line))]
    return _FOLDER.sub("", next(iter(said or filter(None, reversed(lines))), "it said nothing"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # Real-time signals have numbers alone.
        return "no name"
