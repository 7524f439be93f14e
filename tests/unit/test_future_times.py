"""Files that are newer than the clock get times of long ago, in the order of their own."""

from __future__ import annotations

import os
from pathlib import Path

from ollamake.future_times import bring_back

NOW = 1_700_000_000.0


def made(path: Path, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (NOW, NOW + seconds))
    return path


def test_only_what_is_newer_than_the_clock_is_brought_back_and_stays_in_order(tmp_path: Path) -> None:
    past = made(tmp_path / "m/past", -10)
    almost = made(tmp_path / "m/server-is-ahead", 2)
    last = made(tmp_path / "m/a-last", 7200)
    first = made(tmp_path / "m/z-first", 3600)
    assert bring_back(tmp_path, NOW) == [first, last]
    assert first.stat().st_mtime < last.stat().st_mtime < past.stat().st_mtime
    assert (past.stat().st_mtime, almost.stat().st_mtime) == (NOW - 10, NOW + 2)
    assert bring_back(tmp_path, NOW) == []


def test_what_a_link_names_is_not_touched(tmp_path: Path) -> None:
    target = made(tmp_path / "cache/blob", 3600)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/link").symlink_to(target)
    assert bring_back(tmp_path / "results", NOW) == []
    assert target.stat().st_mtime == NOW + 3600


def test_without_results_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert bring_back(tmp_path / "results", NOW) == []
