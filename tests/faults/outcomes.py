"""What came of each injected fault, kept a line each in a file, and the table that README.md makes of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

README = Path(__file__).with_name("README.md")
_END = "<!-- end of what it made -->"
SINGLE_JOB = "its first job"
"""``where`` of a fault under a job that was run by itself (jobs_by_hand.py); all others met a run of the build."""


@dataclass(frozen=True)
class Outcome:
    """One fault and what came of it. Nothing in it is a time: the same seeds give the same table.

    ``kind``: the class of fault, a few words (`kill -9 of a job`); ``rule``: whose job it met, or `-`; ``where``: victim and
    moment; ``ended``: how the run with the fault ended; ``recovered``: whether the next plain run ended well;
    ``equal``: whether the final bytes are then those of an undisturbed build; ``watched``: what the watcher found wrong.
    """

    kind: str
    rule: str
    where: str
    seed: int
    ended: str
    recovered: bool
    equal: bool
    watched: tuple[str, ...] = ()


Checked = Callable[[Sequence[Outcome]], None]
"""What tests give their outcomes to, see the fixture `checked`."""


def is_good(outcome: Outcome) -> bool:
    """Whether the build was finished by the next plain run, to the same bytes, and nothing half-made was seen."""
    return outcome.recovered and outcome.equal and not outcome.watched


def add(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Add lines to a file of outcomes."""
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in outcomes)


def read(file: Path) -> list[Outcome]:
    """Return the outcomes of a file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    values = [json.loads(line) for line in lines]
    return [Outcome(**value | {"watched": tuple(value["watched"])}) for value in values]


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a table of README.md: how many faults of each kind; of runs of a build, also how many met each rule."""
    total = f"{len(outcomes)} faults, {sum(map(is_good, outcomes))} recoveries with equal bytes."
    of_runs = [outcome for outcome in outcomes if outcome.where != SINGLE_JOB]
    rules = ["", *_by_rule(of_runs)] if of_runs else []
    return "\n".join([total, "", *_by_kind(outcomes), *rules])


def write(outcomes: Sequence[Outcome], file: Path = README) -> None:
    """Put the tables into README.md, between their markers: one of runs, one of single jobs. What has no outcomes stays."""
    for name, are_single in (("runs", False), ("single jobs", True)):
        if of_it := [outcome for outcome in outcomes if (outcome.where == SINGLE_JOB) == are_single]:
            _write_table(of_it, f"<!-- {name}, made by tests/faults/write_table.py -->", file)


def _write_table(outcomes: Sequence[Outcome], begin: str, file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    made = f"{begin}\n\n{table(outcomes)}\n\n{_END}"
    changed, count = re.subn(f"{re.escape(begin)}.*?{re.escape(_END)}", lambda _: made, text, flags=re.DOTALL)
    assert count == 1, f"{file} has not once the markers {begin} and {_END}"
    file.write_text(changed, encoding="utf-8")


def _by_kind(outcomes: Sequence[Outcome]) -> list[str]:
    rows = [
        "| fault | how often | how the run ended | the next plain run ended well | bytes equal | half-made files | seeds |"
    ]
    rows.append("| --- | ---: | --- | ---: | ---: | ---: | --- |")
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        of_it = [outcome for outcome in outcomes if outcome.kind == kind]
        ended = Counter(outcome.ended for outcome in of_it)
        said = ", ".join(f"{how} ({count})" if len(ended) > 1 else how for how, count in sorted(ended.items()))
        seeds = ", ".join(map(str, sorted({outcome.seed for outcome in of_it})))
        well, equal = sum(one.recovered for one in of_it), sum(one.equal for one in of_it)
        half = sum(len(one.watched) for one in of_it)
        rows.append(f"| {kind} | {len(of_it)} | {said} | {well} | {equal} | {half} | {seeds} |")
    return rows


def _by_rule(outcomes: Sequence[Outcome]) -> list[str]:
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes if outcome.rule != "-"))
    rules = sorted({outcome.rule for outcome in outcomes if outcome.rule != "-"})
    counts = Counter((outcome.rule, outcome.kind) for outcome in outcomes)
    rows = ["| rule | " + " | ".join(kinds) + " |", "| --- |" + " ---: |" * len(kinds)]
    return rows + [
        f"| `{rule}` | " + " | ".join(str(counts[rule, kind] or "") for kind in kinds) + " |" for rule in rules
    ]
