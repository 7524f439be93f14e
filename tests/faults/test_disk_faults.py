"""Disks that are full, fail, take less than asked or may not be written, and limits of processes, under single jobs of a build.

A job that fails says one thing and leaves what was there; done again without the fault, it comes to the same bytes.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dag_build import Build
from faulty_disk import environment, run
from jobs_by_hand import Job, files_in, jobs_of, locked, prepare, run_job
from outcomes import SINGLE_JOB, Checked, Outcome
from small_build import VOLATILE, copied, small_inputs

SHOWS_MORE = r"results/[^/]+/(plan\.(md|html)|ollama/rag_config\.json|ollama/[^/]+/registered\.json|inputs\.json)"
"""How long earlier jobs took, when it was registered, what is free: known, or another, when a job is done again."""


@dataclass(frozen=True)
class Fault:
    """``settings``: of faulty_writes.c; ``limits``: of the shell; ``is_survived``: the job is to end well all the same."""

    settings: tuple[tuple[str, Any], ...] = ()
    limits: tuple[str, ...] = ()
    locked: bool = False
    is_survived: bool = False


FAULTS = {
    "no room: write (ENOSPC)": Fault((("call", "write"), ("errno", errno.ENOSPC))),
    "no room: the second write": Fault((("call", "write"), ("errno", errno.ENOSPC), ("after", 1))),
    "no room: fsync": Fault((("call", "sync"), ("errno", errno.ENOSPC))),
    "quota (EDQUOT)": Fault((("call", "write"), ("errno", errno.EDQUOT))),
    "failing disk: write (EIO)": Fault((("call", "write"), ("errno", errno.EIO))),
    "failing disk: fsync (EIO)": Fault((("call", "sync"), ("errno", errno.EIO))),
    "failing disk: rename (EIO)": Fault((("call", "rename"), ("errno", errno.EIO))),
    "read-only filesystem (EROFS)": Fault((("call", "open"), ("errno", errno.EROFS))),
    "folders that may not be written": Fault(locked=True),
    "short and interrupted writes": Fault((("short", 1),), is_survived=True),
    "a limit of the size of files": Fault(limits=("ulimit -f 64",)),
    "5 open files": Fault(limits=("ulimit -n 5",)),
    "300 MB of addresses": Fault(limits=("ulimit -v 300000",)),
}
"""Where a fault does not reach a job (it writes nothing, or little), the job ends well."""

FEW = (
    ("no room: write (ENOSPC)", "merge_shard"),
    ("short and interrupted writes", "merge_shard"),
    ("failing disk: fsync (EIO)", "plan_merge"),
    ("folders that may not be written", "write_modelfile"),
    ("read-only filesystem (EROFS)", "register"),
    ("300 MB of addresses", "merge_shard"),
)
"""For every run of the tests: a fault of each kind, each under another kind of job."""


def of_each_rule(build: Build) -> dict[str, Job]:
    """Return the first job of each rule."""
    return {job.rule: job for job in reversed(jobs_of(build.folder))}


def what_comes_of(name: str, job: Job, build: Build, library: Path) -> Outcome:
    """Run a job with a fault, then without, and compare all results with those before."""
    fault, folder = FAULTS[name], build.folder
    prepare(job, folder)
    if not all((folder / output).exists() for output in job.outputs):
        assert run_job(job, folder).code == 0  # Intermediate files that were removed.
    before = files_in(folder / "results")
    given = environment(library, folder / "results", **dict(fault.settings)) if fault.settings else None
    with locked(folder / "results") if fault.locked else nullcontext(()) as under:
        ended = run_job(job, folder, given, fault.limits, under)
    after = files_in(folder / "results")
    wrong = ended.faults()
    if ended.code:
        wrong += [f"{file} is another" for file in before if after.get(file) != before[file] and not _varies(file)]
    wrong += [f"{file} was left" for file in after if file not in before]
    wrong += ["it failed"] * bool(fault.is_survived and ended.code)
    again = run_job(job, folder)
    now = files_in(folder / "results")
    differing = [file for file in now if now[file] != before.get(file) and not _varies(file)]
    if wrong or differing:
        print(f"{name}, {job.rule}: {wrong} {differing}\n{ended.said}\n{again.said}")
    how = "one message" if ended.code else "well"
    return Outcome(name, job.rule, SINGLE_JOB, 1, how, again.code == 0, not differing, tuple(wrong))


def _varies(file: str) -> bool:
    return any(re.fullmatch(pattern, f"results/{file}") for pattern in (*VOLATILE, SHOWS_MORE))


@pytest.mark.parametrize(("name", "rule"), FEW)
def test_a_few(undisturbed: Build, faulty_writes: Path, checked: Checked, tmp_path: Path, name: str, rule: str) -> None:
    build = copied(undisturbed, tmp_path / "work")
    outcome = what_comes_of(name, of_each_rule(build)[rule], build, faulty_writes)
    checked([outcome])
    assert outcome.ended == ("well" if FAULTS[name].is_survived else "one message")


@pytest.fixture(scope="module")
def whole(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build that goes over nearly all rules, with all its intermediate files."""
    build = small_inputs(tmp_path_factory.mktemp("whole") / "work", programs)
    build.run("--cores", "1", "--notemp", "all")
    return build


@pytest.mark.campaign
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", FAULTS)
def test_each_rule(whole: Build, faulty_writes: Path, checked: Checked, name: str) -> None:
    jobs = of_each_rule(whole)
    outcomes = [what_comes_of(name, job, whole, faulty_writes) for job in jobs.values()]
    checked(outcomes)
    assert len(outcomes) > 30


def test_a_run_on_a_disk_without_any_room_says_so(inputs: Build, faulty_writes: Path, tmp_path: Path) -> None:
    """Snakemake itself can write nothing."""
    build = copied(inputs, tmp_path / "work")
    given = environment(faulty_writes, build.folder, call="write", errno=errno.ENOSPC)
    code, said = run(build.folder, given, "--cores", "1", "all")
    assert code != 0
    assert "takes no file of 100 KB (No space left on device" in said
    assert "Traceback" not in said
    assert list(build.folder.rglob("*.tmp")) == []


def test_a_disk_that_becomes_full_under_snakemakes_own_notes(
    inputs: Build, faulty_writes: Path, tmp_path: Path
) -> None:
    build = copied(inputs, tmp_path / "work")
    for match in (".snakemake/incomplete", ".snakemake/metadata"):
        given = environment(faulty_writes, build.folder, call="write", errno=errno.ENOSPC, match=match)
        code, said = run(build.folder, given, "--cores", "1", "results/small/merge_plan.json")
        assert code != 0
        assert "no room on the disk for" in said
        assert match in said
        assert "Traceback" not in said, said
        assert build.planned("results/small/merge_plan.json") == {"plan_merge": 1}
    assert run(build.folder, dict(os.environ), "--cores", "1", "results/small/merge_plan.json")[0] == 0
