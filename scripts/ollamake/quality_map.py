"""The map of measured quality: file size against mean KL divergence, what is allowed and what fits, each point named."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ollamake.label_places import Box, Point, along, leader, place_labels
from ollamake.plan_figures import one_line
from ollamake.quality_figures import Quality, Row, plain, tick

BLUE, ORANGE, LINE_COLOUR, GREY = "#0072B2", "#D55E00", "#B03000", "#444444"
"""Blue and vermilion of Okabe and Ito's palette (jfly.uni-koeln.de/color); what they say, the shape of the marker says too."""
SMALL = 8.5
_LONGEST_NAME = 48
_LOGARITHMIC = 3
"""How many times as large as the smallest file the largest is, from which the sizes are on a logarithmic scale."""


def draw_map(axes: Axes, quality: Quality) -> None:
    """Draw the map into axes of a figure of 72 dots an inch whose canvas can measure text."""
    rows, unit, name = quality["rows"], *_unit(quality)
    places = [(row["size"] / unit, row["kld_mean"]) for row in rows]
    _set_sizes(axes, quality, unit)
    _set_losses(axes, quality)
    axes.set_xlabel(f"file size, {name}")
    axes.set_ylabel("mean KL divergence to the fine-tune, nats a token")
    lying, upright = _draw_limits(axes, quality, unit)
    lines = [*lying, *upright]
    front = sorted(place for place, row in zip(places, rows, strict=True) if row["pareto"])
    axes.plot(*zip(*front, strict=True), color="#777777", linewidth=1.0, zorder=2)
    for place, row in zip(places, rows, strict=True):
        _draw_point(axes, place, row, is_recommended(quality, row))
    shown = axes.transData.transform
    for start, end in itertools.pairwise(front):
        lines += along(tuple(shown(start)), tuple(shown(end)))
    taken = [_error_box(axes, place, row) for place, row in zip(places, rows, strict=True)]
    taken += _name_lines(axes, quality, taken, upright)
    walls = [(0, (upright[0][0] + upright[0][2]) / 2)] if upright else []
    if quality["limits"].get("max_kld_mean") is not None:
        walls.append((1, float(shown((1, quality["limits"].get("max_kld_mean")))[1])))
    _name_points(axes, quality, places, taken, lines, walls)


