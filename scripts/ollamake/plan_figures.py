"""What the text, the picture and the terminal table of a plan share: how figures are written, and which there are.

``plan`` is the content of a plan.json (:mod:`ollamake.memory_plan`). Files are in GB (10^9 bytes), as on a disk or a hub;
memory is in GiB (2^30 bytes), as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollamake.context_fit import KV_TYPES, ContextMemory
from ollamake.quantization_types import QUANTIZATION_TYPES

CACHES = KV_TYPES
UNKNOWN = "?"
NONE = "-"

Plan = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table of types. ``rank``: the higher, the sooner it is left out where there is no room (0: never)."""

    title: str
    cell: Callable[[Row], str]
    rank: int
    numeric: bool = True


@dataclass(frozen=True)
class Parts:
    """What makes up the memory of a model at the asked context, in MiB; None where it is unknown."""

    weights: int
    kv: int | None
    compute: int | None

    @property
    def total(self) -> int | None:
        return None if self.kv is None or self.compute is None else self.weights + self.kv + self.compute


def one_line(text: str) -> str:
    """Return a text without line breaks and without characters that steer a terminal or are not allowed in XML."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in _spaced(text))


def thousands(number: int) -> str:
    """Return 10240 as 10,240."""
    return f"{number:,}"


def gb(size: int) -> str:
    """Return a size in bytes as GB: two decimals, or two digits where these would be zero."""
    return _two(size / 1e9)


def gib(mib: float) -> str:
    """Return a size in MiB as GiB: two decimals, or two digits where these would be zero."""
    return _two(mib / 1024)


def parameters(number: int) -> str:
    """Return a number of parameters in words: 32.76 billion."""
    for unit, name in ((10**9, " billion"), (10**6, " million")):
        if number >= unit:
            return f"{number / unit:.4g}{name}"
    return thousands(number)


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that matter: 45 s, 16 min, 2 h 05 min, 3 d 4 h."""
    if seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def divergence(kld: float) -> str:
    """Return a mean KL divergence with two digits; more were published but would promise too much."""
    if kld < 1e-4:
        return "<0.0001" if kld > 0 else "0"
    return f"{kld:#.2g}"


def rise(percent: float) -> str:
    """Return a rise of perplexity in per cent with three digits, at most two of them decimals."""
    return f"+{percent:.{2 if percent < 10 else 1 if percent < 100 else 0}f} %"


def deciding_index(plan: Plan) -> int | None:
    """Return which of the budgets decides, None if there is none."""
    return next((index for index, budget in enumerate(plan["budgets"]) if budget["deciding"]), None)


def aliases(plan: Plan) -> dict[str, str]:
    """Return the types that are another name of a type in the plan, as Q4_K is of Q4_K_M."""
    sizes = {row["type"]: row.get("bytes") for row in plan["rows"]}
    return {kind: f"{kind}_M" for kind, size in sizes.items() if size and sizes.get(f"{kind}_M") == size}


def sized_rows(plan: Plan) -> list[Row]:
    """Return the rows of all types that can be made, in the plan's order, aliases left out."""
    other_names = aliases(plan)
    return [row for row in plan["rows"] if "refused" not in row and row["type"] not in other_names]


def refused_types(plan: Plan) -> dict[str, str]:
    """Return the types that llama-quantize refuses for this model, with its words."""
    return {row["type"]: row["refused"] for row in plan["rows"] if "refused" in row}


def recommended_row(plan: Plan) -> Row | None:
    """Return the row that is recommended: the one without an importance matrix where the type has two."""
    if plan["recommendation"] is None:
        return None
    rows = [row for row in plan["rows"] if row["type"] == plan["recommendation"]["type"]]
    return min(rows, key=lambda row: row["imatrix"])


def planned_context(plan: Plan) -> int:
    """Return the context that the totals are for: the one asked for, or the trained length if that is less."""
    return ContextMemory(plan, plan["asked"]["parallel"]).planned(plan["asked"]["context"])


def parts(plan: Plan, row: Row) -> Parts:
    """Return what makes up the memory of a type at the planned context, on the budget that decides or else one GPU.

    The parts sum up to the plan's own total. Each GPU has a compute buffer of its own.
    """
    index = deciding_index(plan)
    need = ContextMemory(plan, plan["asked"]["parallel"]).need(plan["asked"]["kv_cache"], planned_context(plan))
    if need is None:
        return Parts(row["gpu_mib"] + (row["host_mib"] if one_memory(plan) else 0), None, None)
    if index is None:
        return Parts(row["gpu_mib"], need.kv_mib, need.compute_mib)
    compute = plan["budgets"][index]["devices"] * need.compute_mib
    return Parts(row["fits"][index]["total_mib"] - need.kv_mib - compute, need.kv_mib, compute)


def one_memory(plan: Plan) -> bool:
    """Return whether what stays in host memory takes room of the budget that decides as well."""
    index = deciding_index(plan)
    return index is not None and (plan["budgets"][index]["kind"] == "ram" or plan["hardware"]["unified"])


def fit_words(plan: Plan, fit: Mapping[str, Any]) -> str:
    """Return whether a type fits a budget: the GiB that are left of it, or those that lack and how many layers fit.

    The output layer counts as one, as in llama.cpp's own "offloaded 41/65 layers".
    """
    if fit["fits"] is None or fit["free_mib"] is None:
        return UNKNOWN
    if fit["fits"]:
        return f"yes, {gib(fit['free_mib'])} left"
    layers = "" if fit["gpu_layers"] is None else f", {fit['gpu_layers']}/{plan['block_count'] + 1} layers"
    return f"lacks {gib(-fit['free_mib'])}{layers}"


