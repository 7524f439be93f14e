"""Where llama.cpp's programs and its converter are on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from ollamake.errors import OllamakeError

CONVERTER = "convert_hf_to_gguf.py"
_BELOW = ("", "bin", "build/bin")
"""Where programs lie below a folder that a user names: a folder of programs, an install prefix, a source tree."""


def find_program(program: str, folder: str | None) -> Path | None:
    """Return the program in ``folder`` (configuration key tools.llama_cpp), else on PATH; None if it has to be built.

    Raises OllamakeError if ``folder`` is given but does not have the program: it was asked for, so nothing else is
    taken in its place.
    """
    if folder is None:
        found = shutil.which(program)
        return Path(found) if found else None
    places = [Path(folder).expanduser() / below / program for below in _BELOW]
    for place in places:
        if shutil.which(str(place)):
            return place
    looked = ", ".join(str(place) for place in places)
    raise OllamakeError(
        f"tools.llama_cpp: {program} is not in {folder!r} as an executable file (looked for {looked})."
        " Name a folder that has llama.cpp's programs, or set it to null to have them found on PATH or built."
    )


def find_converter(folder: str | None) -> Path | None:
    """Return the converter of the source tree that a user named, or None for the pinned tree's.

    Programs on PATH come without the converter's Python modules, so only a source tree counts: the folder itself, its
    ``source`` (as ollamake unpacks it), or one of the two above (as CMake builds in build/bin).
    """
    if folder is None:
        return None
    tree = Path(folder).expanduser()
    for candidate in (tree, tree / "source", tree.parent, tree.parent.parent):
        if (candidate / CONVERTER).is_file() and (candidate / "gguf-py").is_dir():
            return candidate / CONVERTER
    return None


def program_identity(program: Path) -> str:
    """Return what changes when a program is replaced by another version: size and time of the file behind the name.

    Reading hundreds of MB at each start of the workflow to hash a program built for GPUs would cost more than a
    quantization that runs once too often.
    """
    status = program.resolve().stat()
    return f"{status.st_size} bytes, {status.st_mtime_ns} ns"
