"""Builds on a disk that fails, is full, or loses power: what faulty_writes.c makes of it, around a whole run of Snakemake."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from power_loss import Disk
from snakemake_runs import snakemake_command

SOURCE = Path(__file__).with_name("faulty_writes.c")
POLL_SECONDS = 0.1


def compile_faulty_writes(folder: Path) -> Path:
    """Compile the library for LD_PRELOAD. CalledProcessError says what gcc has against it."""
    library = folder / "faulty_writes.so"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True
    )
    return library


def environment(library: Path, folder: Path, **faults: object) -> dict[str, str]:
    """Return the environment in which files of a folder meet faults; ``call="write"`` is FAULTY_CALL=write."""
    own = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    given = {f"FAULTY_{name.upper()}": str(value) for name, value in faults.items()}
    return own | given | {"LD_PRELOAD": str(library), "FAULTY_FOLDER": str(folder.resolve())}


def start(folder: Path, given: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Start a run of the workflow in a folder, its output in one pipe."""
    return subprocess.Popen(
        snakemake_command("--configfile", "mine.yaml", *arguments, folder=folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=given,
        start_new_session=True,
    )


def run(folder: Path, given: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run the workflow in a folder; return its exit code and what it said."""
    process = start(folder, given, *arguments)
    said, _ = process.communicate()
    return process.returncode, said


def run_until_power_is_lost(
    folder: Path, library: Path, disk: Disk, at_byte: int | None, choice: random.Random
) -> tuple[bool, list[str]]:
    """Run the build until its journal has a number of bytes, end everything, and take from the disk what was not safe.

    None: until the build is done. Return whether it was done before, and what was taken, a line each.
    """
    disk.begin()
    stop = {} if at_byte is None else {"stop": at_byte}
    given = environment(library, folder, journal=disk.journal, kept=disk.kept, **stop)
    output = disk.journal.with_suffix(".said")
    with output.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            snakemake_command("--configfile", "mine.yaml", "--cores", "1", "all", folder=folder),
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=given,
            start_new_session=True,
        )
        # Processes that would write on have stopped themselves.
        while process.poll() is None and (at_byte is None or disk.journal.stat().st_size < at_byte):
            time.sleep(POLL_SECONDS)
        is_done = process.poll() is not None
        _end_all_of(disk.journal)
        process.wait()
    if is_done and process.returncode:
        raise AssertionError(f"the run failed before the power was lost:\n{output.read_text(encoding='utf-8')}")
    return is_done, disk.lose_power(choice)


def _end_all_of(journal: Path) -> None:
    """Kill each process that writes to a journal, until there is none: also those in sessions of their own."""
    mark = f"FAULTY_JOURNAL={journal}".encode()
    while True:
        found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _has(entry, mark)]
        if not found:
            return
        for process_id in found:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 10)


def _has(process: Path, mark: bytes) -> bool:
    with suppress(OSError):
        return mark in (process / "environ").read_bytes().split(b"\0")
    return False
