"""Entry points end in one message for what the user can mend, and in a traceback for what is ours."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ollamake.progress import progress_bar

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run_code(body: str) -> subprocess.CompletedProcess[str]:
    code = f"from ollamake.errors import OllamakeError, run\ndef main():\n    {body}\nrun(main)\n"
    return subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=False)


def test_a_users_error() -> None:
    done = run_code("raise OllamakeError('where: expected this, found that')")
    assert (done.returncode, done.stderr) == (1, "error: where: expected this, found that\n")


def test_names_of_foreign_files_are_no_orders_to_the_terminal() -> None:
    done = run_code(r"import logging; logging.info('\x1b[2J a\tb'); raise OllamakeError('a\u202eb\x9b\x00\n道路 é')")
    assert done.stderr == "\\x1b[2J a\tb\nerror: a\\u202eb\\x9b\\x00\n道路 é\n"


def test_a_defect_keeps_its_traceback() -> None:
    done = run_code("raise ValueError('ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_file_of_the_command_line_that_is_not_there(tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['x', '--plan', {str(tmp_path / 'no')!r}]\nfrom pathlib import Path\n"
    ours = code.replace("--plan", "--other").replace("no'", "yes'")
    read = f"from ollamake.errors import run\nrun(lambda: Path({str(tmp_path / 'no')!r}).read_text())\n"
    said, kept = (
        subprocess.run([sys.executable, "-c", one + read], cwd=SCRIPTS, capture_output=True, text=True, check=False)
        for one in (code, ours)
    )
    assert (said.returncode, said.stderr) == (
        1,
        f"error: {tmp_path / 'no'}, of the command line: No such file or directory\n",
    )
    assert "Traceback" in kept.stderr


def test_interrupted() -> None:
    done = run_code("raise KeyboardInterrupt")
    assert done.returncode == 1
    assert done.stderr.startswith("interrupted; finished files are kept")


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_every_entry_point_explains_itself(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert f"python scripts/{script.name}" in done.stdout
    assert len(script.read_text().splitlines()) < 60


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_what_takes_much_memory_is_imported_by_the_library(script: Path) -> None:
    """Which says in one message that there is not enough for it."""
    imports = [
        node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert not {str(name).partition(".")[0] for name in names} & {"torch", "transformers", "peft", "bitsandbytes"}


def test_what_is_not_given_is_one_message_when_no_file_can_be_opened_any_more() -> None:
    body = (
        "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))\n"
        "    while True: os.open('/dev/null', os.O_RDONLY)"
    )
    done = run_code(body)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*open files.*\n", done.stderr), done.stderr


def test_progress_in_a_log_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(100, "work") as progress:
        for _ in range(100):
            progress.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[-1].startswith("work: 100%")
