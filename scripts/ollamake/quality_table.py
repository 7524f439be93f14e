"""Measured quality as Markdown: what to take, the table of all types, what it was measured on, what the figures mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote

from ollamake.plan_figures import UNKNOWN, gb, one_line, thousands
from ollamake.plan_text import escaped
from ollamake.quality_figures import Quality, Row, mean_kld, percent, plain, ppl_ratio, size_words, with_error
from ollamake.quality_verdict import LIMITS, has_limits

LEGEND = (
    (
        "KLD",
        "Kullback-Leibler divergence of the quantized model's prediction of the next token from that of the unquantized"
        " fine-tune, in nats a token: 0 is no change. Below 0.003 is near-lossless, below 0.02 good, below 0.05 usual for 4"
        " bits, below 0.15 visible. 99 %: one token of a hundred is worse than this; max: the worst.",
    ),
    (
        "same top token",
        "share of tokens where both hold the same token for the likeliest, in per cent.",
    ),
    (
        "PPL ratio",
        "perplexity of the quantized model divided by that of the fine-tune on the same text: 1.02 is 2 % more. Perplexity can"
        " fall by chance where KLD shows a change.",
    ),
    (
        "RMS Δp",
        "root mean square of the change in probability of the token that really follows, in percentage points.",
    ),
    (
        "tokens/s",
        "speed of llama-bench on the machine that built this: of reading a prompt of 512 tokens, and of writing 64.",
    ),
    ("±", ""),
)
_SAMPLING = (
    "one standard error of sampling, for another text of the same kind and length: it halves with four times the text. It"
    " takes tokens for independent, which they are not quite, and says nothing of other kinds of text. That of the PPL"
    " ratio is small, because both models read the same tokens. Figures of two types rest on the same tokens too, so"
    " that their difference is known better than either."
)
_FLOOR = (
    "The fine-tune's logarithms of probabilities are stored with 16 bits, which alone can make a KLD of up to 0.0006 and"
    " negative values near 0: differences below that say nothing."
)


def quality_markdown(quality: Quality, picture: str | None = None) -> str:
    """Return a quality.json as Markdown (CommonMark with GitHub's tables), the same text for the same file.

    ``picture``: path of the SVG, as seen from the text. Names of models, files and budgets are escaped.
    """
    blocks = [f"# Quality of {escaped(quality['model'])}", _bullets(escaped(text) for text in quality["sentences"])]
    if picture is not None:
        blocks.append(f"![Size and loss of each type]({quote(picture)})")
    blocks += ["## Types", _types(quality), escaped(_limits(quality))]
    blocks += ["## What it was measured on", _bullets(escaped(text) for text in _measured_on(quality))]
    shown = " ".join(title for title, _, _ in _columns(quality)) + " ±"
    explained = [(name, text or _SAMPLING) for name, text in LEGEND if name in shown]
    blocks += [
        "## What the figures mean",
        _bullets(f"**{escaped(name)}**: {escaped(text)}" for name, text in explained),
    ]
    blocks.append(escaped(_FLOOR))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _types(quality: Quality) -> str:
    columns = _columns(quality)
    titles = [title for title, _, _ in columns]
    lines = [titles, ["---:" if numeric else "---" for _, _, numeric in columns]]
    lines += [[cell(row) for _, cell, _ in columns] for row in (*quality["rows"], *quality["checkpoints"])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(quality: Quality) -> Sequence[tuple[str, Callable[[Row], str], bool]]:
    """Return title, cell and whether it is a number of each column; what is known of no type has none."""
    rows = quality["rows"]
    timed = any(row["generation_per_second"] is not None for row in rows)
    place = "" if quality["budget"] is None else f" {escaped(quality['budget']['name'])}"
    return (
        ("type", lambda row: _type(quality, row), False),
        ("file GB", lambda row: gb(row["size"]), True),
        ("bits a weight", lambda row: f"{row['bits_per_weight']:.2f}", True),
        ("KLD mean", mean_kld, True),
        ("KLD 99 %", lambda row: plain(row["kld_p99"]), True),
        ("KLD max", lambda row: plain(row["kld_max"]), True),
        ("same top token", lambda row: percent(row["same_top"], row["same_top_error"]), True),
        ("PPL ratio", lambda row: with_error(row["ppl_ratio"], row["ppl_ratio_error"]), True),
        ("RMS Δp", lambda row: f"{plain(100 * row['rms_delta_p'])} %", True),
        *[("prompt tokens/s", lambda row: _or_unknown(row["prompt_per_second"], speed), True)] * timed,
        *[("generation tokens/s", lambda row: _or_unknown(row["generation_per_second"], speed), True)] * timed,
        (f"fits{place}", lambda row: {True: "yes", False: "no", None: UNKNOWN}[row["fits"]], False),
        ("verdict", _verdict, False),
    )


def speed(per_second: float) -> str:
    """Return tokens a second with three digits, whole above 100."""
    return thousands(round(per_second)) if per_second >= 100 else f"{per_second:.3g}"


def _type(quality: Quality, row: Row) -> str:
    recommended = quality["recommendation"] is not None and quality["recommendation"]["type"] == row["type"]
    notes = [
        note
        for note, holds in (
            ("recommended", recommended),
            ("planned", row["type"] == quality["planned"]),
            ("bitsandbytes, by transformers", row in quality["checkpoints"]),
            ("compared only", row["compared_only"] and row not in quality["checkpoints"]),
            ("importance matrix", row["imatrix"]),
        )
        if holds
    ]
    text = escaped(row["type"] + (f" ({', '.join(notes)})" if notes else ""))
    return f"**{text}**" if recommended else text


def _verdict(row: Row) -> str:
    if "ppl_merged" in row:
        return "not judged"
    if row["verdict"]["passes"] is None:
        return "no limits"
    if row["verdict"]["passes"]:
        return "passes"
    return escaped("beyond " + ", ".join(failure["limit"] for failure in row["verdict"]["failures"]))


def _limits(quality: Quality) -> str:
    limits, where = quality["limits"], f"models.{quality['model']}.quality"
    later = f"{where}.min_answers, where it is set, is judged by check_answers after registration: registered models answer."
    if not has_limits(limits):
        keys = ", ".join(limit.key for limit in LIMITS)
        return f"No limits are set that are judged before registration: {where} takes {keys}. {later}"
    shown = [f"{key} {value:g}" for key, value in limits.items() if value is not None]
    beyond = "is not registered" if quality["on_fail"] == "stop" else "is registered with a warning"
    return f"Limits: {', '.join(shown)}. A type beyond one {beyond}. Types that are compared only are never registered. {later}"


def _measured_on(quality: Quality) -> list[str]:
    text, reference = quality["text"], quality["reference"]
    files = ", ".join(
        f"{one_line(source['file'])} ({source['units']} conversations)"
        if source["kind"] == "chat"
        else one_line(source["file"])
        for source in text["sources"]
    )
    cut = ", the beginning of it only" if text["cut"] else ""
    sentences = [
        f"Text: {files}: {thousands(text['tokens'])} tokens{cut}, measured in {thousands(reference['chunks'])} chunks of"
        f" {thousands(reference['context'])} tokens, of which the second halves count: {thousands(reference['tokens'])} tokens.",
        f"Compared with the unquantized fine-tune ({reference['type']}, {size_words(reference['gguf_size'])}, sha256"
        f" {reference['gguf_sha256'][:12]}): its perplexity on this text is"
        f" {with_error(reference['ppl']['value'], reference['ppl']['error'])}.",
    ]
    if quality["checkpoints"]:
        row = quality["checkpoints"][0]
        shown = ", ".join(f"{name} {number}" for name, number in sorted(row["versions"].items()))
        sentences.append(
            f"bitsandbytes checkpoints ({shown}) were run by transformers on the CPU, on {thousands(row['chunks'])} such chunks,"
            " and compared with the merged weights in float32, not with the GGUF: these have a perplexity of"
            f" {row['ppl_merged']:.6g} by transformers, {reference['ppl']['value']:.6g} by llama-perplexity. The sizes of"
            " these rows are of all tensors."
        )
    if quality["overlap"]:
        sentences.append(f"{percent(quality['overlap'])} of this text also stands in the calibration text.")
    base = quality["base"]
    if base is not None and "kld" in base:
        sentences.append(
            f"The base on the same text: mean KLD {with_error(base['kld']['mean']['value'], base['kld']['mean']['error'])} to the"
            f" fine-tune, perplexity {with_error(base['ppl']['value'], base['ppl']['error'])}, PPL ratio"
            f" {with_error(*ppl_ratio(base, reference))}, the same likeliest token for"
            f" {percent(base['same_top']['value'] / 100, base['same_top']['error'] / 100)} of tokens."
        )
    return sentences


def _or_unknown(value: float | None, write: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else write(value)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
