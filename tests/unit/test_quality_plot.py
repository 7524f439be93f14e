"""The picture of quality: every type named, nothing covering anything, zero drawn, Japanese as outlines, the same every time."""

from __future__ import annotations

import itertools
import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from sample_plan import sample_plan
from sample_quality import FIGURES, GIB, base_measurement, measurement, sample_quality

from ollamake.label_places import Point, along, overlaps, place_labels
from ollamake.plot_font import font_settings, japanese_file
from ollamake.quality_plot import draw_quality, quality_figure
from ollamake.quality_plot import settings as plot_settings

ALL = tuple(FIGURES)
SVG = "{http://www.w3.org/2000/svg}"
CASES: dict[str, dict[str, Any]] = {
    "one": {"types": ("Q4_K_M",)},
    "two": {"types": ("Q8_0", "Q4_K_M"), "base": base_measurement()},
    "five": {"limits": {"max_kld_mean": 0.02, "min_top1": 0.93}, "base": base_measurement(), "compare": ["Q2_K"]},
    "twelve": {"types": ALL, "limits": {"max_kld_mean": 0.05, "max_ppl_ratio": 1.05}, "base": base_measurement(),
               "compare": ["F16", "Q2_K"]},
    "twelve without limits": {"types": ALL, "speeds": False, "usable_mib": 4000},
    "unquantized alone": {"types": ("F16",)},
    "a limit of zero": {"types": ("Q8_0", "Q6_K"), "limits": {"max_kld_mean": 0.0}},
    "nothing known": {"types": ALL, "plan": sample_plan(gpus=[], ram_gib=None)},
    "a base nearer than the quantizations": {"types": ("Q3_K_S", "Q2_K"), "base": base_measurement(0.0005, 1.001)},
}  # fmt: skip


def boxes(found: Figure, texts: Sequence[Text]) -> list[tuple[float, float, float, float]]:
    renderer = found.canvas.get_renderer()
    return [tuple(text.get_window_extent(renderer).extents) for text in texts]


def drawn(quality: dict[str, Any]) -> tuple[Figure, list[Text]]:
    """Return the picture and the visible texts of it."""
    with mpl.rc_context(plot_settings(["m"])):
        found = quality_figure(quality)
        found.canvas.draw()
    # Labels of ticks beyond an axis are among an axis' texts and not drawn.
    texts = [*found.texts, *(text for legend in found.legends for text in legend.get_texts())]
    texts += [text for axes in found.axes for text in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)]
    return found, [text for text in texts if text.get_text()]


@cache
def drawn_case(case: str) -> tuple[dict[str, Any], Figure, list[Text]]:
    quality = sample_quality(**CASES[case])
    return quality, *drawn(quality)


@pytest.mark.parametrize("case", CASES)
def test_nothing_covers_anything(case: str) -> None:
    quality, found, _ = drawn_case(case)
    axes = found.axes[0]
    names = axes.texts
    placed = boxes(found, names)
    for (one, box), (other, second) in itertools.combinations(zip(names, placed, strict=True), 2):
        area = overlaps(box, overlaps_with(second))[0]
        assert area < 1e-6, (one.get_text(), other.get_text())
    types = [text for text in names if (text.get_gid() or "").startswith("type ")]
    assert [text.get_text().split(" ")[0] for text in types] == [row["type"] for row in quality["rows"]]
    window = axes.get_window_extent()
    for box in boxes(found, types):
        assert window.x0 <= box[0]
        assert box[2] <= window.x1 + 1
        assert window.y0 <= box[1]
        assert box[3] <= window.y1 + 1
        for row in quality["rows"]:
            x, y = axes.transData.transform((row["size"] / 1e9, row["kld_mean"]))
            assert overlaps(box, overlaps_with((x - 3, y - 3, x + 3, y + 3)))[0] == 0, "a label covers a mark"


def overlaps_with(box: Sequence[float]) -> Any:
    return np.array([box], dtype=np.float64)


@pytest.mark.parametrize("case", CASES)
def test_every_point_is_in_the_map_and_every_text_in_the_picture(case: str) -> None:
    quality, found, texts = drawn_case(case)
    axes = found.axes[0]
    window = axes.get_window_extent()
    for row in quality["rows"]:
        x, y = axes.transData.transform((row["size"] / 1e9, row["kld_mean"]))
        assert window.x0 < x < window.x1
        assert window.y0 < y < window.y1
    width, height = found.get_figwidth() * 72, found.get_figheight() * 72
    for text, box in zip(texts, boxes(found, texts), strict=True):
        assert min(box[:2]) >= 0, text.get_text()
        assert box[2] <= width, text.get_text()
        assert box[3] <= height, text.get_text()


@pytest.mark.parametrize("case", CASES)
def test_the_svg(case: str) -> None:
    quality, *_ = drawn_case(case)
    picture = draw_quality(quality)
    if case == "five":
        assert picture == draw_quality(json.loads(json.dumps(quality)))
    assert len(picture) < 200_000
    root = ElementTree.fromstring(picture)
    texts = [" ".join("".join(text.itertext()).split()) for text in root.iter(f"{SVG}text")]
    for row in quality["rows"]:
        # In the map and beside the panels.
        assert sum(text.split(" ")[0] == row["type"] for text in texts) == 2
    assert ("limit: 0.05" in texts) == (case == "twelve")
    assert ("the base against the fine-tune: 1.24" in texts) == (case in ("two", "five", "twelve"))
    assert ("generation" in " ".join(texts)) == (case != "twelve without limits")