def _set_sizes(axes: Axes, quality: Quality, unit: float) -> None:
    sizes = [row["size"] / unit for row in quality["rows"]]
    room = max(max(sizes) - min(sizes), 0.1 * max(sizes))
    axes.set_xlim(max(0.0, min(sizes) - 0.12 * room), max(sizes) + 0.12 * room)
    if max(sizes) > _LOGARITHMIC * min(sizes):
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) * 0.86, max(sizes) * 1.2)
        axes.xaxis.set_major_locator(FixedLocator(_round_sizes(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _round_sizes(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 1.5, 2, 3, 4, 6, 8)]
    return [tick for tick in ticks if low <= tick <= high]


def _set_losses(axes: Axes, quality: Quality) -> None:
    """Set a logarithmic scale, with a linear piece at its end down to 0 where a mean is 0 or, by rounding, less."""
    means = [row["kld_mean"] for row in quality["rows"]]
    lines = [value for value in (quality["limits"].get("max_kld_mean"), _base_kld(quality)) if value is not None]
    positive = [value for value in (*means, *lines) if value > 0] or [1e-4]
    low, high = min(positive), max(positive)
    top = high * max(1.6, (high / low) ** 0.08)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(top)) + 1)
    steps = (1,) if high / low > 300 else (1, 2, 5)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    if min(*means, *lines, math.inf) > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / max(1.6, (high / low) ** 0.08), top)
    else:
        floor = 10.0 ** math.floor(math.log10(low))
        axes.set_yscale("symlog", linthresh=floor, linscale=0.6)
        axes.set_ylim(-0.35 * floor, top)
        ticks = [0.0, *(tick for tick in ticks if tick >= floor)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_limits(axes: Axes, quality: Quality, unit: float) -> tuple[list[Box], list[Box]]:
    """Draw the limit of the mean, the base and the largest file that fits; what is beyond is grey.

    Returns where lines are that lie, and where one is that stands.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    lying: list[Box] = []
    standing: list[Box] = []
    shown = axes.transData.transform

    def draw(start: tuple[float, float], end: tuple[float, float], colour: str, style: str, width: float) -> list[Box]:
        axes.plot(*zip(start, end, strict=True), color=colour, linestyle=style, linewidth=width, zorder=1.5)
        return along(tuple(shown(start)), tuple(shown(end)))

    limit, base = quality["limits"].get("max_kld_mean"), _base_kld(quality)
    if limit is not None:
        axes.axhspan(limit, top, color="#eeeeee", linewidth=0, zorder=0)
        lying += draw((left, limit), (right, limit), LINE_COLOUR, "--", 1.4)
    if base is not None:
        lying += draw((left, base), (right, base), GREY, ":", 1.4)
    largest = None if quality["budget"] is None else quality["budget"]["largest_file"]
    if largest is not None:
        if largest / unit < right:
            axes.axvspan(max(left, largest / unit), right, color="#eeeeee", linewidth=0, zorder=0)
        if left < largest / unit < right:
            standing += draw((largest / unit, bottom), (largest / unit, top), LINE_COLOUR, "-", 1.8)
        _name_budget(axes, quality, largest / unit)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return lying, standing


def _name_budget(axes: Axes, quality: Quality, largest: float) -> None:
    """Write above the map up to which size a file fits; an arrow where that is beyond it."""
    name = one_line(quality["budget"]["name"])
    figure = f"{short_name(name)}: fits up to {plain(largest)} {_unit(quality)[1]}"
    # In parts of the map's width; an axis of logarithms knows no size of 0.
    across = (
        axes.transAxes.inverted().transform(axes.transData.transform((largest, axes.get_ylim()[0])))[0]
        if largest
        else -1.0
    )
    place, align, text = across, "center", figure
    if across >= 1:
        place, align, text = 1.0, "right", f"{figure} →"
    elif across <= 0:
        place, align, text = 0.0, "left", f"← {figure}" if largest > 0 else f"{short_name(name)}: nothing fits"
    elif across > 0.6 or across < 0.4:
        place, align = (min(1.0, across + 0.02), "right") if across > 0.6 else (max(0.0, across - 0.02), "left")
    axes.text(
        place, 1.015, text, transform=axes.transAxes, color=LINE_COLOUR, ha=align, va="bottom", fontsize=SMALL,
        fontweight="bold", gid="budget",
    )  # fmt: skip


def _draw_point(axes: Axes, place: tuple[float, float], row: Row, recommended: bool) -> None:
    beyond = row["verdict"]["passes"] is False
    colour = ORANGE if beyond else BLUE
    axes.errorbar(*place, yerr=row["kld_mean_error"], color=colour, linewidth=1.2, capsize=3, zorder=3)
    axes.plot(
        *place, "s" if beyond else "o", color=colour, markersize=7, markeredgewidth=1.5, zorder=4,
        markerfacecolor="white" if row["compared_only"] else colour,
    )  # fmt: skip
    if recommended:
        axes.plot(
            *place, "o", markersize=14, markerfacecolor="none", markeredgecolor="black", markeredgewidth=1.6, zorder=5
        )


def _name_lines(axes: Axes, quality: Quality, taken: Sequence[Box], upright: Sequence[Box]) -> list[Box]:
    """Name the horizontal lines, each where it is free, off the ``upright`` line if it can be; return where the names are."""
    names = [
        (quality["limits"].get("max_kld_mean"), "limit: {}", LINE_COLOUR),
        (_base_kld(quality), "the base against the fine-tune: {}", GREY),
    ]
    inside, boxes = _inside(axes), []
    for value, text, colour in names:
        if value is None:
            continue
        label = axes.text(0, 0, text.format(plain(value)), color=colour, fontsize=SMALL, transform=None, zorder=6)
        width, height = _extent(axes, label)
        y = axes.transData.transform((axes.get_xlim()[0], value))[1]
        best = min(
            (
                (
                    100 * sum(_overlaps(box, other) for other in (*taken, *boxes)) + 100 * (not _within(box, inside)),
                    any(_overlaps(box, line) for line in upright),
                    order,
                    box,
                )
                for order, box in enumerate(_beside_line(y, width, height, inside))
            )
        )[3]
        _put(axes, label, best)
        boxes.append(best)
    return boxes


def _beside_line(y: float, width: float, height: float, inside: Box) -> list[Box]:
    """Return places for the name of a horizontal line: above and below it, from its right end to its left one."""
    room = inside[2] - inside[0] - width - 6
    lefts = [inside[0] + 3 + room * step / 8 for step in range(8, -1, -1)]
    return [(left, low, left + width, low + height) for left in lefts for low in (y + 2, y - 2 - height)]


def _name_points(
    axes: Axes,
    quality: Quality,
    places: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    lines: Sequence[Box],
    walls: Sequence[tuple[int, float]],
) -> None:
    """Write the type beside each point; a thin line leads to a name that had to go away from it."""
    labels, points = [], []
    for place, row in zip(places, quality["rows"], strict=True):
        note = " (planned)" if row["type"] == quality["planned"] and not is_recommended(quality, row) else ""
        label = axes.text(
            0, 0, row["type"] + note, transform=None, fontsize=9, zorder=6, gid=f"type {row['type']}",
            fontweight="bold" if is_recommended(quality, row) else "normal",
        )  # fmt: skip
        labels.append(label)
        radius = 9.0 if is_recommended(quality, row) else 6.0
        points.append(Point(*map(float, axes.transData.transform(place)), radius, *_extent(axes, label)))
    boxes = place_labels(points, _inside(axes), taken, lines, walls)
    for label, point, box in zip(labels, points, boxes, strict=True):
        _put(axes, label, box)
        if (ends := leader(point, box)) is not None:
            (x0, y0), (x1, y1) = axes.transAxes.inverted().transform(ends)
            axes.plot([x0, x1], [y0, y1], transform=axes.transAxes, color="#777777", linewidth=0.7, zorder=2.5)


def _put(axes: Axes, label: Text, box: Box) -> None:
    """Put a text into a box of points, in parts of the map, which every backend scales alike."""
    label.set_transform(axes.transAxes)
    label.set_position(axes.transAxes.inverted().transform((box[0], (box[1] + box[3]) / 2)))
    label.set_verticalalignment("center")


def _extent(axes: Axes, label: Text) -> tuple[float, float]:
    """Return width and height of a text in points, with a little air."""
    box = label.get_window_extent(axes.figure.canvas.get_renderer())
    return box.width + 2, box.height + 1


def _inside(axes: Axes) -> Box:
    box = axes.get_window_extent()
    return (box.x0 + 1, box.y0 + 1, box.x1, box.y1)


def _error_box(axes: Axes, place: tuple[float, float], row: Row) -> Box:
    """Return where an error bar and at least its mark are drawn, as far as the map goes."""
    low, high = axes.get_ylim()
    ends = [min(max(place[1] + sign * row["kld_mean_error"], low), high) for sign in (-1, 1)]
    (x, bottom), (_, top) = (axes.transData.transform((place[0], end)) for end in ends)
    middle = axes.transData.transform(place)[1]
    return (x - 4, min(bottom, middle - 4), x + 4, max(top, middle + 4))


def _overlaps(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _within(box: Box, inside: Box) -> bool:
    return box[0] >= inside[0] and box[1] >= inside[1] and box[2] <= inside[2] and box[3] <= inside[3]


def _base_kld(quality: Quality) -> float | None:
    base = quality["base"]
    return base["kld"]["mean"]["value"] if base is not None and "kld" in base else None


def is_recommended(quality: Quality, row: Row) -> bool:
    """Return whether a row is the recommended one."""
    return quality["recommendation"] is not None and quality["recommendation"]["type"] == row["type"]


def _unit(quality: Quality) -> tuple[float, str]:
    return (1e9, "GB") if max(row["size"] for row in quality["rows"]) >= 5e8 else (1e6, "MB")


def short_name(text: str) -> str:
    """Return a name that leaves room for the rest of its line."""
    text = one_line(text)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
