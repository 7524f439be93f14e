"""Snakemake with its modules loaded: each run is a fork of one process, which saves the second that importing them takes.

It is the real command with its own arguments, folder, environment and output, and imports the code of this repository itself;
only the seed of hashes is the same in all forks of a process. What reads the environment when it is imported is not loaded.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

LOADED = (
    "snakemake.cli",
    "snakemake.report.html_reporter",
    "smart_open",
    "httpx",
    "jinja2",
    "jsonschema",
    "rich.progress",
)
_INTERPRETER = ("PYTHON", "LD_", "LC_", "LANG")
"""How settings begin that Python reads when it begins, before the fork."""
_REPOSITORY = Path(__file__).parents[1]

_forks = ForkServerContext()
_forks.set_forkserver_preload(list(LOADED))


def can_run(environment: Mapping[str, str]) -> bool:
    """Whether a fork can run in an environment: Python itself is to begin as this process has begun."""
    return _of_the_interpreter(environment) == _BEGUN_WITH


def _of_the_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_INTERPRETER)}


_BEGUN_WITH = _of_the_interpreter(os.environ)


def run(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m snakemake` in a folder; its standard error is joined to its output.

    Raises subprocess.TimeoutExpired after ``timeout`` seconds, and ends it then.
    """
    with tempfile.NamedTemporaryFile() as output:
        process = _forks.Process(target=_run, args=(list(arguments), str(folder), dict(environment), output.name))
        process.start()
        process.join(timeout)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        process.close()
        said = Path(output.name).read_text(encoding="utf-8", errors="strict")
    command = ["snakemake", *arguments]
    if code is None:
        assert timeout is not None
        raise subprocess.TimeoutExpired(command, timeout, said)
    return subprocess.CompletedProcess(command, code, said)


def _run(arguments: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Be a process that has just begun, and run Snakemake."""
    from snakemake.workflow import Workflow

    opened = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.close(opened)
    os.chdir(folder)
    Workflow._rundir = folder  # which is taken when the module is imported
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [folder, *(path for path in sys.path if path and not _is_ours(path))]
    sys.argv = ["snakemake", *arguments]
    try:
        runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
    finally:
        # multiprocessing ends its processes without.
        atexit._run_exitfuncs()


def _is_ours(path: str) -> bool:
    """Whether a folder for imports is one of this repository that the tests have, and Snakemake has not."""
    return any(Path(path).is_relative_to(_REPOSITORY / name) for name in ("scripts", "tests"))