def test_marks_tell_apart_without_colour() -> None:
    quality = sample_quality(limits={"max_kld_mean": 0.02}, compare=["Q2_K", "Q8_0"])
    found, _ = drawn(quality)
    marks = {}
    for line in found.axes[0].lines:
        if line.get_marker() in ("o", "s") and line.get_markersize() == 7:
            (x,), (y,) = line.get_xdata(), line.get_ydata()
            kind = next(row["type"] for row in quality["rows"] if (row["size"] / 1e9, row["kld_mean"]) == (x, y))
            marks[kind] = (line.get_marker(), line.get_markerfacecolor() == "white")
    assert marks == {
        "Q8_0": ("o", True), "Q6_K": ("o", False), "Q5_K_M": ("o", False), "Q4_K_M": ("s", False), "Q2_K": ("s", True),
    }  # fmt: skip


def test_the_lines_are_where_the_figures_are() -> None:
    quality = sample_quality(limits={"max_kld_mean": 0.02}, base=base_measurement())
    found, _ = drawn(quality)
    lines = {tuple(line.get_ydata()) for line in found.axes[0].lines}
    assert {(0.02, 0.02), (1.24, 1.24)} <= lines
    largest = quality["budget"]["largest_file"] / 1e9
    assert any(tuple(line.get_xdata()) == (largest, largest) for line in found.axes[0].lines)
    (front,) = [line for line in found.axes[0].lines if len(line.get_xdata()) == 5]
    assert list(front.get_ydata()) == sorted((row["kld_mean"] for row in quality["rows"]), reverse=True)


def test_zero_and_less_are_drawn() -> None:
    noise = measurement("Q8_0", (0, -2e-6, 3e-5, 1.0, 1e-4, 0.5, 99.5, 50.0))
    found, _ = drawn(sample_quality(("F16", "Q8_0", "Q4_K_M"), measured={"Q8_0": noise}))
    axes = found.axes[0]
    low, high = axes.get_ylim()
    assert low < -2e-6 < 0 < high
    assert "0" in [label.get_text() for label in axes.get_yticklabels()]


def test_a_small_model_is_in_megabytes() -> None:
    figures = {kind: FIGURES[kind] for kind in ("Q8_0", "Q4_K_M")}
    quality = sample_quality(tuple(figures))
    for row in quality["rows"]:
        row["size"] //= 3000
    quality["budget"]["largest_file"] = 21 * GIB
    text = draw_quality(quality).decode()
    assert "file size, MB" in text
    assert "fits up to 22,549 MB →" in text


def test_names_are_cut_and_no_markup() -> None:
    quality = sample_quality(model="$x^2$ <b>&" + "n" * 80)
    picture = draw_quality(quality)
    ElementTree.fromstring(picture)
    assert b"$x^2$ &lt;b&gt;&amp;" + b"n" * 37 + "…".encode() in picture
    found, texts = drawn(quality)
    width = found.get_figwidth() * 72
    assert all(box[2] <= width for box in boxes(found, texts))


def test_japanese_is_drawn_as_outlines_of_a_font_that_has_it() -> None:
    name = "保守手引き用モデル「第2版」"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = draw_quality(sample_quality(model=name)).decode()
    root = ElementTree.fromstring(picture)
    assert not list(root.iter(f"{SVG}text")), "text would need a font of the viewer's"
    used = set(re.findall(r'xlink:href="#([A-Za-z]+-[0-9a-f]+)"', picture))
    outlines = {element.get("id") for element in root.iter(f"{SVG}path")}
    glyphs = {glyph for glyph in used if glyph.startswith("IPAexGothic")}
    assert glyphs <= outlines
    with TTFont(japanese_file()) as font:
        letters = font.getBestCmap()
        order = font.getReverseGlyphMap()
    only_japanese = set(name) - set("2「」") & set(map(chr, letters))
    assert {f"IPAexGothic-{order[letters[ord(letter)]]:x}" for letter in only_japanese} <= glyphs
    assert not any(glyph.endswith("-0") for glyph in used), ".notdef"
    assert picture == draw_quality(sample_quality(model=name)).decode()
    assert len(picture) < 300_000


@pytest.mark.parametrize(
    ("texts", "family", "kind"),
    [
        (["Q4_K_M", "naïve – ½ ÷ Привет ✓"], ["DejaVu Sans"], "none"),
        (["a", "漢字かな交じり"], ["DejaVu Sans", "IPAexGothic"], "path"),
        (["한국어"], ["DejaVu Sans", "IPAexGothic"], "none"),
        ([], ["DejaVu Sans"], "none"),
    ],
)
def test_which_font(texts: list[str], family: list[str], kind: str) -> None:
    assert font_settings(texts) == {"font.family": family, "svg.fonttype": kind}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(40, 360), st.integers(40, 260), st.integers(20, 90)), min_size=1, max_size=12),
    st.floats(20, 280),
)
def test_labels_of_any_points_are_off_each_other(points: list[tuple[int, int, int]], wall: float) -> None:
    """Of 12 points in 400 × 300 there is always room for labels of at most 90 × 12, wherever they are."""
    inside = (0.0, 0.0, 400.0, 300.0)
    given_points = [Point(x, y, 6.0, width, 12.0) for x, y, width in points]
    line = along((0.0, wall), (400.0, wall))
    placed = place_labels(given_points, inside, (), line, [(1, wall)])
    assert len(placed) == len(points)
    for box, point in zip(placed, given_points, strict=True):
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx((point.width, point.height))
        assert box[0] >= -1e-6
        assert box[1] >= -1e-6
        assert box[2] <= 400 + 1e-6
        assert box[3] <= 300 + 1e-6
        for other in given_points:
            assert overlaps(box, overlaps_with(other.mark))[0] < 1e-6
    for one, other in itertools.combinations(placed, 2):
        assert overlaps(one, overlaps_with(other))[0] < 1e-6
