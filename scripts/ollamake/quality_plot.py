"""The picture of measured quality: file size against mean KL divergence, and what else was measured beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ollamake.plan_figures import thousands
from ollamake.plot_font import font_settings
from ollamake.quality_figures import Quality, plain
from ollamake.quality_map import BLUE, GREY, LINE_COLOUR, ORANGE, SMALL, draw_map, is_recommended, short_name
from ollamake.quality_panels import draw_panels

_WIDTH, _LEFT, _MAP, _PANELS, _RIGHT = 10.8, 0.88, 4.78, 6.72, 0.12
"""Inches: the picture, where the map starts and how wide it is, where the panels start, the margin."""
_ABOVE, _BELOW, _LOWEST, _ROW_HIGH = 0.98, 1.12, 3.3, 0.33


def draw_quality(quality: Quality) -> bytes:
    """Return the picture of a quality.json as SVG; the same bytes for the same file."""
    with mpl.rc_context(settings(_texts(quality))):
        figure = quality_figure(quality)
        output = io.BytesIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": "ollamake"})
    return output.getvalue()


def settings(texts: Sequence[str]) -> dict[str, object]:
    """Return matplotlib's settings for a picture with these texts beside its own English."""
    return {
        "svg.hashsalt": "ollamake", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "hatch.linewidth": 0.6, "text.parse_math": False, **font_settings(texts),
    }  # fmt: skip


def quality_figure(quality: Quality) -> Figure:
    """Return the picture as matplotlib's figure, to be called within the settings of ``draw_quality``."""
    rows = quality["rows"]
    height = _ABOVE + _BELOW + max(_LOWEST, _ROW_HIGH * len(rows))
    # A point of the picture is a dot of the canvas on which labels are measured.
    figure = Figure(figsize=(_WIDTH, height), dpi=72)
    FigureCanvasAgg(figure)
    bottom, high = _BELOW / height, 1 - (_ABOVE + _BELOW) / height
    axes = figure.add_axes((_LEFT / _WIDTH, bottom, _MAP / _WIDTH, high))
    axes.set_label("map")
    figure.text(0.012, 1 - 0.12 / height, _title(quality), fontsize=11, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.36 / height, _subtitle(quality), fontsize=SMALL, color=GREY, va="top")
    draw_map(axes, quality)
    draw_panels(figure, quality, (_PANELS / _WIDTH, bottom, 1 - (_PANELS + _RIGHT) / _WIDTH, high))
    figure.legend(
        handles=_legend(quality, grey=bool(axes.patches)), loc="lower left", bbox_to_anchor=(0.012, 0.0), ncols=5,
        frameon=False, fontsize=SMALL, handlelength=1.8, columnspacing=1.6,
    )  # fmt: skip
    return figure


def _legend(quality: Quality, grey: bool) -> list[Line2D | Patch]:
    """Return what the marks mean, of those that are there."""
    rows, limited = quality["rows"], any(row["verdict"]["passes"] is not None for row in quality["rows"])
    point = {"linestyle": "none", "markersize": 7, "markeredgewidth": 1.5}
    handles: list[tuple[bool, Line2D | Patch]] = [
        (
            any(row["verdict"]["passes"] is not False for row in rows),
            Line2D([], [], marker="o", color=BLUE, label="within the limits" if limited else "measured", **point),
        ),
        (
            any(row["verdict"]["passes"] is False for row in rows),
            Line2D([], [], marker="s", color=ORANGE, label="beyond a limit", **point),
        ),
        (
            any(row["compared_only"] for row in rows),
            Line2D([], [], marker="o", color=GREY, markerfacecolor="white", label="hollow: compared only", **point),
        ),
        (
            any(is_recommended(quality, row) for row in rows),
            Line2D(
                [], [], marker="o", color="black", markerfacecolor="none", markersize=12, markeredgewidth=1.6,
                linestyle="none", label="recommended",
            ),
        ),
        (len(rows) > 1, Line2D([], [], color="#777777", linewidth=1.0, label="Pareto front")),
        (limited, Line2D([], [], color=LINE_COLOUR, linewidth=1.4, linestyle="--", label="limit")),
        (
            grey,
            Patch(facecolor="#eeeeee", edgecolor="#bbbbbb", label="grey: beyond the limit or too large"),
        ),
        (True, Line2D([], [], color=GREY, marker="|", markersize=9, linestyle="none", label="bars: one standard error")),
    ]  # fmt: skip
    return [handle for shown, handle in handles if shown]


def _title(quality: Quality) -> str:
    return f"{short_name(quality['model'])}: what each quantization loses, by measurement"


def _subtitle(quality: Quality) -> str:
    reference = quality["reference"]
    recommended = quality["recommendation"]
    first = "Nothing is recommended" if recommended is None else f"Recommended: {recommended['type']}"
    return (
        f"{first}; against the unquantized fine-tune ({reference['type']}), on {thousands(reference['tokens'])} tokens of your"
        f" own text (perplexity {plain(reference['ppl']['value'])})"
    )


def _texts(quality: Quality) -> list[str]:
    """Return the texts that may have any letters, the picture's own signs with them."""
    budget = quality["budget"]
    return [short_name(quality["model"]), "→←…–±", *([] if budget is None else [short_name(budget["name"])])]
