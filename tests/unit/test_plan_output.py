"""A plan as Markdown, as SVG and in the terminal: the plan's own figures, nothing taken for markup, the same every time."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from sample_plan import BLOCKS, EMBEDDING_ELEMENTS, METADATA_BYTES, PARAMETERS, alternative, sample_plan, without_memory

import draw_plan
import plan as plan_script
from ollamake.errors import OllamakeError
from ollamake.hardware import GPU_OVERHEAD_MIB
from ollamake.memory_plan import memory_plan
from ollamake.plan_figures import divergence, duration, gb, gib, one_line, parameters, parts, rise
from ollamake.plan_plot import draw_plan as draw
from ollamake.plan_terminal import plan_renderables, shown_rows
from ollamake.plan_text import escaped, plan_markdown
from ollamake.record_seal import read_sealed_text

TIMES = {
    "types": {
        "Q8_0": {"seconds": 500.0, "basis": "4 earlier jobs of this machine"},
        "Q4_K_M": {"seconds": 960.0, "basis": "4 earlier jobs of this machine"},
        "IQ4_XS": {"seconds": None, "basis": "no benchmark yet"},
    },
    "shared": [
        {"job": "merge_shard", "seconds": 400.0, "basis": "17 earlier jobs"},
        {"job": "convert_to_gguf", "seconds": 300.0, "basis": "1 earlier job"},
    ],
}
PARSER = MarkdownIt("commonmark").enable("table")
NASTY = "[red]x[/red] <b>y</b> a|b *c* _d_ `e $f$ &amp; [l](http://h) ![i](j) \x1b[31m\u202e~~g~~ :smile:\n# h"


def tables(markdown: str) -> list[list[dict[str, str]]]:
    """Return the tables of a Markdown text as another program reads it: rows of title -> cell."""
    found: list[list[dict[str, str]]] = []
    for table in ElementTree.fromstring(f"<r>{PARSER.render(markdown)}</r>").iter("table"):
        titles, *rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        assert all(len(row) == len(titles) for row in rows)
        found.append([dict(zip(titles, row, strict=True)) for row in rows])
    return found


def printed(plan: dict[str, Any], width: int = 200, **options: Any) -> str:
    output = io.StringIO()
    console = Console(file=output, width=width, highlight=False, color_system=None)
    console.print(*plan_renderables(plan, **options), sep="\n")
    return output.getvalue()


def plain(markdown: str) -> str:
    """Return a Markdown text as another program shows it, in one line."""
    return words("".join(ElementTree.fromstring(f"<r>{PARSER.render(markdown)}</r>").itertext()))


def words(text: str) -> str:
    return " ".join(text.split())


def picture_text(plan: dict[str, Any]) -> list[str]:
    return [words("".join(text.itertext())) for text in ElementTree.fromstring(draw(plan)).iter(SVG_TEXT)]


SVG_TEXT = "{http://www.w3.org/2000/svg}text"


def row_of(plan: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(row for row in plan["rows"] if row["type"] == kind)


def test_every_figure_of_the_table_is_the_plans() -> None:
    plan = sample_plan(gpus=[("RTX 3060", 12.0), ("RTX 4090", 24.0)], ram_gib=96.0, parallel=2)
    table = {row["type"].removesuffix(" (recommended)"): row for row in tables(plan_markdown(plan, TIMES))[0]}
    listed = [row for row in plan["rows"] if "refused" not in row and row["type"] not in ("Q3_K", "Q4_K", "Q5_K")]
    assert list(table) == [row["type"] for row in listed]
    names = ["RTX 3060", "RTX 4090", "RTX 3060 + RTX 4090", "RAM"]
    deciding = 2
    for row in listed:
        cells, fits = table[row["type"]], row["fits"]
        assert cells["file GB"] == f"{row['bytes'] / 10**9:.2f}"
        assert cells["bits a weight"] == f"{row['bits_per_weight']:.2f}"
        assert cells["weights on GPU GiB"] == f"{row['gpu_mib'] / 1024:.2f}"
        assert cells["total GiB at 8,192"] == f"{fits[deciding]['total_mib'] / 1024:.2f}"
        assert cells["importance matrix"] == ("needed" if row["imatrix"] else "")
        for name, fit in zip(names, fits, strict=True):
            said = re.fullmatch(
                r"(?:yes, (\S+) left|lacks ([^ ,]+)(?:, (\d+)/65 layers)?)", cells[f"fits {name} (GiB)"]
            )
            assert said is not None
            assert (said[1] is not None) == (fit["free_mib"] >= 0)
            assert float(said[1] or said[2]) * 1024 == pytest.approx(abs(fit["free_mib"]), abs=5.2)
            assert said[3] == (None if fit["gpu_layers"] is None else str(fit["gpu_layers"]))
        for cache, largest in fits[deciding]["largest_context"].items():
            assert cells[f"largest context, {cache}"].replace(",", "") == str(largest)
        quality = row["quality"]
        assert cells["expected quality"] == ("?" if quality is None else quality["class"])
        if quality is not None and quality["kld"] >= 1e-4:
            assert float(cells["KLD"]) == pytest.approx(quality["kld"], rel=0.05)
            assert float(cells["PPL"].strip("+% ")) == pytest.approx(quality["ppl_percent"], rel=0.005, abs=0.005)
    assert [table[kind]["time to make"] for kind in ("Q8_0", "Q4_K_M", "IQ4_XS", "Q6_K")] == [
        "8 min",
        "16 min",
        "?",
        "?",
    ]
    assert {"yes", "lacks"} == {table[kind]["fits RTX 4090 (GiB)"].split(",")[0].split()[0] for kind in table}


def test_memory_of_contexts_and_weights_for_other_programs() -> None:
    plan = sample_plan(impossible={"q4_0": "n_embd_head is no multiple of 32"})
    _, elsewhere, memory, transformers = tables(plan_markdown(plan))
    assert [row["type"] for row in elsewhere] == [row["type"] for row in plan["rows"] if row.get("candidate")]
    assert elsewhere[0]["RAM, f16"] == f"{row_of(plan, 'Q8_0')['fits'][1]['largest_context']['f16']:,}"
    assert len(memory) == 3 * 5
    for row in plan["memory"]["rows"]:
        (line,) = [
            line for line in memory
            if (line["slots"], line["context of each"]) == (str(row["parallel"]), f"{row['context']:,}")
        ]  # fmt: skip
        assert line[f"KV {row['kv']}"] == f"{row['kv_mib'] / 1024:.2f}"
        assert line[f"compute, {row['kv']}"] == f"{row['compute_mib'] / 1024:.2f}"
        assert line["KV q4_0"] == line["compute, q4_0"] == "-"
    assert {row["largest context, q4_0"] for row in tables(plan_markdown(plan))[0]} == {"-"}
    assert [(row["weights"], row["GB"], row["GiB"]) for row in transformers] == [
        ("FP16", "65.53", "61.03"), ("INT8", "34.32", "31.97"), ("NF4", "19.22", "17.90"),
    ]  # fmt: skip
    assert [row["fit A100-40GB"] for row in transformers] == ["no", "yes", "yes"]
    assert "n_embd_head is no multiple of 32" in words(plan_markdown(plan))


def test_the_order_of_the_text() -> None:
    plan = sample_plan()
    plan["warnings"] = ["plan.kv_cache: set `OLLAMA_FLASH_ATTENTION=1` <first>"]
    plan["alternatives"] = [alternative(plan, "Qwen/Qwen3-8B")]
    text = plan_markdown(plan, TIMES, "plan.svg")
    parts_in_order = [
        "# Plan of rag-finetuned", "Qwen/Qwen2.5-32B-Instruct: qwen2, 32.76 billion parameters (32,763,876,352)", "are exact.",
        "**Recommended: Q8_0** – Q8_0 is the best type that fits.", "**One better: F16** – F16 would lose less",
        "**One smaller: Q6_K** – Q6_K leaves", "num_ctx: auto writes 10,752", "**Warning:** plan.kv_cache: set \\`OLLAMA_FLASH",
        "Asked for: 1 slot of 8,192 tokens, a KV cache of f16, 1 GiB", "A100-40GB (36 GiB, usable 34.51), which decides",
        "](plan.svg)", "## Types", "**Q8_0 (recommended)**", "llama-quantize refuses", "MXFP4_MOE",
        "## Time to make", "## KV cache", "## Without llama.cpp", "## Alternatives", "Qwen/Qwen3-8B", "## Sources",
        "llama-quantize makes", "llama-fit-params", "published elsewhere for another model, not measured on this one",
        "without importance matrix (llama.cpp tools/perplexity/README.md): Q8", f"{GPU_OVERHEAD_MIB} MiB",
        "Q5_K is another name of Q5_K_M.",
    ]  # fmt: skip
    position = 0
    for part in parts_in_order:
        assert part in text[position:], part
        position = text.index(part, position)
    assert text.count("which decides") == 1
    assert text == plan_markdown(json.loads(json.dumps(plan)), TIMES, "plan.svg")


def test_time_to_make() -> None:
    text = words(plan_markdown(sample_plan(), TIMES))
    assert "Q8_0 takes about 20 min to make." in text  # 500 + 400 + 300 s
    assert "merge_shard, once for all types: 7 min (17 earlier jobs)." in text
    assert "Q8_0, Q4_K_M: 4 earlier jobs of this machine." in text
    terminal = printed(sample_plan(), times=TIMES)
    assert "Q8_0: 4 earlier jobs of this machine." in terminal
    assert "IQ4_XS: no benchmark yet" not in terminal
    unknown = TIMES | {"shared": [{"job": "merge_shard", "seconds": None, "basis": "no benchmark yet"}]}
    assert "takes about 8 min to make, and the time of merge_shard, which is not known yet." in plan_markdown(
        sample_plan(), unknown
    )
    nothing = unknown | {"types": {"Q8_0": {"seconds": None, "basis": "no benchmark yet"}}}
    for text in (plan_markdown(sample_plan(), nothing), printed(sample_plan(), times=nothing)):
        assert "How long it takes is not known yet: no benchmark yet." in text
        assert "time to" not in text
    assert "time" not in printed(sample_plan()).lower()


@pytest.mark.parametrize("show", [plan_markdown, printed])
def test_without_a_recommendation(show: Any) -> None:
    small = sample_plan(gpus=[("GTX 1050", 4.0)], ram_gib=None)
    text = words(show(small))
    assert "No recommendation" in text
    assert "Not even Q2_K fits. Take a smaller model, or let part of the layers stay in RAM." in text
    assert "lacks" in text
    assert "yes," not in text
    assert "Recommended" not in text


@pytest.mark.parametrize("show", [plan_markdown, printed])
def test_nothing_known_of_the_hardware(show: Any) -> None:
    plan = sample_plan(gpus=[], ram_gib=None)
    text = words(show(plan))
    assert "Nothing is known of the hardware. Set hardware.gpus" in text
    assert "(GiB)" not in text
    assert "largest context" not in text
    assert "33.86" in text, "the total of Q8_0 on one GPU"
    assert not any("usable" in text or text == "left GiB" for text in picture_text(plan))


def test_unknown_memory_is_not_taken_for_none() -> None:
    plan = without_memory(sample_plan(), "no formula for the architecture qwen9")
    markdown = plan_markdown(plan)
    assert "Unknown. no formula for the architecture qwen9" in markdown
    for row in tables(markdown)[0]:
        assert row["total GiB at 8,192"] == row["fits RAM (GiB)"] == row["largest context, f16"] == "?"
        assert row["weights on GPU GiB"] == f"{row_of(plan, row['type'])['gpu_mib'] / 1024:.2f}"
    assert "nothing is recommended" in words(printed(plan))
    assert "KV cache" not in picture_text(plan)
    assert any("weights alone" in text for text in picture_text(plan))


def test_a_cache_that_is_not_possible() -> None:
    plan = sample_plan(kv_cache="q8_0", impossible={"q8_0": "not with heads of 80", "q4_0": "not with heads of 80"})
    row = tables(plan_markdown(plan))[0][3]
    assert (row["type"], row["largest context, q8_0"], row["total GiB at 8,192"]) == ("Q8_0", "-", "?")
    assert row["largest context, f16"] == "10,752"
    assert "Set plan.kv_cache to f16" in printed(plan)
    assert draw(plan)


@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        (
            {"2": "fatal", "4": "fatal"},
            "With 2 or more slots llama.cpp gives up on a KV cache of q8_0 (- in the tables): fatal",
        ),
        ({"2": "a", "4": "b"}, "With 2 or more slots llama.cpp gives up on a KV cache of q8_0 (- in the tables): a; b"),
        ({"4": "fatal"}, "With 4 slots llama.cpp gives up on"),
        ({"1": "fatal", "2": "fatal"}, "With 1 and 2 slots llama.cpp gives up on"),
        ({"1": "fatal"}, "With 1 slot llama.cpp gives up on"),
    ],
)
@pytest.mark.parametrize("parallel", [1, 2, 4])
def test_a_cache_that_is_not_possible_with_some_slots(refused: dict[str, str], sentence: str, parallel: int) -> None:
    plan = sample_plan(parallel=parallel)
    plan["memory"]["rows"] = [
        row for row in plan["memory"]["rows"] if row["kv"] != "q8_0" or str(row["parallel"]) not in refused
    ]
    plan["memory"]["impossible_slots"] = {"q8_0": refused}
    if str(parallel) in refused:
        for row in plan["rows"]:
            for fit in row.get("fits", ()):
                fit["largest_context"] |= {"q8_0": None}
    assert sentence in plain(plan_markdown(plan))
    found, _, memory, *_ = tables(plan_markdown(plan))
    assert ({row["largest context, q8_0"] for row in found} == {"-"}) == (str(parallel) in refused)
    assert {row["slots"] for row in memory if row["KV q8_0"] == "-"} == set(refused)
    assert draw(plan)


def test_a_context_beyond_the_trained_one_is_planned_with_that() -> None:
    plan = sample_plan(context=131072)
    row = tables(plan_markdown(plan))[0][5]
    assert row["total GiB at 32,768"] == f"{row_of(plan, row['type'])['fits'][0]['total_mib'] / 1024:.2f}"
    assert any("32,768 tokens" in text for text in picture_text(plan))


@pytest.mark.parametrize(
    ("gpus", "ram_gib"), [([("A100-40GB", 36.0)], 64.0), ([], 64.0), ([("A", 24.0), ("A", 24.0), ("B", 24.0)], 64.0)]
)
def test_parts_sum_up_to_the_total(gpus: list[tuple[str, float]], ram_gib: float) -> None:
    plan = sample_plan(gpus=gpus, ram_gib=ram_gib, kv_cache="q8_0")
    index = next(index for index, budget in enumerate(plan["budgets"]) if budget["deciding"])
    for row in plan["rows"]:
        if "refused" not in row:
            share = parts(plan, row)
            assert share.total == row["fits"][index]["total_mib"]
            assert share.weights == row["gpu_mib"] + (0 if gpus else row["host_mib"])
            assert (share.kv, share.compute) == (2048 * 8.5 / 16, 210 * max(1, len(gpus)))


def test_a_type_is_shown_with_an_importance_matrix_though_it_needs_none() -> None:
    plan = sample_plan()
    index = plan["rows"].index(row_of(plan, "Q8_0"))
    plan["rows"].insert(index, row_of(plan, "Q8_0") | {"imatrix": True})
    with_matrix, without = [row for row in tables(plan_markdown(plan))[0] if row["type"].startswith("Q8_0")]
    assert (with_matrix["type"], with_matrix["importance matrix"]) == ("Q8_0", "used")
    assert (without["type"], without["importance matrix"]) == ("Q8_0 (recommended)", "")


def test_alternatives() -> None:
    plan = sample_plan()
    small = sample_plan(context=8192)
    plan["alternatives"] = [
        alternative(small, "Qwen/Qwen3-8B", parameters=8190735360),
        alternative(small, "org/estimated", exact=False, warnings=["org/estimated: the size is a guess"]),
        alternative(small, "org/huge", recommendation=None, no_recommendation="Not even Q2_K fits."),
    ]
    table = next(table for table in tables(plan_markdown(plan)) if "recommended" in table[0])
    assert [list(row.values()) for row in table] == [
        ["Qwen/Qwen3-8B", "8.191 billion", "Q8_0", "34.82", "10,752"],
        ["org/estimated", "32.76 billion", "Q8_0", "~34.82", "10,752"],
        ["org/huge", "32.76 billion", "none", "-", "-"],
    ]
    for text in (plan_markdown(plan), printed(plan)):
        assert "org/huge: Not even Q2_K fits." in text
        assert "org/estimated: org/estimated" not in text
        assert "estimated, good to 0.1 %" in text
    assert re.search(r"Qwen/Qwen3-8B +8\.191 billion +Q8_0 +34\.82 +10,752", printed(plan))


def test_an_estimate_and_a_formula_are_called_so() -> None:
    plan = sample_plan() | {"exact": False}
    plan["memory"] |= {"source": "formula", "reason": "llama-fit-params failed: it said nothing (exit code 3)"}
    text = plain(plan_markdown(plan))
    assert "sizes are estimated, good to 0.1 %" in text
    assert "by formula; compute buffers are good to 3 % and 16 MiB. llama-fit-params failed: it said nothing" in text
    del plan["memory"]["reason"]
    assert "16 MiB. llama-fit-params was not asked." in plain(plan_markdown(plan))


def test_nothing_in_a_name_is_markup() -> None:
    plan = sample_plan(model=NASTY, gpus=[(NASTY, 36.0)])
    plan |= {"name": NASTY, "source": NASTY, "warnings": [NASTY]}
    plan["alternatives"] = [alternative(plan, NASTY, no_recommendation=NASTY)]
    shown = words(one_line(NASTY))
    html = ElementTree.fromstring(f"<r>{PARSER.render(plan_markdown(plan, TIMES))}</r>")
    assert {element.tag for element in html.iter()} <= {
        "r", "h1", "h2", "p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert "".join(next(html.iter("h1")).itertext()) == f"Plan of {shown}"
    assert any(f"fits {shown} (GiB)" == "".join(cell.itertext()) for cell in html.iter("th"))
    terminal = printed(plan, width=400)
    assert terminal.count(shown) >= 5
    assert "\x1b" not in terminal
    title = picture_text(plan)
    assert any("[red]x[/red] <b>y</b> a|b *c* _d_ `e $f$" in text for text in title)


@settings(max_examples=400, deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.text(alphabet="a1 `_*<>[]()|&#-+=.~!;\\:/", max_size=20)
)
@example("__0__")
@example("1. a")
@example("0)")
@example("2) --- Q4_K_M")
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    for block in (escaped(text), f"- {escaped(text)}"):
        html = ElementTree.fromstring(f"<r>{PARSER.render(block)}</r>")
        assert "".join(html.itertext()).strip() == one_line(text)
        assert {element.tag for element in html.iter()} <= {"r", "p", "ul", "li"}
    (row,) = tables(f"| a | b |\n| --- | --- |\n| {escaped(text)} | - |")[0]
    assert row == {"a": one_line(text), "b": "-"}


@pytest.mark.parametrize("model", ["rag-finetuned", "ローマ字ではない"])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 240])
def test_widths(width: int, model: str) -> None:
    plan = sample_plan(model=model, gpus=[("NVIDIA RTX 6000 Ada Generation", 48.0), ("H100", 80.0)])
    plan["alternatives"] = [alternative(plan, "Qwen/Qwen2.5-14B-Instruct")]
    text = printed(plan, width=width, times=TIMES, every_type=True)
    cells = [sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in text.splitlines()]
    assert max(cells) <= width
    for kind in ("F16", "Q8_0", "IQ2_XXS", "Q4_K_M"):
        row = row_of(plan, kind)
        assert re.search(rf"^[> ] {kind} .*\b{row['bytes'] / 1e9:.2f}", text, re.MULTILINE), "type and size on one line"
    assert ("No room here for" in text) == (width < 240)


def test_what_matters_most_is_left_at_80_columns() -> None:
    (line,) = re.findall(r"^> Q8_0 .*$", printed(sample_plan(), width=80, times=TIMES), re.MULTILINE)
    assert re.fullmatch(r"> Q8_0 +34\.82 +33\.86 +yes, 0\.65 left +10,752 +near-lossless *", line)


@pytest.mark.parametrize(
    ("types", "every_type", "more"),
    [
        ((), False, {"F16"}),
        (("Q5_0", "Q4_K", "MXFP4_MOE"), False, {"F16", "Q5_0"}),
        ((), True, {"IQ1_S", "F32", "Q5_0"}),
    ],
)
def test_which_types_the_terminal_shows(types: Collection[str], every_type: bool, more: set[str]) -> None:
    plan = sample_plan()
    rows = [row["type"] for row in shown_rows(plan, types, every_type)]
    candidates = {row["type"] for row in plan["rows"] if row.get("candidate")}
    assert candidates | more <= set(rows)
    assert every_type or set(rows) == candidates | more
    text = printed(plan, types=types, every_type=every_type)
    assert re.findall(r"^[> ] (\S+) +(?:needed +)?\d", text, re.MULTILINE) == rows
    assert ("MXFP4_MOE: not for a model without experts" in text) == ("MXFP4_MOE" in types)
    assert ("more types are in the plan's Markdown" in text) != every_type


def test_the_picture() -> None:
    plan = sample_plan()
    picture = draw(plan)
    assert picture == draw(json.loads(json.dumps(plan)))
    texts = picture_text(plan)
    assert "rag-finetuned: memory at a context of 8,192 tokens" in texts
    assert "A100-40GB: 34.51 usable" in texts
    assert "RAM: 61.00 usable →" in texts
    assert {"weights", "KV cache", "compute buffers", "33.86", "0.65", "0.0014", "near-lossless ◀ recommended"} <= set(
        texts
    )
    assert sum("recommended" in text for text in texts) == 1
    candidates = [row["type"] for row in plan["rows"] if row.get("candidate")]
    assert [text for text in texts if text in candidates] == candidates


def test_bars_are_as_long_as_what_they_show() -> None:
    plan = sample_plan(context=32768)
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    bars: dict[str, list[float]] = {"weights": [], "kv": [], "compute": []}
    ends: dict[str, list[tuple[float, float]]] = {"weights": [], "kv": [], "compute": []}
    for path in ElementTree.fromstring(draw(plan)).iterfind(".//svg:path[@clip-path]", namespace):
        xs = [float(x) for x in re.findall(r"[ML] (\S+) \S+", path.get("d", ""))]
        if len(xs) >= 4:
            fill = re.search(r"fill: (#|url)(\w*)", path.get("style", ""))
            # Hatching is a pattern, and SVG fills in black where nothing is said.
            name = "compute" if fill is None else "kv" if fill[1] == "url" else {"0072b2": "weights"}[fill[2]]
            bars[name].append(max(xs) - min(xs))
            ends[name].append((min(xs), max(xs)))
    rows = [row for row in plan["rows"] if row.get("candidate")]
    assert len(bars["weights"]) == len(rows)
    scale = bars["weights"][0] / rows[0]["gpu_mib"]
    assert bars["weights"] == pytest.approx([row["gpu_mib"] * scale for row in rows], rel=1e-3)
    assert bars["kv"] == pytest.approx([8192 * scale] * len(rows), rel=1e-3)
    for before, after in (("weights", "kv"), ("kv", "compute")):
        assert [end for _, end in ends[before]] == pytest.approx([start for start, _ in ends[after]])
    assert bars["compute"] == pytest.approx([234 * scale] * len(rows), rel=1e-3)


def test_a_small_model_has_figures_too() -> None:
    assert (gb(2_345_678), gib(1.5), gib(-3), gb(0)) == ("0.0023", "0.0015", "-0.0029", "0.00")
    assert (parameters(32763876352), parameters(494032768), parameters(1234)) == (
        "32.76 billion",
        "494 million",
        "1,234",
    )
    assert [duration(s) for s in (0.2, 45, 119.6, 960, 7500, 86400 * 3 + 4 * 3600)] == [
        "under 1 s", "45 s", "2 min", "16 min", "2 h 05 min", "3 d 4 h",
    ]  # fmt: skip
    assert [divergence(kld) for kld in (0, 2.5e-5, 0.001355, 0.101913)] == ["0", "<0.0001", "0.0014", "0.10"]
    assert [rise(percent) for percent in (0.043, 56.485, 873.976)] == ["+0.04 %", "+56.5 %", "+874 %"]


def run_plan(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE")
    }
    return subprocess.run(
        [sys.executable, plan_script.__file__, *arguments], capture_output=True, text=True, env=inherited | environment,
        check=False, encoding="utf-8", timeout=120,
    )  # fmt: skip


def test_in_a_pipe(tmp_path: Path) -> None:
    files = []
    for name in ("first", "second"):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(sample_plan(model=f"{name} ü")), encoding="utf-8")
    result = run_plan("--plans", *map(str, files))
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert result.stdout.index("Plan of first ü") < result.stdout.index("Plan of second ü")
    assert 110 < max(map(len, result.stdout.splitlines())) <= 120
    narrow = run_plan("--plans", str(files[0]), "--all", COLUMNS="70", PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0, narrow.stderr
    assert narrow.stdout.isascii()
    assert max(map(len, narrow.stdout.splitlines())) <= 70
    assert "IQ1_S" in narrow.stdout
    assert run_plan("--plans", str(files[0]), COLUMNS="wide").returncode == 0


def test_times_are_one_file_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, times = tmp_path / "plan.json", tmp_path / "times.json"
    plan.write_text(json.dumps(sample_plan()))
    times.write_text(json.dumps(TIMES))
    plan_script.main(["--plans", str(plan), "--times", str(times)])
    assert "Q8_0 takes about 20 min to make." in capsys.readouterr().out
    with pytest.raises(OllamakeError, match="expected one file a plan, 2; found 1"):
        plan_script.main(["--plans", str(plan), str(plan), "--times", str(times)])


def test_the_script_writes_text_and_picture(tmp_path: Path) -> None:
    plan, times = tmp_path / "plan.json", tmp_path / "times.json"
    plan.write_text(json.dumps(sample_plan()))
    times.write_text(json.dumps(TIMES))
    text, picture = tmp_path / "out/plan.md", tmp_path / "out/plan.svg"
    arguments = ["--plan", str(plan), "--text", str(text), "--picture", str(picture)]
    draw_plan.main([*arguments, "--times", str(times)])
    assert read_sealed_text(text) == plan_markdown(sample_plan(), TIMES, "plan.svg")
    assert read_sealed_text(picture) == draw(sample_plan()).decode("utf-8")
    draw_plan.main(arguments)
    assert read_sealed_text(text) == plan_markdown(sample_plan(), None, "plan.svg")


def sample_ghost(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a ghost.json from which the sample's plan could have come."""
    types: dict[str, Any] = {}
    for row in plan["rows"]:
        if "refused" in row:
            types[row["type"]] = {"refused": row["refused"]}
            continue
        block = (row["gpu_mib"] << 20) // (BLOCKS + 1)
        types[row["type"]] = {
            "imatrix": row["imatrix"], "bytes": row["bytes"], "bits_per_weight": row["bits_per_weight"],
            "embedding_bytes": row["host_mib"] << 20, "tied": False, "block_bytes": [block] * BLOCKS,
            "other_bytes": (row["gpu_mib"] << 20) - BLOCKS * block,
        }  # fmt: skip
    keys = (
        "name",
        "source",
        "exact",
        "architecture",
        "parameters",
        "trained_context",
        "block_count",
        "outtype",
        "memory",
    )
    return {key: plan[key] for key in keys} | {
        "parameters": PARAMETERS, "unquantized_bytes": plan["unquantized_bytes"], "metadata_bytes": METADATA_BYTES,
        "table_end": METADATA_BYTES,
        "largest_tensor": EMBEDDING_ELEMENTS, "types": types, "with_imatrix": {},
        "transformers": {one["name"]: one["bytes"] for one in plan["transformers"]},
    }  # fmt: skip


