"""The figures that are to be seen at once at the top of a model's overview."""

from __future__ import annotations

from markupsafe import Markup

from ollamake.answers_comparison import demanded
from ollamake.html_page import card, element, joined
from ollamake.overview import Build, Record, prompt_counts, prompts_agree
from ollamake.quality_figures import plain

_SIZE = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def cards(build: Build) -> Markup:
    """Return four or five figures: size, plan, quality (or the merge), prompts, answers."""
    smallest = build.registered[-1]
    shown = [
        card("Smallest file", size(smallest["size"]), f"{smallest['type']}, {smallest['bits_per_weight']:.2f} bits a weight"),
        _card_of_recommendation(build),
        _card_of_quality(build),
        _card_of_prompts(build.template_check),
    ]  # fmt: skip
    if build.answers is not None:
        shown.append(_card_of_answers(build.answers))
    return element("div", joined(shown), "cards")


def _card_of_recommendation(build: Build) -> Markup:
    planned, measured = build.plan["recommendation"], build.quality and build.quality["recommendation"]
    if measured:
        said = "by what was measured on your text"
        return card("Recommended", measured["type"], f"{said}; the plan alone: {planned['type']}" if planned else said)
    if planned is None:
        return card("Recommended by the plan", "none", build.plan["no_recommendation"] or "", "bad")
    return card("Recommended by the plan", planned["type"], planned["reason"])


def _card_of_quality(build: Build) -> Markup:
    if build.adapter is not None:
        ranks = ", ".join(map(str, build.adapter["ranks"]))
        return card("Adapter beside it", size(build.adapter["size"]), f"rank {ranks}; not quantized", "good")
    if build.quality is None:
        assert build.merge_report is not None
        totals = build.merge_report["totals"]
        if totals["survival"] is None:
            return card("Merge", f"{totals['edited']} tensors", f"of {totals['tensors']} changed")
        warned = bool(build.merge_report["warnings"])
        said = "of the adapter's update is stored" + (", with warnings" if warned else ", no warnings")
        return card("Merge", f"{totals['survival']:.1%}", said, "bad" if warned else "good")
    rows = [row for row in build.quality["rows"] if not row["compared_only"]]
    worst = max(rows, key=lambda row: row["kld_mean"])
    failed = [row["type"] for row in rows if row["verdict"]["passes"] is False]
    judged = any(row["verdict"]["passes"] is not None for row in rows)
    said = f"nats a token of {worst['type']} against the unquantized fine-tune, on your text"
    said += f"; beyond a limit: {', '.join(failed)}" if failed else "; within all limits" if judged else ""
    kind = "bad" if failed else "good" if judged else ""
    return card("Largest mean KL divergence", plain(worst["kld_mean"]), said, kind)


def _card_of_prompts(check: Record) -> Markup:
    counts = prompt_counts(check)
    taken = sum(counts.values()) - counts.get("refused", 0)
    if not taken:
        return card("Prompted as in training", "not checked", "; ".join(check["warnings"]), "bad")
    return card(
        "Prompted as in training",
        f"{counts.get('equal', 0)} of {taken}",
        f"test conversations, text and tokens, by {check['renderer']}",
        "good" if prompts_agree(check) else "bad",
    )


def _card_of_answers(answers: Record) -> Markup:
    judged = {label: score for label, score in answers["scores"].items() if score["passes"] is not None}
    label, worst = min((judged or answers["scores"]).items(), key=lambda item: item[1]["score"])
    failed = any(score["passes"] is False for score in judged.values())
    base = answers["scores"].get("base")
    said = f"of your {worst['asked']} questions answered rightly by {label}"
    said += f"; by the base {base['score']:.0%}" if base else ""
    said += f"; {demanded(answers).rstrip('.')}" if failed else ""
    return card("Right answers", f"{worst['score']:.0%}", said, "bad" if failed else "good")


def size(number: int) -> str:
    """Return a size in bytes in the unit that fits, with three digits."""
    for unit, factor in _SIZE:
        if number >= factor:
            value = number / factor
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{number} bytes"
