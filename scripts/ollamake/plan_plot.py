"""The picture of a plan: what each candidate takes of the memory, what there is of it, and what its quality is expected to be."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from ollamake.plan_figures import (
    UNKNOWN,
    Parts,
    Plan,
    Row,
    deciding_index,
    divergence,
    gib,
    one_line,
    parts,
    planned_context,
    recommended_row,
    sized_rows,
    thousands,
)

_PIECES = (("weights", "#0072B2", ""), ("KV cache", "#E69F00", "////"), ("compute buffers", "#000000", ""))
"""Name, colour and hatching. The colours are of Okabe and Ito's palette (jfly.uni-koeln.de/color): 40, 70 and 0 % bright in
grey, so that print and the colour-blind tell them apart; the hatching helps where the print is bad."""
_LINES = ("--", ":", "-.")
"""Styles of the budgets that do not decide."""
_LINE_COLOUR = "#B03000"
_WIDTH, _BARS_FROM, _BARS_WIDE, _BAR_HIGH, _LINE_HIGH = 10.5, 0.75, 4.6, 0.32, 0.19
"""Inches: the picture, where the bars start and end, the height of a bar and of a line of small text."""
_CHARACTER = 0.075
"""Inches of a character of small text, to tell on which side of a line its name has room."""
_LONGEST_NAME = 56
_LEFT = "left GiB"
_NOTES = (
    (0.75, "right", "total GiB"), (1.4, "right", _LEFT), (1.65, "left", "KLD"), (2.3, "left", "expected quality"),
)  # fmt: skip
"""The columns beside the bars: inches to the right of them, alignment, title."""


def draw_plan(plan: Plan) -> bytes:
    """Return the picture of a plan.json as SVG; the same bytes for the same plan."""
    settings = {"svg.hashsalt": "ollamake", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
                "axes.spines.right": False, "hatch.linewidth": 0.6, "text.parse_math": False}  # fmt: skip
    with mpl.rc_context(settings):
        figure = plan_figure(plan)
        output = io.BytesIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": "ollamake"})
    return output.getvalue()


def plan_figure(plan: Plan) -> Figure:
    """Return the picture as matplotlib's figure."""
    rows = [row for row in sized_rows(plan) if row["candidate"] or row is recommended_row(plan)]
    shares = [parts(plan, row) for row in rows]
    above, below = 0.7 + _LINE_HIGH * len(plan["budgets"]), 0.8
    height = above + below + _BAR_HIGH * max(len(rows), 1)
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((_BARS_FROM / _WIDTH, below / height, _BARS_WIDE / _WIDTH, 1 - (above + below) / height))
    figure.text(0.012, 1 - 0.12 / height, _title(plan), fontsize=11, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.36 / height, _subtitle(plan), fontsize=8.5, color="#444444", va="top")
    _draw_bars(axes, shares)
    _draw_budgets(axes, plan, shares)
    _label_rows(axes, plan, rows)
    _write_notes(axes, plan, rows, shares)
    axes.set_xlabel("GiB")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.065, 0), ncols=3, frameon=False, handlelength=1.6
    )
    figure.text(
        0.988, 0.1 / height, "KLD: published for another model, not measured on this one", fontsize=7.5, color="#444444",
        ha="right",
    )  # fmt: skip
    return figure


