"""A file appears whole or not at all, and the same value gives the same bytes."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from ollamake import atomic_write
from ollamake.atomic_write import (
    FlushBehind,
    open_atomically,
    remove_leftovers,
    temporary_beside,
    write_json,
    write_text,
)
from ollamake.record_seal import read_record


def test_nothing_under_the_final_name_until_done(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with open_atomically(path) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail() -> None:
        with open_atomically(path) as file:
            file.write(b"new")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    child = subprocess.Popen(["true"])
    child.wait()
    with temporary_beside(path) as mine:
        mine.write_text("x")
        name = mine.name
    dead = tmp_path / name.replace(str(os.getpid()), str(child.pid))
    alive = tmp_path / name.replace(str(os.getpid()), str(os.getppid()))
    for leftover in (dead, alive):
        leftover.write_text("half")
    write_text(path, "whole")
    assert not dead.exists()
    assert alive.exists()


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": "道路", "a": [1.5, None]})
    write_json(tmp_path / "b", {"a": [1.5, None], "b": "道路"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "道路" in (tmp_path / "a").read_text(encoding="utf-8")
    assert read_record(tmp_path / "a") == {"a": [1.5, None], "b": "道路"}


@pytest.mark.parametrize("supported", [True, False])
def test_what_was_sent_to_the_disk_is_still_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr(atomic_write, "_WINDOW", 5000)
    dropped: list[tuple[int, int]] = []
    advise = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *where: (dropped.append(where[:2]), advise(file, *where)))
    if not supported:
        monkeypatch.setattr(atomic_write, "_SYNC_FILE_RANGE", None)
    expected = b""
    with open_atomically(tmp_path / "file") as file:
        flush = FlushBehind(file)
        for number in range(40):
            expected += bytes([number]) * 3000
            file.write(expected[-3000:])
            flush.written(len(expected))
    assert (tmp_path / "file").read_bytes() == expected
    assert dropped == ([(start, 6000) for start in range(0, 6000 * 17, 6000)] if supported else [])


def test_leftovers_below_a_folder_are_removed_but_those_of_living_processes(tmp_path: Path) -> None:
    host = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())
    (tmp_path / "deeper").mkdir()
    dead = tmp_path / f"deeper/.weights.gguf.{host}.{2**22 + 1}.tmp"
    others = [
        tmp_path / f"deeper/.weights.gguf.{host}.{os.getpid()}.tmp",
        tmp_path / f"deeper/.weights.gguf.elsewhere.{2**22 + 1}.tmp",
        tmp_path / "deeper/weights.gguf",
    ]
    for file in (dead, *others):
        file.write_text("half")
    assert remove_leftovers(tmp_path) == [dead]
    assert not dead.exists()
    assert all(file.exists() for file in others)
