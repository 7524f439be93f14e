"""Clocks that were set back, and files with times of their own: what is old is not taken for new, nor made again for ever."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from dag_build import Build
from outcomes import Checked, Outcome
from small_build import copied, differences, final_bytes

DAY = 24 * 3600


@pytest.fixture
def build(undisturbed: Build, tmp_path: Path) -> Build:
    return copied(undisturbed, tmp_path / "work")


def shift(folder: Path, seconds: float) -> None:
    """Make all files of a folder older or newer."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            times = path.stat()
            os.utime(path, (times.st_atime + seconds, times.st_mtime + seconds))


def set_alpha(build: Build, alpha: int, seconds_ago: float) -> None:
    """Give the adapter another scale, which no weight shows, by a file of some age."""
    path = build.folder / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": alpha}))
    os.utime(path, (time.time() - seconds_ago,) * 2)


def test_results_of_a_clock_that_was_ahead(
    undisturbed: Build, build: Build, expected: dict[str, str], checked: Checked
) -> None:
    """The clock was a day ahead while all was built; since it is right, one job has made its file anew."""
    shift(build.folder / "results", DAY)
    said = build.run("--cores", "1", "all")
    assert "are newer than the clock, so it was set back" in said
    assert "Nothing to be done" in said
    # A clock that is ahead again, an input that changes, and a run that ends between a file and what is made of it.
    shift(build.folder / "results", time.time() + DAY)
    set_alpha(build, alpha=16, seconds_ago=0)
    build.run("--cores", "1", "results/small/merge_plan.json")
    planned = build.planned()
    assert planned["merge_shard"] == 3
    assert planned["quantize"] == 2
    set_alpha(build, alpha=8, seconds_ago=0)
    build.run("--cores", "1", "all")
    assert build.planned() == {}
    differing = differences(final_bytes(build.folder), expected)
    checked([Outcome("clock set back", "-", "a day", 1, "told so", True, not differing, tuple(differing))])


def test_inputs_with_times_to_come_are_not_read_for_ever(build: Build) -> None:
    shift(build.folder / "base", DAY)
    shift(build.folder / "adapter", DAY)
    assert build.planned() == {}


def test_an_older_file_in_the_place_of_another_is_seen(build: Build) -> None:
    """As `mv`, `cp -p`, `rsync -a` and `tar` bring it."""
    set_alpha(build, alpha=16, seconds_ago=DAY)
    planned = build.planned()
    assert planned["plan_merge"] == 1
    assert planned["check_inputs"] == 1
