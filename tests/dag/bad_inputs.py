"""Tables of bad inputs: each ends in exit code 1 and one message, before heavy work, and leaves nothing behind.

A case is a name, an edit of a working directory in which everything is right, and words of the message: what was expected,
what was found, where, what to do.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dag_build import Build
from snakemake_runs import run_snakemake

Edit = Callable[[Build], object]
Cases = Mapping[str, tuple[Edit, list[str]]]

LIMIT = 120
"""Seconds after which a refusal counts as none; it takes two to ten on a machine that does nothing else."""
_OF_EVERY_RUN = (".snakemake", "logs")


def tree(folder: Path) -> dict[str, Any]:
    """Return what every file and folder is below a working directory, but for what every run of Snakemake writes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in _OF_EVERY_RUN:
            continue
        state = path.lstat()
        found[str(name)] = (state.st_mode, None if path.is_dir() else (state.st_size, state.st_mtime_ns))
    return found


def refused(build: Build, words: list[str], *arguments: str, **environment: str) -> str:
    """Run the build, which must be refused in one message that has all of ``words``; return what was printed."""
    before = tree(build.folder)
    began = time.monotonic()
    done = run_snakemake(
        "--configfile", "mine.yaml", "--cores", "2", *(arguments or ("all",)),
        folder=build.folder, timeout=LIMIT, **environment,
    )  # fmt: skip
    print(f"{time.monotonic() - began:.1f} s\n{done.stdout}")
    assert done.returncode == 1
    for word in words:
        assert word in done.stdout
    # A job's message is shown by the job, and once more at the end, where it is seen.
    messages = re.findall(r"^ *error: .*|^WorkflowError.*:\n(?!At least one job)", done.stdout, re.MULTILINE)
    assert len({message.strip() for message in messages}) == 1, messages
    assert len(done.stdout[done.stdout.rindex(words[0]) :].splitlines()) < 20
    logs = [file.read_text(encoding="utf-8", errors="replace") for file in build.folder.rglob("*.log")]
    for text in (done.stdout, *logs):
        assert "Traceback" not in text
        assert "scripts/ollamake/" not in text, "a frame of the library: an exception that is no message"
    assert tree(build.folder) == before
    return done.stdout


# Edits --------------------------------------------------------------------------------------------------------------
def set_model(**changes: Any) -> Edit:
    """Change keys of the model."""
    return lambda build: build.model().update(changes)


def set_config(**changes: Any) -> Edit:
    """Change keys of the configuration."""
    return lambda build: build.config.update(changes)


def change_json(file: str, **changes: Any) -> Edit:
    """Change keys of a JSON file of the working directory; None removes one."""

    def edit(build: Build) -> None:
        path = build.folder / file
        content = json.loads(path.read_text(encoding="utf-8")) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")

    return edit


def write(file: str, content: str | bytes) -> Edit:
    """Put something else into a file of the working directory."""

    def edit(build: Build) -> None:
        path = build.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return edit


def remove(*files: str) -> Edit:
    """Remove files of the working directory."""
    return lambda build: [(build.folder / file).unlink() for file in files]


def each(*edits: Edit) -> Edit:
    """Make several edits."""
    return lambda build: [edit(build) for edit in edits]
