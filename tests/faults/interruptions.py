"""Kills and signals at seeded moments, one run after the other in one folder, until a run is left alone and finishes.

Each run is the plain command. What an interrupted run leaves at work is there when the next one begins, but for some.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
_GO_ON = "run the same command again to go on"

KILLS = ("kill -9 of Snakemake", "kill -9 of a process of a job")
SIGNALS: Mapping[str, Callable[[int], None]] = {
    "SIGINT to Snakemake": lambda pid: os.kill(pid, signal.SIGINT),
    "SIGTERM to Snakemake": lambda pid: os.kill(pid, signal.SIGTERM),
    "Ctrl-C": lambda pid: os.killpg(pid, signal.SIGINT),
}
"""Kind of fault -> how it is done to a run that is the leader of its process group."""


@dataclass(frozen=True)
class Moment:
    """When a job is interrupted: ``seconds`` after its start, at its ``writes``-th write to a temporary file, or when
    ``names`` of its files have their final names."""

    seconds: float | None = None
    writes: int | None = None
    names: int | None = None

    def __str__(self) -> str:
        if self.seconds is not None:
            return "some time after it began"
        return "while it writes" if self.writes is not None else "between two of its files"


class Interrupter:
    """Chooses by a seed which of ``kinds`` happens to which job, and when. ``share``: of the jobs to which it does.

    ``short``: rules whose jobs are so short that a moment is hardly met; only theirs are interrupted, as soon as they are seen.
    """

    def __init__(
        self, seed: int, kinds: Sequence[str] = KILLS, share: float = 0.6, short: Collection[str] = ()
    ) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._kinds = kinds
        self._share = share
        self._short = short
        self._turn: list[str] = []

    def moment(self, rule: str) -> Moment | None:
        """Return when the job of a rule that begins is to be interrupted; None: not this one."""
        if self._short:
            return Moment(seconds=0.0) if rule in self._short else None
        if self._random.random() > self._share:
            return None
        kind = self._random.choice(("seconds", "seconds", "writes", "names"))
        if kind == "seconds":
            return Moment(seconds=self._random.choice((0.05, 0.3, 1.0, 3.0, 8.0)) * self._random.uniform(0.2, 1.0))
        if kind == "writes":
            return Moment(writes=self._random.randint(1, 4))
        return Moment(names=self._random.randint(1, 2))

    def kind(self) -> str:
        """Return what happens: each kind as often as the others."""
        if not self._turn:
            self._turn = self._random.sample(self._kinds, len(self._kinds))
        return self._turn.pop()

    def waits(self) -> bool:
        """Whether the next run begins only when nothing of this one is left."""
        return self._random.random() < 0.3

    def one_of(self, processes: list[int]) -> int:
        return self._random.choice(processes)


def chain(
    build: Build, interrupter: Interrupter, most: int, expected: Mapping[str, str], output: Path
) -> list[Outcome]:
    """Interrupt a build up to ``most`` times, finish it, and return what came of each time.

    A run that is refused, or fails though nobody has interrupted it, ends the chain: then nothing has been recovered from.
    """
    done: list[Outcome] = []
    with Watcher(build.folder / "results") as watcher:
        code: int | None = None
        while code is None:
            with RunningBuild(build, output) as run:
                while len(done) < most and (met := _interrupt_once(run, interrupter, watcher)) is not None:
                    outcome, job = met
                    goes_on = run.wait_until_next_job(job.pid, _END)
                    ended, wrong = ("the job ended well", []) if goes_on else _ending(run, outcome.kind, build.folder)
                    done.append(replace(outcome, ended=ended, watched=(*wrong, *watcher.take_faults())))
                    log.info("%s", done[-1])
                    if not goes_on:
                        break
                else:
                    code = run.wait_for_end(MOST_SECONDS)
                    break
                if interrupter.waits():
                    run.left_after(60.0)
                run.leave()
        faults = watcher.take_faults()
    wrong = differences(final_bytes(build.folder), expected) if code == 0 else [f"the last run ended with {code}"]
    if done and (wrong or faults):
        done[-1] = replace(done[-1], watched=(*done[-1].watched, *faults, *wrong))
    return [replace(outcome, recovered=code == 0, equal=not wrong) for outcome in done]


def _interrupt_once(run: RunningBuild, interrupter: Interrupter, watcher: Watcher) -> tuple[Outcome, Job] | None:
    """Wait for a job that is to be interrupted, and do it. None: the run has ended before."""
    seen = 0
    while run.process.poll() is None:
        job = run.job()
        if job is None or job.pid == seen:
            time.sleep(SECONDS)
            continue
        seen = job.pid
        moment = interrupter.moment(job.rule)
        if moment is None or not _wait_for(moment, run, job, watcher):
            continue
        kind = interrupter.kind()
        # A process that has ended meanwhile is not killed, and nothing has happened.
        with suppress(OSError):
            if kind in SIGNALS:
                SIGNALS[kind](run.process.pid)
                name = "Snakemake"
            else:
                victim = run.process.pid if kind == KILLS[0] else interrupter.one_of(tree_of(job.pid))
                name = "Snakemake" if victim == run.process.pid else name_of(victim)
                os.kill(victim, signal.SIGKILL)
            return Outcome(kind, job.rule, f"{name}, {moment}", interrupter.seed, "", False, False), job
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

    while not reached():
        if run.process.poll() is not None or not job.is_there():
            return False
        time.sleep(SECONDS / 4)
    return True


def _ending(run: RunningBuild, kind: str, folder: Path) -> tuple[str, list[str]]:
    """Return how a run ended, and what is wrong with that."""
    code = run.wait_for_end(_END)
    if kind not in SIGNALS:
        ends = {-signal.SIGKILL: "killed", 1: "it said which job failed", 0: "the job ended well", None: "it hung"}
        return ends.get(code, f"exit code {code}"), []
    if code == 0:
        return "the job ended well", []  # The last one, just then.
    wrong = []
    if left := run.left_after(3.0):
        wrong.append(f"processes were left: {left}")
    if list(folder.glob(".snakemake/locks/*")):
        wrong.append("the lock was not released")
    if _GO_ON not in run.said():
        wrong.append("it did not say how to go on")
    ended = "its jobs ended, the lock was released, it said how to go on"
    return (f"exit code {code}: {ended}" if not wrong else f"exit code {code}"), wrong
