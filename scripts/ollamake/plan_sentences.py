"""What a plan says in words: what was planned, what is recommended, how long it takes, where the figures come from.

Names in the sentences are as the user wrote them; whoever shows them escapes them for his medium.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ollamake.hardware import GPU_OVERHEAD_MIB, SYSTEM_MIB
from ollamake.plan_figures import (
    NONE,
    Plan,
    Row,
    aliases,
    deciding_index,
    duration,
    gb,
    gib,
    impossible_slots,
    knows_times,
    one_line,
    parameters,
    recommended_row,
    thousands,
)

QUALITY_NOTE = (
    "Expected quality was published elsewhere for another model, not measured on this one: KLD is the mean KL divergence to"
    " 16 bits in nats a token, PPL the rise of the perplexity."
)
TITLES = {"up": "One better", "down": "One smaller"}


def subject(plan: Plan) -> str:
    """Return what was planned: the model, how large it is, from what this is known, and how well."""
    trained = plan["trained_context"]
    exact = "exact" if plan["exact"] else "estimated, good to 0.1 %"
    layers = f"{plan['block_count']} layers"
    return (
        f"{one_line(plan['name'])}: {plan['architecture']}, {parameters(plan['parameters'])} parameters"
        f" ({thousands(plan['parameters'])}), {layers},"
        f" {'a trained context that is not known' if trained is None else f'trained for {thousands(trained)} tokens'},"
        f" {gb(plan['unquantized_bytes'])} GB as {plan['outtype']}. Planned from {one_line(plan['source'])}; sizes are {exact}."
    )


def asked(plan: Plan) -> str:
    """Return what was asked for."""
    wanted = plan["asked"]
    slots = "1 slot" if wanted["parallel"] == 1 else f"{wanted['parallel']} slots"
    each = "" if wanted["parallel"] == 1 else " each"
    size = plan.get("adapter_bytes", 0)
    adapter = f" The adapter's {gib(size / 2**20)} GiB in float32 are counted with the weights." if size else ""
    return (
        f"Asked for: {slots} of {thousands(wanted['context'])} tokens{each}, a KV cache of {wanted['kv_cache']},"
        f" {wanted['margin_gib']:g} GiB to be left free.{adapter}"
    )


def places(plan: Plan) -> str:
    """Return the budgets in one sentence, and which of them decides."""
    if not plan["budgets"]:
        return "Nothing is known of the hardware, so whether a type fits is not said."
    described = [
        f"{one_line(budget['name'])} ({budget['memory_gib']:g} GiB, usable {gib(budget['usable_mib'])})"
        + (", which decides" if budget["deciding"] and len(plan["budgets"]) > 1 else "")
        for budget in plan["budgets"]
    ]
    return f"Hardware, as {plan['hardware']['source']}: {'; '.join(described)}."


def advice(plan: Plan) -> list[tuple[str, str]]:
    """Return (title, sentence) of the recommendation, the next types up and down, and what num_ctx: auto writes.

    Without a recommendation it is one pair that says why.
    """
    recommendation = plan["recommendation"]
    if recommendation is None:
        return [("No recommendation", _sentence(plan["no_recommendation"]))]
    pairs = [(f"Recommended: {recommendation['type']}", recommendation["reason"])]
    for key, title in TITLES.items():
        if recommendation[key] is not None:
            pairs.append((f"{title}: {recommendation[key]['type']}", recommendation[key]["reason"]))
    context = plan["num_ctx"].get(recommendation["type"])
    if context is not None:
        pairs.append((f"num_ctx: auto writes {thousands(context['tokens'])}", context["reason"]))
    return [(title, _sentence(text)) for title, text in pairs]


def making(plan: Plan, times: Mapping[str, Any], types: Collection[str] | None = None) -> list[str]:
    """Return how long it takes to make the recommended type, and on what the times of ``types`` (None: of all) are based."""
    if not knows_times(times):
        return [f"How long it takes is not known yet: {times['shared'][0]['basis']}."]
    row = recommended_row(plan)
    sentences = [] if row is None else [_time_of(row, times)]
    for job in times["shared"]:
        sentences.append(f"{job['job']}, once for all types: {_seconds(job['seconds'])} ({job['basis']}).")
    grounds: dict[str, list[str]] = {}
    for kind, entry in times["types"].items():
        if types is not None and kind not in types:
            continue
        grounds.setdefault(entry["basis"], []).append(kind)
    for basis, kinds in grounds.items():
        sentences.append(f"{', '.join(kinds)}: {basis}.")
    return sentences


def sources(plan: Plan) -> list[str]:
    """Return where the figures come from and what they leave out."""
    sizes = "Sizes of files and of weights: what llama.cpp's own llama-quantize makes of a model of this shape"
    if not plan["exact"]:
        sizes += "; how much its tokenizer takes is an estimate, so that they are good to 0.1 %"
    return [
        f"{sizes}.",
        _memory_source(plan["memory"]),
        *(_cannot(cache, why) for cache, why in (plan["memory"].get("impossible") or {}).items()),
        *(_cannot_with(cache, *found) for cache, found in impossible_slots(plan).items()),
        *_quality_sources(plan),
        *_left_out(plan),
        *(f"{kind} is another name of {leader}." for kind, leader in aliases(plan).items()),
    ]


def _memory_source(memory: Mapping[str, Any]) -> str:
    if memory["source"] is None:
        return f"KV cache and compute buffers: unknown. {_sentence(memory['reason'])}"
    if memory["source"] == "formula":
        return (
            "KV cache and compute buffers: by formula; compute buffers are good to 3 % and 16 MiB."
            f" {_sentence(memory.get('reason') or 'llama-fit-params was not asked')}"
        )
    return f"KV cache and compute buffers: printed by llama.cpp's own {memory['source']} for this shape."


def _cannot(cache: str, why: str) -> str:
    return (
        f"A KV cache of {cache} is not possible for this model ({NONE} in the tables); llama.cpp says: {one_line(why)}"
    )


def _cannot_with(cache: str, slots: list[int], more: bool, why: list[str]) -> str:
    many = (
        f"{slots[0]} or more slots" if more else " and ".join(map(str, slots)) + (" slot" if slots == [1] else " slots")
    )
    return f"With {many} llama.cpp gives up on a KV cache of {cache} ({NONE} in the tables): {one_line('; '.join(why))}"


def _quality_sources(plan: Plan) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for row in plan["rows"]:
        if row.get("quality") is not None:
            kinds.setdefault(row["quality"]["source"], []).append(row["type"])
    sentences = [f"{QUALITY_NOTE} Larger models lose less as a rule; measure yours on your own text."]
    return sentences + [f"{source}: {', '.join(dict.fromkeys(names))}." for source, names in kinds.items()]


def _left_out(plan: Plan) -> list[str]:
    """Return what usable memory and the totals do not count, for the kinds of budgets there are."""
    margin = f"the {plan['asked']['margin_gib']:g} GiB asked to be left free"
    kinds = {budget["kind"] for budget in plan["budgets"]}
    sentences = []
    if "gpu" in kinds:
        sentences.append(
            f"Usable memory of a GPU is all of it less {margin} and less {GPU_OVERHEAD_MIB} MiB on each GPU for what llama.cpp"
            " does not account for (the driver's context, kernels); other programs on the GPU are not counted."
        )
        if any(budget["devices"] > 1 for budget in plan["budgets"]):
            sentences.append("Several GPUs count as one sum; a split by whole layers can leave some of it unused.")
    if "ram" in kinds:
        sentences.append(
            f"Usable RAM is all of it less {margin} and less {gib(SYSTEM_MIB)} GiB for the operating system and the server."
        )
    if plan["budgets"] and deciding_index(plan) is not None:
        sentences.append("Totals are those of the budget that decides, at the context asked for.")
    return sentences


def _time_of(row: Row, times: Mapping[str, Any]) -> str:
    own = times["types"].get(row["type"])
    jobs = [(job["job"], job["seconds"]) for job in times["shared"]]
    jobs.append((f"quantizing to {row['type']}", None if own is None else own["seconds"]))
    known = [seconds for _, seconds in jobs if seconds is not None]
    unknown = [job for job, seconds in jobs if seconds is None]
    if not known:
        return f"How long {row['type']} takes to make is not known yet."
    missing = f", and the time of {', '.join(unknown)}, which is not known yet" if unknown else ""
    return f"{row['type']} takes about {duration(sum(known))} to make{missing}."


def _seconds(seconds: float | None) -> str:
    return "not known yet" if seconds is None else duration(seconds)


def _sentence(text: str) -> str:
    """Return a text that starts and ends as a sentence does; names of types keep their letters."""
    text = one_line(text)
    return text if text.endswith((".", "!", "?")) else f"{text}."
