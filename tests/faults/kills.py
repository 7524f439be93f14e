"""Kills at seeded moments, one run after the other in one folder, until a run is left alone and finishes the build."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dag_build import Build
from outcomes import Outcome
from running_build import SECONDS, Job, RunningBuild, name_of, tree_of
from small_build import differences, final_bytes
from watcher import Watcher

log = logging.getLogger(__name__)

MOST_SECONDS = 1200.0
"""Of one run; one that hangs is a failure."""
_END = 120.0
"""Seconds that Snakemake has to end after one of its jobs has failed."""


@dataclass(frozen=True)
class Moment:
    """When a job is killed: ``seconds`` after its start, at its ``writes``-th write to a temporary file, or when ``names``
    of its files have their final names."""

    seconds: float | None = None
    writes: int | None = None
    names: int | None = None

    def __str__(self) -> str:
        if self.seconds is not None:
            return "some time after it began"
        return "while it writes" if self.writes is not None else "between two of its files"


class Killer:
    """Chooses whom to kill, and when, by a seed."""

    def __init__(self, seed: int, share: float) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._share = share

    def moment(self) -> Moment | None:
        """Return when the job that begins is to be killed; None: not this one."""
        if self._random.random() > self._share:
            return None
        kind = self._random.choice(("seconds", "seconds", "writes", "names"))
        if kind == "seconds":
            return Moment(seconds=self._random.choice((0.05, 0.3, 1.0, 3.0, 8.0)) * self._random.uniform(0.2, 1.0))
        return (
            Moment(writes=self._random.randint(1, 4)) if kind == "writes" else Moment(names=self._random.randint(1, 2))
        )

    def kills_snakemake(self) -> bool:
        return self._random.random() < 0.5

    def waits(self) -> bool:
        """Whether the next run begins only when nothing of this one is left."""
        return self._random.random() < 0.3

    def one_of(self, processes: list[int]) -> int:
        return self._random.choice(processes)


def chain(build: Build, killer: Killer, most: int, expected: Mapping[str, str], output: Path) -> list[Outcome]:
    """Kill a build up to ``most`` times, finish it, and return what came of each kill.

    Each run is the plain command, and the last one must finish the build. One that is refused, or fails though nobody has
    killed it, ends the chain: the kill before it has not been recovered from.
    """
    kills: list[Outcome] = []
    with Watcher(build.folder / "results") as watcher:
        code: int | None = None
        while code is None:
            with RunningBuild(build, output) as run:
                while len(kills) < most and (kill := _kill_once(run, killer, watcher)) is not None:
                    goes_on = run.wait_until_next_job(kill.pid, _END)
                    ended = "the job ended well" if goes_on else _ending(run.wait_for_end(_END))
                    kills.append(replace(kill.outcome, ended=ended, watched=watcher.take_faults()))
                    log.info("%s", kills[-1])
                    if not goes_on:
                        break
                else:
                    code = run.wait_for_end(MOST_SECONDS)
                    break
                if killer.waits():
                    run.left_after(60.0)
                # Else what is left of the run is at work when the next one begins.
                run.leave()
        faults = watcher.take_faults()
    wrong = differences(final_bytes(build.folder), expected) if code == 0 else [f"the last run ended with {code}"]
    if kills and (wrong or faults):
        kills[-1] = replace(kills[-1], watched=(*kills[-1].watched, *faults, *wrong))
    return [replace(kill, recovered=code == 0, equal=not wrong) for kill in kills]


@dataclass(frozen=True)
class Kill:
    """A kill, and the process of the job that it met."""

    outcome: Outcome
    pid: int


def _kill_once(run: RunningBuild, killer: Killer, watcher: Watcher) -> Kill | None:
    """Wait for a job that is to be killed, and kill it or Snakemake. None: the run has ended before."""
    seen = 0
    while run.process.poll() is None:
        job = run.job()
        if job is None or job.pid == seen:
            time.sleep(SECONDS)
            continue
        seen = job.pid
        moment = killer.moment()
        if moment is None or not _wait_for(moment, run, job, watcher):
            continue
        whole = killer.kills_snakemake()
        # A process that has ended meanwhile is not killed, and nothing has happened.
        with suppress(OSError):
            victim = run.process.pid if whole else killer.one_of(tree_of(job.pid))
            name = "Snakemake" if whole else name_of(victim)
            os.kill(victim, signal.SIGKILL)
            kind = "kill -9 of Snakemake" if whole else "kill -9 of a process of a job"
            return Kill(Outcome(kind, job.rule, f"{name}, {moment}", killer.seed, "", False, False), job.pid)
    return None


def _wait_for(moment: Moment, run: RunningBuild, job: Job, watcher: Watcher) -> bool:
    """Wait for a moment of a job; return whether it came before the job was over."""
    began, writes, names = time.monotonic(), watcher.writes, watcher.seen

    def reached() -> bool:
        return (
            (moment.seconds is not None and time.monotonic() - began >= moment.seconds)
            or (moment.writes is not None and watcher.writes - writes >= moment.writes)
            or (moment.names is not None and watcher.seen - names >= moment.names)
        )

    def is_over() -> bool:
        return not Path(f"/proc/{job.pid}/cmdline").exists() or not Path(f"/proc/{job.pid}/cmdline").read_bytes()

    while not reached():
        with suppress(OSError):
            if run.process.poll() is not None or is_over():
                return False
        time.sleep(0.002)
    return True


def _ending(code: int | None) -> str:
    if code is None:
        return "it hung"
    return {-signal.SIGKILL: "killed", 1: "it said which job failed", 0: "it finished all the same"}.get(
        code, f"exit code {code}"
    )
