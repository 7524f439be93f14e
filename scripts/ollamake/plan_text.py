"""A plan as Markdown, in the order a user needs it: what to take, why, what fits where, where the figures come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ollamake.plan_figures import (
    ALTERNATIVE_TITLES,
    CACHES,
    NONE,
    Column,
    Plan,
    Row,
    alternative_cells,
    alternative_remarks,
    columns,
    context_words,
    deciding_index,
    gb,
    gib,
    one_line,
    recommended_row,
    refused_types,
    sized_rows,
    thousands,
)
from ollamake.plan_sentences import advice, asked, making, places, sources, subject

# An underscore between letters or digits, as in Q4_K_M, is no markup.
_SPECIAL = re.compile(r"([\\`*\[\]<>|&~!]|(?<![^\W_])_|_(?![^\W_]))")


def plan_markdown(plan: Plan, times: Mapping[str, Any] | None = None, picture: str | None = None) -> str:
    """Return a plan.json as Markdown (CommonMark with GitHub's tables), the same text for the same plan.

    ``times``: the content of a times.json, seconds to make each type; ``picture``: path of the plan's SVG, as seen from the
    text. Names of models, GPUs and files are escaped.
    """
    blocks = [f"# Plan of {escaped(plan['model'])}", escaped(subject(plan))]
    blocks += [_advice(plan), _bullets(f"**Warning:** {escaped(text)}" for text in plan["warnings"])]
    blocks += [escaped(asked(plan)), escaped(places(plan))]
    if picture is not None:
        blocks.append(f"![Memory of each type]({quote(picture)})")
    blocks += ["## Types", *_types(plan, times)]
    if times is not None:
        blocks += ["## Time to make", _bullets(escaped(text) for text in making(plan, times))]
    blocks += ["## KV cache and compute buffers", *_memory(plan)]
    blocks += ["## Without llama.cpp: transformers, vLLM", *_transformers(plan)]
    if plan["alternatives"]:
        blocks += ["## Alternatives", *_alternatives(plan)]
    blocks += ["## Sources", _bullets(escaped(text) for text in sources(plan))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def escaped(text: str) -> str:
    """Return a text in one line of which Markdown and HTML make nothing but text, at the start of a block too."""
    text = _SPECIAL.sub(r"\\\1", one_line(text))
    # A text that starts as a heading, a quotation or a list does would become one.
    return re.sub(r"^(\d+)([.)])(?=\s|$)|^([#+=-])", lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", text)


def _advice(plan: Plan) -> str:
    return _bullets(f"**{escaped(title)}** – {escaped(sentence)}" for title, sentence in advice(plan))


def _types(plan: Plan, times: Mapping[str, Any] | None) -> list[str]:
    """Return the table of all types; what an importance matrix changes; which context fits elsewhere; the refused."""
    blocks = [_table_of_types(plan, columns(plan, times), sized_rows(plan))]
    if plan["with_imatrix"]:
        blocks.append("With an importance matrix these have another size:")
        blocks.append(_table_of_types(plan, columns(plan, None), plan["with_imatrix"]))
    blocks += _other_contexts(plan)
    refused = refused_types(plan)
    if refused:
        blocks.append("Types that llama-quantize refuses for this model:")
        blocks.append(_bullets(f"{escaped(kind)}: {escaped(why)}" for kind, why in refused.items()))
    return blocks


def _table_of_types(plan: Plan, shown: Sequence[Column], rows: Sequence[Row]) -> str:
    recommended = recommended_row(plan)
    return _table(
        ["type", *(column.title for column in shown)],
        [False, *(column.numeric for column in shown)],
        [[_type(row, row is recommended), *(_cell(column.cell(row)) for column in shown)] for row in rows],
    )


def _other_contexts(plan: Plan) -> list[str]:
    deciding = deciding_index(plan)
    others = [index for index in range(len(plan["budgets"])) if index != deciding]
    if not others:
        return []
    rows = [row for row in sized_rows(plan) if row["candidate"] or row is recommended_row(plan)]
    titles = [f"{plan['budgets'][index]['name']}, {cache}" for index in others for cache in CACHES]
    cells = [
        [
            escaped(row["type"]),
            *(context_words(plan, row["fits"][index], cache) for index in others for cache in CACHES),
        ]
        for row in rows
    ]
    return ["Largest contexts elsewhere:", _table(["type", *titles], [False, *[True] * len(titles)], cells)]


def _memory(plan: Plan) -> list[str]:
    memory = plan["memory"]
    if memory["source"] is None:
        return [f"Unknown. {escaped(memory['reason'])}"]
    found = {(row["parallel"], row["context"], row["kv"]): row for row in memory["rows"]}
    cells = []
    for slots, context in sorted({(parallel, length) for parallel, length, _ in found}):
        line = [str(slots), thousands(context)]
        for cache in CACHES:
            row = found.get((slots, context, cache))
            line += [NONE, NONE] if row is None else [gib(row["kv_mib"]), gib(row["compute_mib"])]
        cells.append(line)
    titles = [
        "slots",
        "context of each",
        *(title for cache in CACHES for title in (f"KV {cache}", f"compute, {cache}")),
    ]
    return ["GiB on one device, for all slots together.", _table(titles, [True] * len(titles), cells)]


def _transformers(plan: Plan) -> list[str]:
    budgets = plan["budgets"]
    cells = [
        [
            _cell(one["name"]),
            gb(one["bytes"]),
            gib(one["bytes"] / 2**20),
            *("yes" if fits else "no" for fits in one["fits"]),
        ]
        for one in plan["transformers"]
    ]
    titles = ["weights", "GB", "GiB", *(f"fit {budget['name']}" for budget in budgets)]
    return [
        "Weights alone; the KV cache and the program's own memory come on top.",
        _table(titles, [False, True, True, *[False] * len(budgets)], cells),
    ]


def _alternatives(plan: Plan) -> list[str]:
    table = _table(
        ALTERNATIVE_TITLES,
        [False, True, False, True, True],
        [[_cell(cell) for cell in alternative_cells(plan, alternative)] for alternative in plan["alternatives"]],
    )
    remarks = [escaped(remark) for alternative in plan["alternatives"] for remark in alternative_remarks(alternative)]
    if not all(alternative["exact"] for alternative in plan["alternatives"]):
        remarks.append(escaped("~: the size is estimated, good to 0.1 %."))
    return [table, _bullets(remarks)]


def _type(row: Row, recommended: bool) -> str:
    return f"**{escaped(row['type'])} (recommended)**" if recommended else escaped(row["type"])


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(titles: Sequence[str], numeric: Sequence[bool], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of GitHub's Markdown; the titles are escaped here, the cells before."""
    lines = [[_cell(title) for title in titles], ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text if text == NONE else _SPECIAL.sub(r"\\\1", one_line(text))
