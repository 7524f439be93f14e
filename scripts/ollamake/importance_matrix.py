"""Text -> importance matrix of a model, by llama.cpp's llama-imatrix, in blocks that a killed job does not lose.

llama-imatrix can save what it has while it runs, but does so in the middle of a batch, when some tensors have counted it
and others not. So it is run on one block of chunks after the other, and goes on from the file of the blocks before: its sums
are float32 in memory as in the file, so that the bytes are the same however the text is divided (tools/imatrix/imatrix.cpp).
"""

from __future__ import annotations

import logging
import math
import re
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.child_process import heard
from ollamake.damage import DamagedFile
from ollamake.errors import OllamakeError
from ollamake.importance_file import chunks_of_partial, read_importance, write_partial
from ollamake.llama_cpp_programs import program_identity
from ollamake.machine_limits import child_hint
from ollamake.progress import progress_bar
from ollamake.proven_inputs import Recorded, proven

log = logging.getLogger("ollamake")

BLOCK_SECONDS = 300.0
"""What a block should take, so that loading the model again for each is little beside it, and little is lost."""
FIRST_BLOCK = 8
"""Chunks of the first block, whose time tells how long the others should be, and the fewest of any other."""
TOKENS_TOGETHER = 512
"""Tokens of a batch, as is llama.cpp's own default for what is computed at once (-ub)."""
FEWEST_TOKENS = 16
"""llama-imatrix leaves out batches of fewer."""

_COMPUTING = re.compile(r"computing over (\d+) chunks")
_COLLECTING = re.compile(r"collect_imatrix\[(\d+)\]")
_NOT_FINITE = re.compile(r"non-finite values detected in (\S+)")
_DEBUG = re.compile(r"^[\d.]+ [DT] ")


@dataclass(frozen=True)
class Calibration:
    """A text, and how it is read: ``chunks`` chunks of ``context`` tokens, special tokens parsed as such or not."""

    text: Path
    sha256: str
    chunks: int
    context: int
    parse_special: bool


@contextmanager
def of_whole_files(files: Iterable[Recorded], partial: Path) -> Iterator[None]:
    """Prove the files that the block reads; nothing that was found out with a damaged one is gone on with."""
    try:
        with proven(files):
            yield
    except DamagedFile:
        partial.unlink(missing_ok=True)
        raise


def compute_importance(
    program: Path,
    gguf: Path,
    gguf_sha256: str,
    calibration: Calibration,
    output: Path,
    partial: Path,
    threads: int,
) -> None:
    """Write the importance matrix of an unquantized GGUF to ``output``; ``partial`` keeps what a killed job has done.

    The file names its text without a folder: llama-imatrix runs in the text's own. Raises OllamakeError for a text that is
    too short, with llama-imatrix's last lines if it fails, and with the tensor's name for activations that are not finite.
    """
    total, together = calibration.chunks, _chunks_together(calibration.context)
    _require_enough(calibration)
    made_of = _made_of(program, gguf_sha256, calibration)
    done = chunks_of_partial(partial, made_of, total - FIRST_BLOCK)
    if done:
        log.info("going on after chunk %d of %d, which a job that was ended had done", done, total)
    seconds_a_chunk: float | None = None
    with progress_bar(total, "importance matrix", unit=" chunks") as progress:
        progress.update(done)
        while done < total:
            count = next_block(done, total, seconds_a_chunk, together)
            command = [*_command(program, gguf, calibration, threads), "-o", str(output.absolute())]
            command += ["--chunk", str(done), "--chunks", str(count)]
            command += ["--in-file", _as_csv(partial.absolute())] if done else []
            output.unlink(missing_ok=True)
            began = time.monotonic()
            computed = _run(command, calibration, gguf, output, progress)
            found = read_importance(output).chunks
            # Fewer by one at the end: its tokenizer and that of the checkpoint need not agree on every token.
            if found < done + computed or found < min(done + count, total - 1):
                raise OllamakeError(
                    f"{program.name} on {calibration.text}: expected {total} chunks of {calibration.context} tokens,"
                    f" as its record says; there are {found}. Is the text another one than its record says?"
                    " Remove both to have them made again."
                )
            if done + count >= total:
                break
            done += count
            seconds_a_chunk = (time.monotonic() - began) / count
            write_partial(output, partial, made_of, done)


