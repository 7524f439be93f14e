"""Somebody else's configuration file: read to the byte, kept as a backup, replaced whole, its mode and owner as they were."""

from __future__ import annotations

import codecs
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ollamake.atomic_write import temporary_beside
from ollamake.errors import OllamakeError
from ollamake.text_encoding import guess, is_iso_2022_jp, signature

SUFFIX = ".before-ollamake"


@dataclass(frozen=True)
class RagFile:
    """A file as it was read."""

    path: Path
    """Where it really lies: behind symbolic links, which stay."""
    content: bytes
    text: str
    """Without a byte order mark."""

    def encoded(self, text: str) -> bytes:
        """Return the bytes of another text in the form of this file."""
        return self.content[: len(self.content) - len(self.text.encode())] + text.encode()


def read_rag_file(file: Path) -> RagFile:
    """Read a file of UTF-8 text, with or without byte order mark. Raises OllamakeError naming the file for anything else."""
    try:
        path = file.resolve(strict=True)
        content = path.read_bytes()
    except OSError as error:
        raise OllamakeError(
            f"{file} cannot be read ({error.strerror or error}). Expected the RAG's YAML file."
        ) from error
    kind = signature(content[:16])
    if kind is not None:
        raise OllamakeError(f"{file}: expected YAML, found {kind}.")
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line_start = content.rfind(b"\n", 0, error.start) + 1
        likely = guess(content[:4096], content[line_start : line_start + 4096])
        hint = (
            f" It looks like {likely[0]}: convert it (`iconv -f {likely[1]} -t UTF-8 {file.name}`) if the application reads"
            " UTF-8, too."
            if likely
            else ""
        )
        raise OllamakeError(
            f"{file}, line {content.count(bytes([10]), 0, error.start) + 1}: expected YAML in UTF-8, found other bytes;"
            f" nothing has been written.{hint}"
        ) from error
    if is_iso_2022_jp(content):
        raise OllamakeError(f"{file}: expected YAML in UTF-8, found ISO-2022-JP; nothing has been written.")
    return RagFile(path, content, text)


def backups_of(path: Path) -> list[Path]:
    """Return the backups beside a file, the oldest first."""
    found = [one for one in path.parent.glob(f"{_escaped(path.name)}{SUFFIX}*") if one.is_file()]
    numbered = {one: one.name.removeprefix(path.name + SUFFIX).removeprefix(".") for one in found}
    return sorted(
        (one for one, number in numbered.items() if number.isdigit() or not number),
        key=lambda one: int(numbered[one] or 1),
    )


def keep_backup(file: RagFile) -> Path:
    """Keep what was read beside the file and return where; an older backup that says the same is enough, others stay."""
    older = backups_of(file.path)
    for backup in older:
        if backup.read_bytes() == file.content:
            return backup
    number = 1
    backup = file.path.with_name(file.path.name + SUFFIX)
    while backup.exists() or backup.is_symlink():
        number += 1
        backup = file.path.with_name(f"{file.path.name}{SUFFIX}.{number}")
    with temporary_beside(backup) as temporary:
        _write(temporary, file.content)
        shutil.copymode(file.path, temporary)
    return backup


def replace_rag_file(file: RagFile, content: bytes) -> None:
    """Put ``content`` in the place of what was read, whole or not at all.

    Raises OllamakeError if somebody has changed the file since it was read, and where owner and mode cannot be kept.
    """
    before = file.path.stat()
    if before.st_nlink > 1:
        raise OllamakeError(
            f"{file.path} has {before.st_nlink} names (hard links), of which only this one would change; nothing has been"
            f" written. Make it a file of its own: `cp -p {file.path.name} x && mv x {file.path.name}`."
        )
    with temporary_beside(file.path) as temporary:
        _write(temporary, content)
        try:
            os.chown(temporary, before.st_uid, before.st_gid)
            shutil.copystat(file.path, temporary)
        except PermissionError as error:
            raise OllamakeError(
                f"{file.path} belongs to another user or group, and cannot be replaced without a change of that ({error});"
                " nothing has been written. Run as its owner, or change its owner."
            ) from error
        os.utime(temporary)
        # As late as possible: what lies between this look and the renaming is a system call.
        if file.path.read_bytes() != file.content:
            raise OllamakeError(
                f"{file.path} was changed by somebody else while ollamake was about to; nothing has been written. Run again."
            )


def _write(temporary: Path, content: bytes) -> None:
    """Write a file that nobody else may read before it has the mode of what it replaces: there may be keys in it."""
    temporary.touch(mode=0o600)
    temporary.write_bytes(content)


def _escaped(name: str) -> str:
    return "".join(f"[{one}]" if one in "*?[" else one for one in name)