def _draw_bars(axes: Axes, shares: Sequence[Parts]) -> None:
    left = [0.0] * len(shares)
    for (name, colour, hatch), values in zip(
        _PIECES, zip(*((one.weights, one.kv or 0, one.compute or 0) for one in shares), strict=True), strict=False
    ):
        widths = [mib / 1024 for mib in values]
        if not any(widths):
            continue
        axes.barh(
            range(len(shares)), widths, left=left, height=0.68, color=colour, hatch=hatch, edgecolor="white", linewidth=0.6,
            label=name,
        )  # fmt: skip
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_ylim(max(len(shares), 1) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_budgets(axes: Axes, plan: Plan, shares: Sequence[Parts]) -> None:
    """Draw what each budget can take as a line, its name above the lines of smaller ones.

    The axis ends with the bars and the budget that decides; what is beyond is named at the edge.
    """
    deciding = deciding_index(plan)
    longest = max((_length(one) for one in shares), default=0)
    if deciding is not None:
        longest = max(longest, plan["budgets"][deciding]["usable_mib"])
    right = max(longest * 1.06 / 1024, 1e-3)
    axes.set_xlim(0, right)
    across = blended_transform_factory(axes.transData, axes.transAxes)
    line_high = _LINE_HIGH / (axes.get_position().height * axes.get_figure().get_figheight())
    order = sorted(range(len(plan["budgets"])), key=lambda index: plan["budgets"][index]["usable_mib"])
    for number, index in enumerate(order):
        style, thickness = ("-", 1.8) if index == deciding else (_LINES[number % len(_LINES)], 1.1)
        budget = plan["budgets"][index]
        usable = budget["usable_mib"] / 1024
        text = f"{_short(budget['name'])}: {gib(budget['usable_mib'])} usable"
        weight = "bold" if index == deciding else "normal"
        top = 1 + (number + 1) * line_high
        if usable > right:
            axes.text(
                right, top, f"{text} →", transform=across, color=_LINE_COLOUR, ha="right", va="top", fontsize=8.5,
                fontweight=weight,
            )  # fmt: skip
            continue
        axes.plot(
            [usable, usable], [0, top], transform=across, color=_LINE_COLOUR, linewidth=thickness,
            linestyle=style, clip_on=False, zorder=3,
            path_effects=[Stroke(linewidth=thickness + 1, foreground="white"), Normal()],
        )  # fmt: skip
        room = usable / right * _BARS_WIDE + _BARS_FROM > _CHARACTER * (len(text) + 2)
        axes.annotate(
            text, (usable, top), xycoords=across, xytext=(-4 if room else 4, 0), textcoords="offset points",
            color=_LINE_COLOUR, ha="right" if room else "left", va="top", fontsize=8.5, fontweight=weight, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip


def _label_rows(axes: Axes, plan: Plan, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row["type"] for row in rows])
    axes.tick_params(axis="y", length=0)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row is recommended_row(plan) else "normal")


def _write_notes(axes: Axes, plan: Plan, rows: Sequence[Row], shares: Sequence[Parts]) -> None:
    """Write total, memory left, expected KLD and its class beside each bar; a frame marks the recommended one."""
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    columns = [(1 + inches / _BARS_WIDE, align, title) for inches, align, title in _NOTES]
    deciding, recommended = deciding_index(plan), recommended_row(plan)
    for place, align, title in columns:
        if title != _LEFT or deciding is not None:
            axes.text(place, -0.62, title, transform=beside, ha=align, va="bottom", color="#444444", fontsize=8.5)
    for number, (row, share) in enumerate(zip(rows, shares, strict=True)):
        total = UNKNOWN if share.total is None else gib(share.total)
        free = None if deciding is None else row["fits"][deciding]["free_mib"]
        left = UNKNOWN if free is None else gib(free)
        if deciding is None:
            left = ""
        quality = row["quality"]
        kld, band = (UNKNOWN, UNKNOWN) if quality is None else (divergence(quality["kld"]), quality["class"])
        weight = "bold" if row is recommended else "normal"
        if row is recommended:
            whole = (_WIDTH - _BARS_FROM - 0.1) / _BARS_WIDE
            axes.add_patch(
                Rectangle(
                    (0, number - 0.48),
                    whole,
                    0.96,
                    transform=beside,
                    color="#e4e4e4",
                    linewidth=0,
                    zorder=0,
                    clip_on=False,
                )
            )
            band += "  ◀ recommended"
        for (place, align, _), text in zip(columns, (total, left, kld, band), strict=True):
            axes.text(place, number, text, transform=beside, ha=align, va="center", fontweight=weight)


def _title(plan: Plan) -> str:
    asked = plan["asked"]
    slots = "" if asked["parallel"] == 1 else f", {asked['parallel']} slots"
    return f"{_short(plan['model'])}: memory at a context of {thousands(planned_context(plan))} tokens{slots}"


def _subtitle(plan: Plan) -> str:
    if plan["memory"]["source"] is None:
        return f"{_short(plan['name'])}; weights alone: what the KV cache takes is unknown"
    deciding = deciding_index(plan)
    where = "one GPU" if deciding is None else _short(plan["budgets"][deciding]["name"])
    return f"{_short(plan['name'])}; on {where}, KV cache of {plan['asked']['kv_cache']}"


def _length(share: Parts) -> int:
    return share.weights + (share.kv or 0) + (share.compute or 0)


def _short(text: str) -> str:
    """Return a name that leaves room for the rest of its line."""
    text = one_line(text)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
