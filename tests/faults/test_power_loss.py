"""The power goes: what was not flushed is lost, and nothing that is left is taken for what it is not."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dag_build import Build
from faulty_disk import run, run_until_power_is_lost
from outcomes import Checked, Outcome
from power_loss import Disk
from small_build import copied, differences, final_bytes
from whole_files import fault_of, is_final

JOURNAL_BYTES = 30_000
"""A third of what the journal of a whole build has."""


class Worst(random.Random):
    """Chooses what loses most: all names since each folder was flushed, all bytes since each file was."""

    def randint(self, a: int, b: int) -> int:
        return a

    def choice(self, seq):  # type: ignore[no-untyped-def]
        return seq[0]


def losses(build: Build, library: Path, seed: int, count: int) -> Iterator[list[str]]:
    """Let a build lose power so many times at seeded moments, or until it is done; give what each took."""
    choice = random.Random(seed)
    for number in range(count):
        disk = Disk(build.folder, build.folder.with_name(f"journal-{number}"), build.folder.with_name(f"kept-{number}"))
        is_done, lost = run_until_power_is_lost(build.folder, library, disk, choice.randint(1, JOURNAL_BYTES), choice)
        yield lost
        shutil.rmtree(disk.kept)
        if is_done:
            break


def half_made(folder: Path) -> list[str]:
    """Return final files that are not whole, among all that are there."""
    files = [file for file in sorted(folder.glob("results/**/*")) if file.is_file() and is_final(file)]
    return [f"{file.relative_to(folder)}: {fault}" for file in files if (fault := fault_of(file))]


def come_back(lost: list[str]) -> set[str]:
    """Return the intermediate files that had been removed, and whose removal was lost."""
    return {found[1] for line in lost if (found := re.fullmatch(r"undone: unlink (results/.*)", line))}


def outcome(
    build: Build, expected: dict[str, str], lost: list[str], seed: int, where: str, faults: list[str]
) -> Outcome:
    """Run plainly what lost power, and compare what comes of it with an undisturbed build."""
    code, said = run(build.folder, dict(os.environ), "--cores", "1", "all")
    found = final_bytes(build.folder)
    kept = {name: found[name] for name in found if name in expected or name not in come_back(lost)}
    differing = differences(kept, expected)
    assert code == 0, said
    return Outcome("power loss", "-", where, seed, "power lost", code == 0, not differing, (*faults, *differing))


def test_power_is_lost_twice_and_again_when_all_is_done(
    inputs: Build, faulty_writes: Path, tmp_path: Path, expected: dict[str, str], checked: Checked
) -> None:
    build = copied(inputs, tmp_path / "work")
    faults = []
    for lost in losses(build, faulty_writes, seed=1, count=2):
        assert lost
        faults += half_made(build.folder)
    disk = Disk(build.folder, tmp_path / "journal", tmp_path / "kept")
    is_done, lost = run_until_power_is_lost(build.folder, faulty_writes, disk, None, Worst())
    assert is_done
    faults += half_made(build.folder)
    assert [line for line in lost if "create .snakemake/metadata" in line or "/.snakemake/metadata/" in line] == []
    # Snakemake still knows of each file what it was made from.
    build.model()["ollama"]["system"] = "Answer briefly."
    assert build.planned("modelfiles")["write_modelfile"] == 2
    build.config = json.loads(json.dumps(inputs.config))
    build.write_config()
    checked([outcome(build, expected, lost, 1, "twice at a seeded moment, and at the end", faults)])


def test_a_file_whose_time_was_just_being_set_has_its_bytes(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "work", tmp_path / "journal", tmp_path / "kept")
    disk.folder.mkdir()
    disk.begin()
    files = [disk.folder / name for name in ("synced", "written")]
    for file in files:
        file.write_text("all of it")
    lines = []
    for kind, file in (("sync", files[0]), ("timed", files[0]), ("timed", files[1])):
        status = file.stat()
        time = f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09d}"
        lines.append(f"{kind}\t{file}\t\t{status.st_ino}\t{status.st_size}\t{time}\t1.0\n")
    for file in files:
        os.utime(file, (1, 1))
    disk.journal.write_text("".join(lines))
    assert len(disk.lose_power(Worst())) == 1
    assert [file.read_text() for file in files] == ["all of it", ""]


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2, 12))
def test_power_is_lost_at_seeded_moments(
    inputs: Build, faulty_writes: Path, tmp_path: Path, expected: dict[str, str], checked: Checked, seed: int
) -> None:
    build = copied(inputs, tmp_path / "work")
    faults, all_lost = [], []
    for lost in losses(build, faulty_writes, seed, count=8):
        faults += half_made(build.folder)
        all_lost += lost
    checked([outcome(build, expected, all_lost, seed, "up to 8 times in a build", faults)])
