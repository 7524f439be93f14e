"""What is said where the machine gives no more: one message, and no traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake_runs import REPOSITORY

from ollamake.errors import OllamakeError
from ollamake.free_disk import require_writable
from ollamake.machine_limits import child_hint, limit_met, limit_said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ("no room", "GB are free", "--directory")),
        (errno.EDQUOT, ("no room", "quota")),
        (errno.EFBIG, ("as large as it must", "ulimit -f")),
        (errno.EIO, ("disk failed", "dmesg")),
        (errno.EROFS, ("cannot be opened or written", "Read-only file system")),
        (errno.EACCES, ("cannot be opened or written", "Permission denied")),
    ],
)
def test_an_error_of_a_file_names_it_and_says_what_to_do(tmp_path: Path, number: int, words: tuple[str, ...]) -> None:
    said = limit_met(OSError(number, os.strerror(number), str(tmp_path / "m.gguf")))
    assert said is not None
    assert all(word in said for word in (str(tmp_path / "m.gguf"), *words))
    assert "run the same command again" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), ("too many open files", "ulimit -n")),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ("not enough memory",)),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), ("no more processes",)),
        (MemoryError(), ("not enough memory", "larger machine")),
        (RuntimeError("can't start new thread"), ("no more processes",)),
        # As torch 2 and safetensors say it.
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
            ("not enough memory", "DefaultCPUAllocator"),
        ),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), ("not enough memory",)),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), ("no room",)),
    ],
)
def test_an_error_of_the_machine_says_what_to_do(error: Exception, words: tuple[str, ...]) -> None:
    said = limit_met(error)
    assert said is not None
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("k"), FileNotFoundError(2, "No such file", "x"), RuntimeError("x")]
)
def test_a_defect_of_ours_is_none_of_these(error: Exception) -> None:
    assert limit_met(error) is None


def test_what_a_python_program_said_last_is_understood(tmp_path: Path) -> None:
    lines = [
        "Traceback (most recent call last):\n",
        '  File "x.py", line 1\n',
        "OSError: [Errno 28] No space left on device\n",
    ]
    assert "no room on the disk for" in str(limit_said(lines, tmp_path / "m.gguf"))
    assert limit_said(["numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8 GiB\n"], tmp_path) is not None
    assert limit_said(["KeyError: 'x'\n"], tmp_path) is None


def test_how_a_program_was_ended_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ulimit -f" in child_hint(-signal.SIGXFSZ, tmp_path)
    assert "short of memory" in child_hint(-signal.SIGKILL, tmp_path)
    assert child_hint(1, tmp_path) == ""
    monkeypatch.setattr("ollamake.machine_limits.free_bytes", lambda _folder: 5_000_000)
    assert "is full: 0.01 GB are free" in child_hint(1, tmp_path)


def test_a_file_that_may_not_become_as_large_is_named_and_not_left_behind(tmp_path: Path) -> None:
    """A limit of the kernel's, under which the write itself fails."""
    program = (
        "import resource; from pathlib import Path\n"
        "from ollamake.atomic_write import write_bytes; from ollamake.errors import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"run(lambda: write_bytes(Path({str(tmp_path / 'm.gguf')!r}), bytes(5000)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "m.gguf") in done.stderr
    assert "1000 bytes a file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_notes(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OllamakeError, match=r"file/\.snakemake takes no file of 100 KB \(Not a directory.*GB are free"):
        require_writable(tmp_path / "file/.snakemake")