@pytest.mark.parametrize("memory", [True, False])
def test_a_plan_as_it_is_really_made(memory: bool) -> None:
    sample = sample_plan(ram_gib=64.0)
    ghost = sample_ghost(sample if memory else without_memory(sample, "no formula"))
    spec = {
        "asked": sample["asked"],
        "hardware": {"gpus": sample["hardware"]["gpus"], "ram_gib": 64.0},
        "host": None,
        "quantizations": ["Q4_K_M"],
        "left_out": {},
    }
    plan = memory_plan("rag-finetuned", ghost, [ghost], spec)
    assert plan.keys() == sample.keys()
    assert plan["rows"][3].keys() == sample["rows"][3].keys()
    assert plan["rows"][3]["fits"][0].keys() == sample["rows"][3]["fits"][0].keys()
    assert plan["alternatives"][0].keys() == alternative(sample, "a").keys()
    table = tables(plan_markdown(plan, TIMES))[0]
    assert len(table) == len(tables(plan_markdown(sample))[0])
    assert "Q4_K_M" in printed(plan)
    assert draw(plan)
    if memory:
        assert [row["total GiB at 8,192"] for row in table] == [
            row["total GiB at 8,192"] for row in tables(plan_markdown(sample))[0]
        ]


def test_what_an_importance_matrix_changes() -> None:
    plan = sample_plan()
    assert "With an importance matrix" not in plan_markdown(plan)
    (iq4,) = [row for row in plan["rows"] if row["type"] == "IQ4_XS"]
    plan["with_imatrix"] = [iq4 | {"imatrix": True, "bytes": 17_693_154_368}]
    found = tables(plan_markdown(plan))[1]
    assert [(row["type"], row["importance matrix"], row["file GB"]) for row in found] == [("IQ4_XS", "used", "17.69")]
