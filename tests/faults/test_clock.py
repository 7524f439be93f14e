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


def changed_while_the_clock_was_wrong(build: Build) -> None:
    """The clock was a day ahead while all was built; since it is right, an input has changed and one job made its file anew."""
    shift(build.folder / "results", DAY)
    set_alpha(build, alpha=16, seconds_ago=0)
    said = build.run("--cores", "1", "results/small/merge_plan.json")
    assert "are newer than the clock, so it was set back" in said


def test_what_was_made_while_the_clock_was_ahead_is_not_made_again(build: Build) -> None:
    shift(build.folder / "results", DAY)
    said = build.run("--cores", "1", "all")
    assert "are newer than the clock, so it was set back" in said
    assert "Nothing to be done" in said


def test_what_was_made_before_the_clock_was_set_back_is_not_newer_than_what_is_made_now(build: Build) -> None:
    changed_while_the_clock_was_wrong(build)
    planned = build.planned()
    assert planned["merge_shard"] == 3
    assert planned["quantize"] == 2


@pytest.mark.campaign
def test_a_build_that_goes_on_after_the_clock_was_set_back(
    build: Build, expected: dict[str, str], checked: Checked
) -> None:
    changed_while_the_clock_was_wrong(build)
    set_alpha(build, alpha=8, seconds_ago=0)
    build.run("--cores", "1", "all")
    assert build.planned() == {}
    # The plan shows how long jobs take, which is known by now.
    differing = [line for line in differences(final_bytes(build.folder), expected) if "small/plan." not in line]
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
