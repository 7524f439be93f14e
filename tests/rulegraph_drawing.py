"""Draws the graph of rules as SVG: one box a rule, stages from left to right, arrows in the direction of the data."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

Graph = dict[str, set[str]]
"""Rule -> rules that use its output."""

COLUMN, ROW, WIDTH, HEIGHT, MARGIN = 168, 56, 136, 32, 14
STAGES = {
    "#4c72b0": ("train_demo_base", "train_demo_adapter"),
    "#55a868": ("check_inputs", "plan_merge", "merge_shard", "write_model_files"),
    "#dd8452": ("fetch_llama_cpp", "build_llama_cpp", "convert_to_gguf", "quantize"),
    "#8172b3": ("choose_template", "write_modelfile", "register", "check_template"),
    "#c4ad66": (
        "check_overlap", "prepare_text", "compute_imatrix", "evaluate_reference", "evaluate_quality", "measure_speed",
        "summarize_quality", "judge_quality",
    ),
}  # fmt: skip
"""Colours that stay apart for the colour-blind and in print: training, merge, GGUF, Ollama, quality."""
LEFT_OUT = ("all", "record_conversion", "release_unquantized", "release_logits", "write_overview", "write_page")
"""Rules that say nothing about how a model is made: the target, the pages of the report, what tells of a file or holds it."""


def parse_rulegraph(dot: str) -> Graph:
    """Parse what `snakemake --rulegraph` prints (Graphviz' dot language)."""
    names = dict(re.findall(r'^\s*(\d+)\[label = "([^"\\]+)', dot, re.MULTILINE))
    graph: Graph = {name: set() for name in names.values()}
    for source, target in re.findall(r"^\s*(\d+) -> (\d+)\s*$", dot, re.MULTILINE):
        graph[names[source]].add(names[target])
    return graph


def without(graph: Graph, names: Sequence[str]) -> Graph:
    """Leave rules out: what feeds one of them feeds what uses it."""
    graph = {name: set(users) for name, users in graph.items()}
    for left_out in names:
        users = graph.pop(left_out, set())
        for others in graph.values():
            if left_out in others:
                others.remove(left_out)
                others |= users
    return graph


def without_shortcuts(graph: Graph) -> Graph:
    """Drop arrows that a longer way already says (the transitive reduction): what is left can be read."""
    reachable: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in reachable:
            reachable[name] = set().union(*({user} | reach(user) for user in graph[name]))
        return reachable[name]

    return {
        name: {u for u in users if not any(u in reach(other) for other in users - {u})} for name, users in graph.items()
    }


def svg(graph: Graph) -> str:
    """Return the drawing; the same graph gives the same text."""
    graph = without_shortcuts(without(graph, LEFT_OUT))
    places = _places(graph)
    width = MARGIN * 2 + WIDTH + COLUMN * max(column for column, _ in places.values())
    height = MARGIN * 2 + HEIGHT + ROW * max(row for _, row in places.values())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="13">',
        "<title>The rules of ollamake</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#666"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for source in sorted(graph):
        for target in sorted(graph[source]):
            span = range(places[source][0] + 1, places[target][0])
            lines.append(_arrow([places[name] for name in (source, *(_bend(source, target, c) for c in span), target)]))
    lines += [_box(name, places[name]) for name in sorted(graph)]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _places(graph: Graph) -> dict[str, tuple[int, float]]:
    """Return (column, row) of each rule: columns by the longest way from a start, rows near what feeds a rule."""
    feeding: dict[str, set[str]] = defaultdict(set)
    for source, targets in graph.items():
        for target in targets:
            feeding[target].add(source)
    columns: dict[str, int] = {}

    def column(name: str) -> int:
        if name not in columns:
            columns[name] = max((column(source) + 1 for source in feeding[name]), default=0)
        return columns[name]

    for name in graph:
        column(name)
    # A start stands right before what it feeds, not at the far left.
    for name in sorted(graph, key=lambda name: -columns[name]):
        if not feeding[name] and graph[name]:
            columns[name] = min(columns[target] for target in graph[name]) - 1
    # An arrow over several columns gets a place of its own in each between, so that it crosses no box.
    for source, targets in graph.items():
        for target in targets:
            chain = [source, *(_bend(source, target, c) for c in range(columns[source] + 1, columns[target])), target]
            feeding[target].discard(source)
            for before, after in pairwise(chain):
                columns.setdefault(after, columns[before] + 1)
                feeding[after].add(before)
    return _rows(columns, feeding)


def _bend(source: str, target: str, column: int) -> str:
    return f"{source}>{target}@{column}"


def _rows(columns: Mapping[str, int], feeding: Mapping[str, set[str]]) -> dict[str, tuple[int, float]]:
    places: dict[str, tuple[int, float]] = {}
    for number in range(max(columns.values()) + 1):
        members: Sequence[str] = [name for name in columns if columns[name] == number]

        def wish(name: str) -> tuple[float, str]:
            rows = [places[source][1] for source in feeding[name] if source in places]
            return (sum(rows) / len(rows) if rows else 9.0, name)

        next_row = 0.0
        for name in sorted(members, key=wish):
            row = max(next_row, wish(name)[0] if wish(name)[0] < 9 else next_row)
            places[name] = (number, row)
            next_row = row + 1
    return places


def _corner(place: tuple[int, float]) -> tuple[float, float]:
    return MARGIN + place[0] * COLUMN, MARGIN + place[1] * ROW


def _arrow(way: Sequence[tuple[int, float]]) -> str:
    """A curve from the right side of the first place, through the middles of those between, to the left side of the last."""
    corners = [_corner(place) for place in way]
    x, y = corners[0][0] + WIDTH, corners[0][1] + HEIGHT / 2
    path = f"M{x:g} {y:g}"
    for number, (left, top) in enumerate(corners[1:], start=1):
        last = number == len(corners) - 1
        x2, y2 = left - 2 if last else left, top + HEIGHT / 2
        bend = (x2 - x) / 2
        path += f"C{x + bend:g} {y:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
        if not last:
            path += f"H{left + WIDTH:g}"
            x, y = left + WIDTH, y2
    return f'<path d="{path}" fill="none" stroke="#666" stroke-width="1.3" marker-end="url(#arrow)"/>'


def _box(name: str, place: tuple[int, float]) -> str:
    x, y = _corner(place)
    colour = next((colour for colour, names in STAGES.items() if name in names), "#777777")
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{colour}" fill-opacity="0.14"'
        f' stroke="{colour}" stroke-width="1.5"/>'
        f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 4.5:g}" text-anchor="middle" fill="#222">{escape(name)}</text>'
    )
