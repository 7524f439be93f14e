"""A Snakemake that is forked from a process with its modules does and says what the command itself does."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import loaded_snakemake
import pytest
from dag_build import Build
from snakemake_runs import snakemake_command

_OTHER_EACH_TIME = re.compile(
    r"[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}|[\d-]+ [\d:]+|\w+ \w+ +\d+ [\d:]{8} \d{4}|jobid: \d+"
)


def by_itself(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = snakemake_command(*arguments, folder=folder)
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def forked(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return loaded_snakemake.run(snakemake_command(*arguments, folder=folder)[3:], folder, os.environ)


@pytest.mark.parametrize("target", ["all", "nothing_of_that_name"])
def test_it_ends_as_the_command_does_and_says_the_same(fresh: Build, target: str) -> None:
    fresh.write_config()
    arguments = ("--configfile", "mine.yaml", "-n", target)
    expected, found = (run(*arguments, folder=fresh.folder) for run in (by_itself, forked))
    assert found.returncode == expected.returncode == (0 if target == "all" else 1)
    assert words_of(found.stdout) == words_of(expected.stdout)


def words_of(said: str) -> list[str]:
    """Return all words but times, and the numbers of jobs and of the run. Jobs and their files come in the order of sets."""
    return sorted(re.sub(r"[,;]", "", _OTHER_EACH_TIME.sub("", said)).split())


def test_it_has_the_environment_and_the_imports_of_a_new_process(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(
        "import os, sys\n"
        "print(os.environ.get('NEW'), os.environ.get('HOME'), os.getcwd(), sys.stdin.read() == '')\n"
        "print([name for name in sys.modules if name.startswith(('ollamake', 'snakemake_runs', 'torch'))])\n"
        "print([path for path in sys.path if path.endswith(('scripts', 'tests', 'dag'))])\n"
        "rule all:\n"
    )
    done = loaded_snakemake.run(["-n"], tmp_path, {"PATH": os.environ["PATH"], "NEW": "a b"})
    assert done.returncode == 0
    assert done.stdout.startswith(f"a b None {tmp_path} True\n[]\n[]\n")


def test_it_is_ended_when_it_takes_too_long(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\nrule all:\n")
    with pytest.raises(subprocess.TimeoutExpired) as ended:
        loaded_snakemake.run([], tmp_path, os.environ, timeout=5)
    assert not Path(f"/proc/{int(ended.value.output)}").exists()


def test_settings_that_python_reads_when_it_begins_are_left_to_the_command() -> None:
    assert loaded_snakemake.can_run({**os.environ, "OLLAMA_HOST": "127.0.0.1:1"})
    assert not loaded_snakemake.can_run({**os.environ, "PYTHONPATH": "elsewhere"})
