"""The licences of what is built: each text that comes with a source tree, in one file that lies beside the programs."""

from __future__ import annotations

from pathlib import Path

NAME = "LICENSES.txt"
_NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")
_SUFFIXES = ("", ".md", ".txt")
_VENDOR = "vendor"


def license_texts(source: Path) -> str:
    """Return the licences in a source tree, its own first, each headed by its path.

    A library in vendor/ that brings no such file is named: its licence stands at the beginning or end of its only files.
    """
    named = (file for file in sorted(source.rglob("*")) if file.name.upper().startswith(_NAMES))
    files = [file for file in named if file.is_file() and file.suffix in _SUFFIXES]
    files.sort(key=lambda file: (len(file.relative_to(source).parts), file))
    parts = [_headed(file.relative_to(source), file.read_text(encoding="utf-8", errors="replace")) for file in files]
    for library in sorted(folder for folder in (source / _VENDOR).glob("*") if folder.is_dir()):
        if not any(library in file.parents for file in files):
            names = ", ".join(sorted(file.name for file in library.rglob("*") if file.is_file()))
            parts.append(_headed(library.relative_to(source), f"Stands in its files: {names}."))
    return "\n".join(parts)


def _headed(path: Path, text: str) -> str:
    line = "=" * len(str(path))
    return f"{path.as_posix()}\n{line}\n\n{text.strip()}\n"
