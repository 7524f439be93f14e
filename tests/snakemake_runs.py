"""Running Snakemake as a user does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import loaded_snakemake

from ollamake.llama_cpp_source import VERSION

REPOSITORY = Path(__file__).parents[1]
LLAMA_CPP = REPOSITORY / "resources/llama.cpp" / VERSION


def snakemake_command(*arguments: str | Path, folder: Path) -> list[str]:
    """Return the command that runs this repository's workflow with ``folder`` as the working directory."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(folder), "--workflow-profile", str(REPOSITORY / "profiles/default")]
    return [*command, *map(str, arguments)]


def run_snakemake(
    *arguments: str | Path, folder: Path, timeout: float | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run this repository's workflow with ``folder`` as the working directory; stderr is joined to stdout.

    Raises subprocess.TimeoutExpired after ``timeout`` seconds.
    """
    command = snakemake_command(*arguments, folder=folder)
    # pytest-xdist tells its processes the width of its own terminal.
    given = {**{name: value for name, value in os.environ.items() if name != "COLUMNS"}, **environment}
    if loaded_snakemake.can_run(given):
        return loaded_snakemake.run(command[3:], folder, given, timeout)
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=given,
        check=False,
        timeout=timeout,
    )


def planned_jobs(output: str) -> dict[str, int]:
    """Return rule -> number of jobs from the table that Snakemake prints before it runs; empty if nothing is to be done."""
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total +(\d+)$", output, re.MULTILINE | re.DOTALL)
    if table is None:
        assert "Nothing to be done" in output, output
        return {}
    jobs = Counter({name: int(count) for name, count in (line.split() for line in table[1].splitlines())})
    assert jobs.total() == int(table[2]), output
    return dict(jobs)
