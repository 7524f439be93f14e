"""A file that is not what was written: what is wrong with it, and the command that has it made again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from ollamake.errors import OllamakeError


class DamagedFile(OllamakeError):
    """A file of the build that has other bytes than when it was made."""

    def __init__(self, path: Path | str, what: str, targets: Iterable[Path | str] = ()) -> None:
        """``targets``: what has to be removed so that it is made again, where that is not the file itself."""
        self.path, self.what, self.targets = str(path), what, [str(one) for one in targets] or [str(path)]
        super().__init__(
            f"{path} is damaged: {what}. It changed after it was made: a failing disk or memory, or somebody edited it."
            f" Have it made again: {rebuild_command(self.targets)}"
        )


def replaced_source(path: Path | str, known: str, found: str) -> OllamakeError:
    """Return the error of a base or adapter whose bytes are others, while its size and time are those of before."""
    fault = replaced(f"its sha256 is {found}, not {known}")
    return OllamakeError(
        f"{path}: {fault}. If it is damaged, put the original back. If it is meant to be another: {adopt_command([path])}"
    )


def replaced(fault: str) -> str:
    """Return what is wrong with such a file."""
    return f"it has other bytes than when it was read before, with the same size and time: {fault}"


def adopt_command(paths: Iterable[Path | str]) -> str:
    """Return the command that builds anew from files of the user's that were edited with their times kept."""
    return f"touch {' '.join(shlex.quote(str(path)) for path in dict.fromkeys(paths))} && snakemake --cores 1 all"


def rebuild_command(targets: Iterable[Path | str], others: Iterable[Path | str] = ()) -> str:
    """Return the command that has files made anew, the same as before.

    ``targets`` are outputs of jobs, ``others`` files that go with them and are made by no job of that name. Each is named as
    a target, too: an intermediate file that nothing needs any more would stay away.
    """
    named = " ".join(shlex.quote(str(one)) for one in dict.fromkeys(targets))
    removed = " ".join([named, *(shlex.quote(str(one)) for one in dict.fromkeys(others))]).strip()
    return f"rm -f {removed} && snakemake --cores 1 {named} all".replace("  ", " ")
