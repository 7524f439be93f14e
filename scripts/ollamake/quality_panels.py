"""The small panels beside the map of quality: what else was measured, a line for each type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ollamake.quality_figures import Quality, Row, plain, tick

_COLOUR, _LINE_COLOUR = "#000000", "#B03000"
_GAP = 0.016
"""Between panels, as a share of the picture's width."""


@dataclass(frozen=True)
class Panel:
    """One panel: title, the figure of a row (None: not measured), its error, how it is written, its limit, what no loss is.

    ``span``: how much the panel shows at least, so that differences that mean nothing do not look large.
    """

    title: str
    value: Callable[[Row], float | None]
    error: Callable[[Row], float]
    write: Callable[[float], str]
    limit: float | None = None
    no_loss: float | None = None
    span: float = 0.0
    bars: bool = False


def panels(quality: Quality) -> list[Panel]:
    """Return the panels of which anything was measured."""
    limits = quality["limits"]
    found = [
        Panel(
            "same top token\n%", lambda row: 100 * row["same_top"], lambda row: 100 * row["same_top_error"],
            lambda value: f"{value:.1f}", _percent(limits.get("min_top1")), span=2.0,
        ),
        Panel(
            "perplexity\n÷ fine-tune's", lambda row: row["ppl_ratio"], lambda row: row["ppl_ratio_error"],
            lambda value: f"{value:.3f}" if value < 10 else plain(value), limits.get("max_ppl_ratio"), 1.0, span=0.01,
        ),
        Panel(
            "generation\ntokens/s", lambda row: row["generation_per_second"], lambda _: 0.0,
            lambda value: f"{value:,.0f}" if value >= 10 else plain(value), bars=True,
        ),
    ]  # fmt: skip
    return [panel for panel in found if any(panel.value(row) is not None for row in quality["rows"])]


def draw_panels(figure: Figure, quality: Quality, place: tuple[float, float, float, float]) -> None:
    """Draw the panels side by side into a place: left, bottom, width, height, as shares of the figure."""
    left, bottom, width, height = place
    shown = panels(quality)
    each = (width - _GAP * (len(shown) - 1)) / len(shown)
    for number, panel in enumerate(shown):
        axes = figure.add_axes((left + number * (each + _GAP), bottom, each, height))
        axes.set_label(f"panel {number}")
        # Where there are few types their lines are high: marks and bands keep a size that looks well.
        pitch = height * figure.get_figheight() / len(quality["rows"])
        _draw(axes, panel, quality, min(0.45, 0.2 / pitch))
        _name_rows(axes, quality, number == 0, min(0.92, 0.45 / pitch))


def _draw(axes: Axes, panel: Panel, quality: Quality, thickness: float) -> None:
    rows = quality["rows"]
    values = [panel.value(row) for row in rows]
    errors = [panel.error(row) for row in rows]
    known = [(value, error) for value, error in zip(values, errors, strict=True) if value is not None]
    lines = [value for value in (panel.limit, panel.no_loss) if value is not None]
    low = 0.0 if panel.bars else min(*(value - error for value, error in known), *lines, float("inf"))
    high = max(*(value + error for value, error in known), *lines, float("-inf"))
    room = max(high - low, panel.span) or 1.0
    if not panel.bars:
        low, high = (low + high - room) / 2, (low + high + room) / 2
    axes.set_xlim(low if panel.bars else low - 0.15 * room, high + 0.15 * room)
    if panel.limit is not None:
        axes.axvline(panel.limit, color=_LINE_COLOUR, linestyle="--", linewidth=1.4, zorder=1.5)
    if panel.no_loss is not None:
        axes.axvline(panel.no_loss, color="#777777", linewidth=0.8, zorder=1.5)
    for number, (value, error) in enumerate(zip(values, errors, strict=True)):
        if value is None:
            axes.text(low, number, " ?", va="center", color="#444444", fontsize=8)
        elif panel.bars:
            axes.barh(
                number,
                value,
                height=thickness,
                color="#bbbbbb",
                edgecolor="#333333",
                linewidth=0.6,
                hatch="////",
                zorder=2,
            )
        else:
            axes.errorbar(
                value, number, xerr=error or None, fmt="D", color=_COLOUR, markersize=4, capsize=2.5, zorder=3
            )
        if value is not None:
            _write_value(axes, panel.write(value), value, error, number)
    axes.set_title(panel.title, fontsize=8.5, loc="left", color="#222222")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _write_value(axes: Axes, text: str, value: float, error: float, number: int) -> None:
    """Write a figure beside its mark, on the side with more room."""
    low, high = axes.get_xlim()
    leftwards = (value - low) > 0.55 * (high - low)
    axes.annotate(
        text, (value - error if leftwards else value + error, number), xytext=(-6 if leftwards else 6, 0),
        textcoords="offset points", va="center_baseline",
        ha="right" if leftwards else "left", fontsize=8, zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
    )  # fmt: skip


def _name_rows(axes: Axes, quality: Quality, named: bool, band: float) -> None:
    rows = quality["rows"]
    recommended = quality["recommendation"] and quality["recommendation"]["type"]
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row["type"] for row in rows] if named else [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    for number, row in enumerate(rows):
        if row["type"] == recommended:
            axes.axhspan(number - band / 2, number + band / 2, color="#e4e4e4", linewidth=0, zorder=0)
            axes.get_yticklabels()[number].set_fontweight("bold")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
