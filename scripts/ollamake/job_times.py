"""How long a job will take, by the jobs that have run: Snakemake's benchmarks, and the sizes of what those jobs wrote.

A job takes a start (interpreter, imports) and then time in proportion to its quantity: the bytes written by a merge or a
conversion, the parameters of a model that is quantized. Where a kind has not run yet, one that has is scaled.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("ollamake")

UNITS = {"merge_shard": "bytes", "convert_to_gguf": "bytes", "quantize": "parameters"}
"""Rule -> what its quantity counts."""

_START_SECONDS = {"merge_shard": 2.0, "convert_to_gguf": 3.5, "quantize": 1.0}
"""At the most: what jobs of a model of a few MB take, nearly all of it imports of torch, transformers and gguf."""

_RELATIVE_COST: dict[str, dict[str, float]] = {
    # CPU seconds for 10^9 parameters with AVX-512, measured on a model of 0.75 * 10^9.
    "quantize": {
        "Q8_0": 9, "Q4_0": 16, "Q6_K": 33, "Q3_K": 35, "Q3_K_M": 35, "Q2_K": 44, "Q5_K": 45, "Q5_K_M": 45, "Q4_K": 56,
        "Q4_K_M": 56, "Q4_K_S": 68, "IQ4_XS": 160,
    },
    # Seconds for 10^9 bytes written, measured on a model of 2 * 10^9 parameters.
    "convert_to_gguf": {"F16": 6.0, "BF16": 7.0, "F32": 2.25},
}  # fmt: skip

NEWEST = 40
"""Earlier jobs of a rule that are looked at."""

_FAR = 4
"""Beyond so many times the largest quantity seen, a time is told only by jobs that did more than start."""
_TELLING_SECONDS = 5.0


@dataclass(frozen=True)
class Throughput:
    """What the jobs of one rule and kind took: ``seconds_per_unit`` after ``start_seconds``, with ``cores`` in use.

    ``largest``: the largest quantity seen, ``longest``: the seconds of the longest job.
    """

    jobs: int
    start_seconds: float
    seconds_per_unit: float
    largest: int
    longest: float
    cores: float | None


@dataclass(frozen=True)
class Estimate:
    """Seconds, None if they are not known, and what they are based on, in words."""

    seconds: float | None
    basis: str


Found = Mapping[tuple[str, str], Throughput]


@dataclass(frozen=True)
class _Job:
    quantity: int
    seconds: float
    cores: float | None


def throughput(benchmarks: Path, results: Path) -> dict[tuple[str, str], Throughput]:
    """Return (rule, kind) -> throughput, from a folder of Snakemake's benchmarks and the records below ``results``.

    Kinds: of a merge "plain" (LoRA) or "peft" (through peft's layers), of a conversion the type written, of a quantization
    its type. Benchmarks whose record is gone, and files that are cut short, count for nothing.
    """
    jobs: dict[tuple[str, str], list[_Job]] = {}
    for rule, measured, record, quantity_of, kind_of in _pairs(benchmarks, results):
        row, content = _benchmark(measured), _record(record)
        if row is None or content is None:
            continue
        try:
            key, quantity = (rule, kind_of(content)), int(quantity_of(content))
        except (KeyError, TypeError, ValueError) as error:
            log.debug("%s is not the record of a %s: %r", record, rule, error)
            continue
        if quantity > 0:
            jobs.setdefault(key, []).append(_Job(quantity, *row))
    return {key: _fit(key[0], found) for key, found in sorted(jobs.items())}


def estimate(found: Found, rule: str, quantity: int, kind: str | None = None, threads: int | None = None) -> Estimate:
    """Return how long a job of ``rule`` will take for ``quantity`` (UNITS), from what :func:`throughput` has found.

    ``kind`` None: whatever has run most. ``threads``: cores a quantization will have, if others than before.
    """
    known = {its_kind: one for (its_rule, its_kind), one in found.items() if its_rule == rule}
    if not known:
        return Estimate(None, "no earlier job on this machine")
    chosen = max(known, key=lambda its_kind: known[its_kind].jobs) if kind is None else kind
    costs, scale, by = _RELATIVE_COST.get(rule, {}), 1.0, ""
    if chosen not in known:
        comparable = [other for other in known if other in costs]
        if chosen not in costs or not comparable:
            return Estimate(None, f"no earlier job of {chosen} on this machine, nor one to compare it with")
        wanted, chosen = chosen, max(comparable, key=lambda other: known[other].largest)
        scale, by = costs[wanted] / costs[chosen], f" of {chosen}, scaled to {wanted} by their usual costs"
    one = known[chosen]
    work = one.longest - one.start_seconds
    if quantity > _FAR * one.largest and work < _TELLING_SECONDS:
        return Estimate(
            None, f"earlier jobs on this machine were too small to tell (the longest took {one.longest:.0f} s)"
        )
    if threads and one.cores and rule == "quantize":
        scale *= max(1.0, one.cores) / threads
        by += f", on {threads} threads"
    seconds = one.start_seconds + quantity * one.seconds_per_unit * scale
    return Estimate(seconds, f"by {one.jobs} earlier job{'s' if one.jobs > 1 else ''} on this machine{by}")


def times_of_build(ghost: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """Return what times.json says of a model's ghost.json: each type's quantization, and what all types share.

    The merge counts its shards one after another.
    """
    merged = int(ghost["unquantized_bytes"])
    shared = [
        ("merge_shard", estimate(found, "merge_shard", merged)),
        ("convert_to_gguf", estimate(found, "convert_to_gguf", merged, ghost["outtype"])),
    ]
    types = {
        kind: estimate(found, "quantize", int(ghost["parameters"]), kind)
        for kind, entry in ghost["types"].items()
        if "refused" not in entry
    }
    return {
        "types": {kind: {"seconds": one.seconds, "basis": one.basis} for kind, one in types.items()},
        "shared": [{"job": job, "seconds": one.seconds, "basis": one.basis} for job, one in shared],
    }


def in_words(seconds: float) -> str:
    """Return a time as people say it: about 40 s, about 16 min, about 2.5 h."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def merge_kind(tensors: Mapping[str, Mapping[str, Any]]) -> str:
    """Return "peft" if a tensor of a merge record went through peft's layers, else "plain"."""
    return "peft" if any("module" in tensor["kind"].split(" + ") for tensor in tensors.values()) else "plain"


def _pairs(benchmarks: Path, results: Path) -> Iterator[tuple[str, Path, Path, Any, Any]]:
    """Yield (rule, benchmark, record, quantity of the record, kind of the record)."""
    for file in _newest(benchmarks / "merge_shard", "*/*.tsv"):
        record = results / file.parent.name / "merge_records" / f"model-{file.stem}.json"
        yield "merge_shard", file, record, lambda one: one["output"]["size"], lambda one: merge_kind(one["tensors"])
    for file in _newest(benchmarks / "convert_to_gguf", "*.tsv"):
        record = results / file.stem / "gguf" / f"{file.stem}.unquantized.json"
        yield "convert_to_gguf", file, record, lambda one: one["size"], lambda one: str(one["type"])
    for file in _newest(benchmarks / "quantize", "*.tsv"):
        model = file.stem.rpartition(".")[0]
        record = results / model / "gguf" / f"{file.stem}.json"
        yield "quantize", file, record, lambda one: one["parameters"], lambda one: str(one["type"])


def _newest(folder: Path, pattern: str) -> list[Path]:
    """Return the benchmarks of a rule, the newest NEWEST of them: the graph is read with them, however many there are."""
    return sorted(sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime_ns)[-NEWEST:])


def _benchmark(file: Path) -> tuple[float, float | None] | None:
    """Return (seconds, cores in use) of the last line of a benchmark; columns may be "NA" or "-"."""
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
        seconds = float(rows[-1]["s"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        log.debug("%s has no time: %r", file, error)
        return None
    try:
        cores = float(rows[-1]["mean_load"]) / 100
    except (ValueError, KeyError, TypeError):
        return seconds, None
    return seconds, cores or None


def _record(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.debug("%s cannot be read: %s", file, error)
        return None
    return content if isinstance(content, dict) else None


def _fit(rule: str, jobs: list[_Job]) -> Throughput:
    """Return the throughput of jobs: all their work over all their quantity, so that large ones decide."""
    start = min(_START_SECONDS[rule], min(job.seconds for job in jobs))
    largest = max(jobs, key=lambda job: job.quantity)
    work = sum(job.seconds - start for job in jobs)
    return Throughput(
        jobs=len(jobs),
        start_seconds=start,
        seconds_per_unit=work / sum(job.quantity for job in jobs),
        largest=largest.quantity,
        longest=max(job.seconds for job in jobs),
        cores=largest.cores,
    )
