"""Unquantized GGUF -> quantized GGUF, by llama.cpp's llama-quantize."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from ollamake.child_process import heard
from ollamake.errors import OllamakeError
from ollamake.machine_limits import child_hint
from ollamake.progress import progress_bar
from ollamake.quantization_types import UNQUANTIZED

MAX_BUFFER_MIB = 512
"""Bound on llama-quantize's buffer for one tensor: the same bytes, and 2.2 GB instead of 5.2 GB at the peak of a 32B model,
most of it the mapped source."""


def type_argument(quantization: str, source_type: str) -> str:
    """Return what llama-quantize is asked for.

    A file that is wanted in the type it already has still goes through llama-quantize, as COPY: Ollama 0.30 and later
    rewrites a GGUF in just this way at create, and a file that already went through it keeps its sha256.
    """
    return "COPY" if quantization in UNQUANTIZED and quantization == source_type else quantization


def quantize(
    program: Path, source: Path, output: Path, argument: str, threads: int, imatrix: Path | None = None
) -> None:
    """Run llama-quantize on ``source`` and write ``output``.

    Paths are given absolute: llama-quantize takes an output name that begins with a digit for a type. It writes the path of
    an importance matrix into the file, so that it runs in the matrix's folder, and gets the name alone. Raises
    OllamakeError with its last lines when it fails or writes nothing.
    """
    command = [str(program.resolve()), "--max-buffer-size", str(MAX_BUFFER_MIB)]
    command += ["--imatrix", imatrix.name] if imatrix is not None else []
    command += [str(source.resolve()), str(output.absolute()), argument, str(threads)]
    last_lines: deque[str] = deque(maxlen=30)
    with (
        progress_bar(0, f"quantizing to {argument}", unit=" tensors") as progress,
        heard(command, cwd=None if imatrix is None else imatrix.absolute().parent) as (child, lines),
    ):
        for line in lines:
            last_lines.append(line)
            if step := re.match(r"\[\s*(\d+)/\s*(\d+)\]", line):
                progress.total = int(step[2])
                progress.update(int(step[1]) - progress.n)
    if child.returncode or not output.exists():
        raise OllamakeError(
            f"{program.name} failed on {source} (type {argument}, exit code {child.returncode}):\n"
            + "".join(last_lines).rstrip()
            + child_hint(child.returncode, output.parent)
        )
    if imatrix is not None:
        order_as_copied(output)


def order_as_copied(path: Path) -> None:
    """Bring the metadata of a GGUF in the order that llama-quantize's COPY gives them, in place.

    It sets version and type of the quantization last, but for what it says of an importance matrix; when it copies the file,
    that is among the rest. Ollama copies a file in this way at create, and its sha256 must not change by that.
    """
    from gguf import GGUFReader  # with numpy, for those alone that read one: the workflow asks this module for sizes

    fields = GGUFReader(path).fields
    last = [fields["general.quantization_version"], fields["general.file_type"]]
    begin = last[0].offset
    behind = [field for field in fields.values() if field.offset > last[1].offset]
    sizes = [sum(int(part.nbytes) for part in field.parts) for field in (*last, *behind)]
    with path.open("r+b") as file:
        file.seek(begin)
        found = file.read(sum(sizes))
        file.seek(begin)
        file.write(found[sum(sizes[:2]) :] + found[: sum(sizes[:2])])