def context_words(plan: Plan, fit: Mapping[str, Any], cache: str) -> str:
    """Return the largest context of a type with a type of cache on a budget, for the number of slots asked for."""
    if cache in ContextMemory(plan, plan["asked"]["parallel"]).impossible:
        return NONE
    context = (fit["largest_context"] or {}).get(cache)
    return UNKNOWN if context is None else thousands(context)


def impossible_slots(plan: Plan) -> dict[str, tuple[list[int], bool, list[str]]]:
    """Return what llama.cpp gives up on with some numbers of slots alone: type of cache -> (slots, whether with more, words).

    With more: each larger number that was measured fails as well, of which there is at least one.
    """
    found = {}
    for cache, refused in (plan["memory"].get("impossible_slots") or {}).items():
        slots = sorted(map(int, refused))
        works = [row["parallel"] for row in plan["memory"]["rows"] if row["kv"] == cache]
        more = len(slots) > 1 and all(count < slots[0] for count in works)
        found[cache] = (slots, more, list(dict.fromkeys(refused.values())))
    return found


def matrix_words(row: Row) -> str:
    """Return whether a type needs an importance matrix, or is shown with one though it needs none."""
    if QUANTIZATION_TYPES[row["type"]].needs_imatrix:
        return "needed"
    return "used" if row["imatrix"] else ""


def time_words(times: Mapping[str, Any], row: Row) -> str:
    """Return how long it takes to make a type from the unquantized file."""
    entry = times["types"].get(row["type"])
    return UNKNOWN if entry is None or entry["seconds"] is None else duration(entry["seconds"])


def knows_times(times: Mapping[str, Any]) -> bool:
    """Return whether a times.json knows any time at all."""
    return any(entry["seconds"] is not None for entry in (*times["shared"], *times["types"].values()))


def columns(plan: Plan, times: Mapping[str, Any] | None) -> list[Column]:
    """Return the columns of the table of types: sizes, memory, what fits where, quality, time to make."""
    index = deciding_index(plan)

    def quality(write: Callable[[Mapping[str, Any]], str]) -> Callable[[Row], str]:
        return lambda row: UNKNOWN if row["quality"] is None else write(row["quality"])

    def total(row: Row) -> str:
        mib = parts(plan, row).total
        return UNKNOWN if mib is None else gib(mib)

    result = [
        Column("importance matrix", matrix_words, 7, numeric=False),
        Column("file GB", lambda row: gb(row["bytes"]), 0),
        Column("bits a weight", lambda row: f"{row['bits_per_weight']:.2f}", 10),
        Column(f"weights{'' if one_memory(plan) else ' on GPU'} GiB", lambda row: gib(parts(plan, row).weights), 9),
        Column(f"total GiB at {thousands(planned_context(plan))}", total, 2),
    ]
    for number, budget in enumerate(plan["budgets"]):
        result.append(
            Column(
                f"fits {one_line(budget['name'])} (GiB)", _fit_cell(plan, number), 1 if number == index else 6, False
            )
        )
    if index is not None:
        for cache in CACHES:
            rank = 3 if cache == plan["asked"]["kv_cache"] else 8
            result.append(Column(f"largest context, {cache}", _context_cell(plan, index, cache), rank))
    result += [
        Column("expected quality", quality(lambda published: published["class"]), 4, numeric=False),
        Column("KLD", quality(lambda published: divergence(published["kld"])), 5),
        Column("PPL", quality(lambda published: rise(published["ppl_percent"])), 11),
    ]
    if times is not None and knows_times(times):
        result.append(Column("time to make", lambda row: time_words(times, row), 5))
    return result


def alternative_cells(plan: Plan, alternative: Mapping[str, Any]) -> Sequence[str]:
    """Return name, parameters, recommended type, GB of its file, largest context on the deciding budget with the asked cache."""
    row, index = recommended_row(alternative), deciding_index(plan)
    if row is None:
        return (one_line(alternative["name"]), parameters(alternative["parameters"]), "none", NONE, NONE)
    largest = None if index is None else (row["fits"][index]["largest_context"] or {}).get(plan["asked"]["kv_cache"])
    context = UNKNOWN if largest is None else thousands(largest)
    size = gb(row["bytes"]) if alternative["exact"] else f"~{gb(row['bytes'])}"
    return (one_line(alternative["name"]), parameters(alternative["parameters"]), row["type"], size, context)


def alternative_remarks(alternative: Mapping[str, Any]) -> list[str]:
    """Return why nothing is recommended of an alternative, and its warnings, each with its name."""
    name = one_line(alternative["name"])
    remarks = [] if alternative["no_recommendation"] is None else [alternative["no_recommendation"]]
    remarks = [one_line(remark) for remark in [*remarks, *alternative["warnings"]]]
    return [remark if name in remark else f"{name}: {remark}" for remark in remarks]


ALTERNATIVE_TITLES = ("model", "parameters", "recommended", "file GB", "largest context")


def _fit_cell(plan: Plan, number: int) -> Callable[[Row], str]:
    return lambda row: fit_words(plan, row["fits"][number])


def _context_cell(plan: Plan, index: int, cache: str) -> Callable[[Row], str]:
    return lambda row: context_words(plan, row["fits"][index], cache)


def _two(value: float) -> str:
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


def _spaced(text: str) -> str:
    return " ".join(text.split())
