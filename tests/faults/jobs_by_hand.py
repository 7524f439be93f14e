"""Single jobs of a finished build, run again as Snakemake ran them, one fault at a time: a second or two each."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ollamake.file_digest import sha256_of

WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-linux_immutable")
"""Root without what lets root write where it may not: works in a container of the usual kind, where nothing can be mounted."""

_SCRIPT = re.compile(r"^( *)python ", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """A job by Snakemake's own notes: its rule, its shell command and its outputs (paths in the working directory)."""

    rule: str
    command: str
    outputs: tuple[Path, ...]


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code, and what it said."""

    code: int
    said: str

    def faults(self) -> list[str]:
        """Return what is wrong about the way in which it failed."""
        if self.code == 0:
            return []
        messages = sum(line.startswith("error: ") for line in self.said.splitlines())
        wrong = [f"{messages} messages"] if messages != 1 else []
        return wrong + ["a traceback"] * ("Traceback (most recent call last)" in self.said)


def jobs_of(folder: Path) -> list[Job]:
    """Return the jobs that a build had, in the order in which they were begun, those with a shell command."""
    notes = folder / ".snakemake/metadata"
    found: dict[str, tuple[float, str, list[Path]]] = {}
    for file in (path for path in notes.rglob("*") if path.is_file()):
        note = json.loads(file.read_text(encoding="utf-8"))
        if not note["shellcmd"]:
            continue
        name = "".join(part.removeprefix("@") for part in file.relative_to(notes).parts)
        output = base64.urlsafe_b64decode(name).decode()
        entry = found.setdefault(note["shellcmd"], (note["starttime"], note["rule"], []))
        if "://" not in output:
            entry[2].append(Path(output))
    return [
        Job(rule, command, tuple(sorted(outputs)))
        for command, (_, rule, outputs) in sorted(found.items(), key=lambda item: item[1][0])
    ]


def run_job(
    job: Job,
    folder: Path,
    given: Mapping[str, str] | None = None,
    limits: Iterable[str] = (),
    before: Iterable[str] = (),
) -> Ended:
    """Run a job in a folder. ``limits``: commands of the shell (`ulimit -n 16`) just before the script; ``before``: a command
    under which all of it runs."""
    script = _SCRIPT.sub(lambda found: "".join(f"{one}\n" for one in limits) + found[0], job.command, count=1)
    done = subprocess.run(
        [*before, "bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=folder,
        env=dict(given) if given is not None else dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        check=False,
    )
    return Ended(done.returncode, done.stdout)


def prepare(job: Job, folder: Path) -> None:
    """Make the folders that Snakemake makes for a job: those of its outputs in a storage."""
    for path in re.findall(r"^ *touch (\S+)$", job.command, re.MULTILINE):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[tuple[str, ...]]:
    """Take from everybody the right to write to a folder and those in it; give what is to be put before a command so that it
    holds for root, too."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    modes = {path: path.stat().st_mode for path in folders}
    try:
        for path in folders:
            path.chmod(modes[path] & ~0o222)
        yield WITHOUT_RIGHTS if os.geteuid() == 0 else ()
    finally:
        for path in folders:
            path.chmod(modes[path])


def files_in(folder: Path) -> dict[str, str]:
    """Return path -> sha256 of all files below a folder, hidden ones, too."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
