"""The table of quality has every measured figure with its error, says on what it was measured, and escapes names."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from markdown_it import MarkdownIt
from sample_quality import FIGURES, base_measurement, fitting_plan, sample_quality, size_of, text_record

from ollamake.plan_figures import one_line
from ollamake.quality_table import quality_markdown

PARSER = MarkdownIt("commonmark").enable("table")
NASTY = "[red]x[/red] <b>y</b> a|b *c* _d_ `e $f$ &amp; [l](http://h) ~~g~~\n# h"


def rows_of(markdown: str) -> dict[str, dict[str, str]]:
    """Return the table of types as another program reads it: type -> title -> cell."""
    (table,) = ElementTree.fromstring(f"<r>{PARSER.render(markdown)}</r>").iter("table")
    titles, *rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert all(len(row) == len(titles) for row in rows)
    return {row[0]: dict(zip(titles, row, strict=True)) for row in rows}


def words(markdown: str) -> str:
    return " ".join("".join(ElementTree.fromstring(f"<r>{PARSER.render(markdown)}</r>").itertext()).split())


def test_every_figure() -> None:
    limits = {"max_kld_mean": 0.02, "min_top1": 0.94}
    quality = sample_quality(limits=limits, compare=["Q2_K"], imatrix=["Q4_K_M"])
    rows = rows_of(quality_markdown(quality))
    assert rows["Q4_K_M (importance matrix)"] == {
        "type": "Q4_K_M (importance matrix)", "file GB": "4.92", "bits a weight": "4.90", "KLD mean": "0.03127 ± 0.00024",
        "KLD 99 %": "0.313", "KLD max": "2.81", "same top token": "91.901 ± 0.070 %", "PPL ratio": "1.02816 ± 0.00074",
        "RMS Δp": "5.52 %", "prompt tokens/s": "822", "generation tokens/s": "71.9",
        "fits RTX 3080 10GB": "yes", "verdict": "beyond max_kld_mean, min_top1",
    }  # fmt: skip
    assert list(rows) == [
        "Q8_0", "Q6_K (planned)", "Q5_K_M (recommended)", "Q4_K_M (importance matrix)", "Q2_K (compared only)",
    ]  # fmt: skip
    assert [row["fits RTX 3080 10GB"] for row in rows.values()] == ["no", "yes", "yes", "yes", "yes"]
    assert [row["verdict"][:6] for row in rows.values()] == ["passes"] * 3 + ["beyond"] * 2


def test_figures_are_those_of_all_types() -> None:
    rows = rows_of(quality_markdown(sample_quality(tuple(FIGURES))))
    for name, cells in rows.items():
        kind = name.split(" ")[0]
        _, kld, error, ratio, *_ = FIGURES[kind]
        found = re.fullmatch(r"(\S+)(?: ± (\S+))?", cells["KLD mean"])
        assert found is not None
        assert abs(float(found[1]) - kld) <= max(error / 10, 1e-6)
        assert float(cells["PPL ratio"].split(" ")[0]) == round(
            ratio, len(cells["PPL ratio"].split(" ")[0].split(".")[-1])
        )
        assert cells["file GB"] == f"{size_of(kind) / 1e9:.2f}"
        assert cells["verdict"] == "no limits"


def test_what_it_was_measured_on() -> None:
    quality = sample_quality(base=base_measurement(), overlap=0.034)
    text = words(quality_markdown(quality))
    assert "config/texts/handbook.txt, config/texts/chats.jsonl (212 conversations): 64,211 tokens" in text
    assert "64,211 tokens, the beginning of it only, measured in" in text
    assert "100 chunks of 512 tokens, of which the second halves count: 25,500 tokens" in text
    assert "its perplexity on this text is 6.232 ± 0.038" in text
    assert "The base on the same text: mean KLD 1.240 ± 0.011 to the fine-tune" in text
    assert "the same likeliest token for 58.000 ± 0.070 % of tokens" in text
    assert "3.4 % of this text also stands in the calibration text" in text
    assert "beginning of it only" not in words(quality_markdown(sample_quality(text=text_record(cut=False))))


def test_every_sentence_and_the_limits_are_there() -> None:
    quality = sample_quality(limits={"max_kld_mean": 0.02}, base=base_measurement())
    text = words(quality_markdown(quality))
    for sentence in quality["sentences"]:
        assert sentence in text
    later = "models.m.quality.min_answers, where it is set, is judged by check_answers after registration: registered models"
    assert "Limits: max_kld_mean 0.02. A type beyond one is not registered." in text
    assert f"Types that are compared only are never registered. {later}" in text
    assert "is registered with a warning" in words(
        quality_markdown(sample_quality(limits={"min_top1": 0.9}, on_fail="warn"))
    )
    without = words(quality_markdown(sample_quality()))
    assert "No limits are set that are judged before registration: models.m.quality takes max_kld_mean," in without
    assert f"min_top1. {later}" in without


def test_what_each_column_means_is_said() -> None:
    text = words(quality_markdown(sample_quality()))
    for word in ("nats a token", "percentage points", "one standard error", "1.02 is 2 % more", "llama-bench"):
        assert word in text


def test_names_are_no_markup() -> None:
    plan = fitting_plan()
    plan["budgets"][0]["name"] = NASTY
    text = text_record(sources=[{"file": NASTY, "kind": "text", "sha256": "a" * 64, "units": 1}], warnings=[NASTY])
    markdown = quality_markdown(sample_quality(model=NASTY, plan=plan, text=text), "a b.svg")
    html = ElementTree.fromstring(f"<r>{PARSER.render(markdown)}</r>")
    assert {element.tag for element in html.iter()} <= {
        "r", "h1", "h2", "p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td", "img",
    }  # fmt: skip
    assert "".join(next(html.iter("h1")).itertext()) == f"Quality of {one_line(NASTY)}"
    assert next(html.iter("img")).get("src") == "a%20b.svg"
    assert any(one_line(NASTY) in "".join(cell.itertext()) for cell in html.iter("th"))
