"""The picture of a merge: how large the update is over the model's depth, and how much of it survived the rounding."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ollamake.merge_report import LOW_SURVIVAL, layer_of, projection_of

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's palette, told apart by the colour-blind (jfly.uni-koeln.de/color)."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", ".")
_KINDS = 7
"""Projections with a colour of their own; the rest is "other"."""


def draw_merge(model: str, report: Mapping[str, Any]) -> bytes:
    """Return the picture of a merge report as SVG; the same bytes for the same report."""
    settings = {"svg.hashsalt": "ollamake", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
                "axes.spines.right": False}  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8, 5.5), layout="constrained")
        size, survival = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        figure.suptitle(_title(model, report), x=0.01, ha="left", fontsize=10)
        points = _points(report)
        if points:
            _draw_sizes(size, points)
            _draw_survival(survival, points)
        else:
            size.text(
                0.5, 0.5, "no adapter: the weights are the base's", ha="center", va="center", transform=size.transAxes
            )
        size.set_ylabel("size of the update / size of the weights")
        survival.set_ylabel("stored of the update")
        survival.set_xlabel("layer")
        survival.xaxis.set_major_locator(MaxNLocator(integer=True))
        output = io.BytesIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": "ollamake"})
    return output.getvalue()


Points = dict[str, dict[int, list[tuple[float, float]]]]
"""Projection -> layer -> (relative norm, survival) of its tensors; several where a layer has experts."""


def _points(report: Mapping[str, Any]) -> Points:
    """Return what is drawn: tensors of numbered layers with an update that is not zero."""
    counts: dict[str, int] = {}
    rows = []
    for name, one in report["tensors"].items():
        layer = layer_of(name)
        if layer != "other" and one["relative_norm"] and one["survival"] is not None:
            kind = projection_of(name)
            counts[kind] = counts.get(kind, 0) + 1
            rows.append((kind, int(layer), one["relative_norm"], one["survival"]))
    shown = sorted(sorted(counts), key=lambda kind: -counts[kind])[:_KINDS]
    points: Points = {kind: {} for kind in sorted(shown)}
    for kind, layer, relative, survived in rows:
        points.setdefault(kind if kind in shown else "other", {}).setdefault(layer, []).append((relative, survived))
    return points


def _draw_sizes(axes: Axes, points: Points) -> None:
    for number, (kind, layers) in enumerate(points.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        xs = sorted(layers)
        values = [[relative for relative, _ in layers[x]] for x in xs]
        axes.plot(
            xs, [statistics.median(v) for v in values], _MARKERS[number % len(_MARKERS)] + "-", color=colour, label=kind,
            markersize=4, linewidth=0.8,
        )  # fmt: skip
        if any(len(v) > 1 for v in values):
            axes.fill_between(
                xs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, linewidth=0
            )
    axes.set_yscale("log")
    for axis_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_format(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_survival(axes: Axes, points: Points) -> None:
    lowest: dict[int, float] = {}
    for layers in points.values():
        for layer, values in layers.items():
            lowest[layer] = min(lowest.get(layer, 2.0), *(survived for _, survived in values))
    xs = sorted(lowest)
    axes.plot(xs, [lowest[x] for x in xs], "o-", color="#000000", markersize=3, linewidth=0.8)
    axes.axhline(LOW_SURVIVAL, color="#D55E00", linewidth=0.8, linestyle="--")
    axes.annotate(
        f"{LOW_SURVIVAL:.0%}", (1.0, LOW_SURVIVAL), xycoords=("axes fraction", "data"), color="#D55E00", va="center"
    )
    axes.set_ylim(min(0.9, *lowest.values()) - 0.02, max(1.02, *lowest.values()) + 0.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def _title(model: str, report: Mapping[str, Any]) -> str:
    totals = report["totals"]
    if not totals["edited"] or totals["relative_norm"] is None:
        return f"{model}: {totals['edited']} of {totals['tensors']} tensors changed"
    survival = "" if totals["survival"] is None else f", {totals['survival']:.1%} of it stored"
    return (
        f"{model}: {totals['edited']} of {totals['tensors']} tensors changed;"
        f" update {totals['relative_norm']:.2%} of the weights{survival}"
    )