def next_block(done: int, total: int, seconds_a_chunk: float | None, together: int) -> int:
    """Return the number of chunks to compute next, whole batches of ``together`` unless they are the last.

    Fewer than FIRST_BLOCK are not left over: llama-imatrix refuses to begin where it has no more than two chunks to go.
    """
    wanted = FIRST_BLOCK
    if seconds_a_chunk is not None:
        wanted = max(wanted, math.ceil(BLOCK_SECONDS / max(seconds_a_chunk, 1e-6)))
    wanted = math.ceil(wanted / together) * together
    return total - done if total - done - wanted < FIRST_BLOCK else wanted


def batch_tokens(context: int) -> int:
    """Return the tokens of a batch: of several chunks if they are short, of a part of one, all parts alike, if it is long."""
    if context <= TOKENS_TOGETHER:
        return _chunks_together(context) * context
    return math.ceil(context / math.ceil(context / TOKENS_TOGETHER))


def _chunks_together(context: int) -> int:
    return max(1, TOKENS_TOGETHER // context)


def _require_enough(calibration: Calibration) -> None:
    if calibration.context < FEWEST_TOKENS:
        raise OllamakeError(
            f"imatrix.context: expected at least {FEWEST_TOKENS} tokens, found {calibration.context}; llama-imatrix leaves out"
            " shorter ones."
        )
    if calibration.chunks < 2:
        raise OllamakeError(
            f"{calibration.text}: llama-imatrix needs at least two chunks of {calibration.context} tokens, the text has"
            f" {calibration.chunks}. Give more text in imatrix.text or imatrix.chat, or a smaller imatrix.context."
        )


def _made_of(program: Path, gguf_sha256: str, calibration: Calibration) -> dict[str, Any]:
    """Return all that decides about the sums but the number of chunks; the number of threads does not."""
    return {
        "source_sha256": gguf_sha256,
        "text_sha256": calibration.sha256,
        "context": calibration.context,
        "batch": batch_tokens(calibration.context),
        "parse_special": calibration.parse_special,
        "program": program_identity(program),
    }


def _command(program: Path, gguf: Path, calibration: Calibration, threads: int) -> list[str]:
    batch = str(batch_tokens(calibration.context))
    command = [str(program.resolve()), "-m", str(gguf.resolve()), "-f", calibration.text.name]
    command += ["-c", str(calibration.context), "-b", batch, "-ub", batch, "-t", str(threads), "--no-ppl"]
    command += ["--parse-special"] if calibration.parse_special else []
    # It aborts for a tokenizer that puts an EOS behind a prompt, of which there is one here, behind the whole text.
    command += ["--override-kv", "tokenizer.ggml.add_eos_token=bool:false"]
    # Saved at the end alone; what it says of each tensor, at -lv 5, is its only sign of progress.
    return [*command, "--output-format", "gguf", "--output-frequency", str(2**30), "-lv", "5"]


def _as_csv(path: Path) -> str:
    """Return a path as --in-file wants it, which takes commas for the end of one (parse_csv_row in common/arg.cpp)."""
    return '"' + str(path).replace('"', '""') + '"'


def _run(command: list[str], calibration: Calibration, gguf: Path, output: Path, progress: Any) -> int:
    """Run llama-imatrix, show its progress, and return how many chunks it says that it computes, 0 if it does not say.

    Its log is written by a thread that is not waited for at the end: the last lines may be missing, and with them the reason.
    """
    last_lines: deque[str] = deque(maxlen=25)
    computed, not_finite = 0, ""
    folder = calibration.text.absolute().parent
    try:
        with heard(command, cwd=folder, stdin=subprocess.DEVNULL) as (child, lines):
            for line in lines:
                if step := _COLLECTING.search(line):
                    progress.update(max(0, min(int(step[1]), calibration.chunks) - progress.n))
                elif not _DEBUG.match(line) and line.strip():
                    last_lines.append(line)
                if found := _COMPUTING.search(line):
                    computed = int(found[1])
                if found := _NOT_FINITE.search(line):
                    not_finite = found[1]
    except OSError as error:
        raise OllamakeError(
            f"{command[0]} cannot be run ({error}). Build llama.cpp's programs again, or correct tools.llama_cpp."
        ) from error
    if not_finite:
        raise OllamakeError(
            f"{gguf} computes NaN or infinity on {calibration.text}: in what goes into {not_finite}. Every quantization of it"
            " would, too. Look at the adapter (the merge report names its largest tensors), or set `merge: {dtype: bfloat16}`"
            " (or float32) if float16 is too narrow for the model."
        )
    if child.returncode or not output.exists():
        raise OllamakeError(
            f"{Path(command[0]).name} failed on {gguf} with {calibration.text} (exit code {child.returncode}):\n"
            + "".join(last_lines).rstrip()
            + child_hint(child.returncode, output.parent)
        )
    return computed
