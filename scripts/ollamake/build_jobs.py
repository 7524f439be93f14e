"""What the jobs of one model took, by Snakemake's benchmarks: time and memory of each rule."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("ollamake")

ORDER = (
    "merge_shard", "convert_to_gguf", "compute_imatrix", "quantize", "evaluate_reference", "evaluate_quality",
    "measure_speed", "measure_ghost", "register", "check_template", "ask_questions",
)  # fmt: skip
"""The heavy rules in the order of the work; others come after them by name."""


@dataclass(frozen=True)
class Job:
    """One job as it last ran: what it was for ("" if the rule has but one), seconds, and MiB of its largest memory."""

    rule: str
    about: str
    seconds: float
    peak_mib: float | None


@dataclass(frozen=True)
class RuleCost:
    """Jobs of one rule: how many, the seconds of all and of the longest, and MiB of the largest memory of one."""

    rule: str
    jobs: int
    seconds: float
    longest: Job
    peak_mib: float | None


def jobs_of(model: str, benchmarks: Path) -> list[Job]:
    """Return the jobs of a model that have a benchmark below ``benchmarks``.

    Files are named {model}.tsv, {model}.{quantization}.tsv (what follows it counts as part of it) or {model}/{shard}.tsv.
    """
    jobs = []
    for folder in sorted(path for path in benchmarks.glob("*") if path.is_dir()):
        for about, file in _files(model, folder):
            job = _job(folder.name, about, file)
            if job is not None:
                jobs.append(job)
    return jobs


def costs(jobs: list[Job]) -> list[RuleCost]:
    """Return what each rule took, in the order of the work."""
    rules: dict[str, list[Job]] = {}
    for job in jobs:
        rules.setdefault(job.rule, []).append(job)
    rank = {name: number for number, name in enumerate(ORDER)}
    return [
        RuleCost(
            rule=name,
            jobs=len(rules[name]),
            seconds=sum(job.seconds for job in rules[name]),
            longest=max(rules[name], key=lambda job: job.seconds),
            peak_mib=max((job.peak_mib for job in rules[name] if job.peak_mib is not None), default=None),
        )
        for name in sorted(rules, key=lambda name: (rank.get(name, len(ORDER)), name))
    ]


def _files(model: str, folder: Path) -> Iterator[tuple[str, Path]]:
    # A type is in capitals and a model is not, so that m.Q8_0.tsv is of the model m, and m.b.tsv of another one.
    own = re.compile(rf"{re.escape(model)}(?:\.([A-Z][A-Z0-9_]*(?:\..+)?|base|unquantized))?\.tsv")
    for file in sorted(folder.glob("*.tsv")):
        found = own.fullmatch(file.name)
        if found:
            yield found[1] or "", file
    for file in sorted((folder / model).glob("*.tsv")):
        yield file.stem, file


def _job(rule: str, about: str, file: Path) -> Job | None:
    """Return the job of the last line of a benchmark; a memory of "-", or of a job too short to see it, is unknown."""
    try:
        row = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines(), delimiter="\t"))[-1]
        seconds = float(row["s"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        log.warning("%s is no benchmark of Snakemake's (%r); the overview leaves it out", file, error)
        return None
    try:
        peak: float | None = float(row["max_rss"])
    except (KeyError, ValueError, TypeError):
        peak = None
    # Snakemake samples a job's processes twice in its first second; it may have seen the shell alone.
    return Job(rule, about, seconds, peak if peak and seconds >= 1 else None)
