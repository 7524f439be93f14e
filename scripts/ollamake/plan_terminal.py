"""A plan as rich shows it in a terminal: the recommendation, the types worth a look, the alternatives.

Everything is made of rich's Text, never of its markup, so that no name is taken for a colour.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ollamake.plan_figures import (
    ALTERNATIVE_TITLES,
    Column,
    Plan,
    Row,
    aliases,
    alternative_cells,
    alternative_remarks,
    columns,
    one_line,
    recommended_row,
    refused_types,
    sized_rows,
)
from ollamake.plan_sentences import QUALITY_NOTE, advice, asked, making, places, subject

_MARK = "> "
"""Before the recommended type, which is bold as well; a pipe has no bold."""


def plan_renderables(
    plan: Plan, times: Mapping[str, Any] | None = None, types: Collection[str] = (), every_type: bool = False
) -> list[RenderableType]:
    """Return what rich prints of a plan.json, top to bottom; it fits the width of any console.

    ``times``: the content of a times.json; ``types``: types that are shown beside the candidates and the recommended one;
    ``every_type``: all that can be made are shown. Columns that matter least are left out where the width is too small.
    """
    shown = shown_rows(plan, types, every_type)
    blocks: list[RenderableType] = [
        Text(f"Plan of {one_line(plan['model'])}", style="bold underline"),
        Text(subject(plan)),
        Text(),
    ]
    for title, sentence in advice(plan):
        blocks.append(
            Text.assemble((one_line(title), "bold green" if plan["recommendation"] else "bold red"), "  ", sentence)
        )
    blocks += [Text(f"Warning: {one_line(warning)}", style="yellow") for warning in plan["warnings"]]
    blocks += [Text(), Text(asked(plan)), Text(places(plan)), Text(), _TypeTable(plan, times, shown), Text()]
    blocks += [Text(line, style="dim") for line in _remarks(plan, times, shown, types)]
    if plan["alternatives"]:
        blocks += [Text(), Text("Alternatives", style="bold"), _alternatives(plan)]
        blocks += [Text(remark) for one in plan["alternatives"] for remark in alternative_remarks(one)]
        if not all(alternative["exact"] for alternative in plan["alternatives"]):
            blocks.append(Text("~: the size is estimated, good to 0.1 %."))
    return [*blocks, Text()]


def shown_rows(plan: Plan, types: Collection[str] = (), every_type: bool = False) -> list[Row]:
    """Return the rows that a user wants to see: candidates, ``types``, the recommended type and the next ones.

    A type by another name (Q4_K) is the row of its own name (Q4_K_M). With ``every_type`` all rows.
    """
    rows = sized_rows(plan)
    if every_type:
        return rows
    other_names = aliases(plan)
    wanted = {other_names.get(kind, kind) for kind in types}
    if plan["recommendation"] is not None:
        wanted.add(plan["recommendation"]["type"])
        wanted |= {
            plan["recommendation"][key]["type"] for key in ("up", "down") if plan["recommendation"][key] is not None
        }
    return [row for row in rows if row["candidate"] or row["type"] in wanted]


class _TypeTable:
    """The table of types with as many columns as the console is wide."""

    def __init__(self, plan: Plan, times: Mapping[str, Any] | None, rows: Sequence[Row]) -> None:
        self._recommended = recommended_row(plan)
        self._rows = rows
        found = columns(plan, times)
        # A column that is empty, as the one of importance matrices often is, would only take room.
        self._columns = [column for column in found if any(column.cell(row) for row in rows)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left = list(self._columns)
        unbounded = options.update_width(10_000)
        while (
            any(column.rank for column in left)
            and Measurement.get(console, unbounded, self._table(left)).maximum > options.max_width
        ):
            left.remove(max(left, key=lambda column: column.rank))
        yield self._table(left)
        dropped = [column.title for column in self._columns if column not in left]
        if dropped:
            yield Text(f"No room here for: {'; '.join(dropped)}. The plan's Markdown has them.", style="dim")

    def _table(self, shown: Sequence[Column]) -> Table:
        table = _empty_table()
        table.add_column(Text("type"), no_wrap=True)
        for column in shown:
            table.add_column(
                Text(_stacked(column)), justify="right" if column.numeric else "left", vertical="bottom", no_wrap=False
            )
        for row in self._rows:
            recommended = row is self._recommended
            cells = (Text(column.cell(row), no_wrap=bool(column.rank)) for column in shown)
            mark = _MARK if recommended else " " * len(_MARK)
            table.add_row(Text(mark + row["type"]), *cells, style=_style(row, recommended))
        return table


def _style(row: Row, recommended: bool) -> str:
    if recommended:
        return "bold green"
    return "dim" if row["fits"] and all(fit["fits"] is False for fit in row["fits"]) else ""


def _stacked(column: Column) -> str:
    """Return a title in lines of whole words that are not wider than its cells have to be anyway."""
    return "\n".join(column.title.replace("a weight", "a\N{NO-BREAK SPACE}weight").split(" "))


def _remarks(
    plan: Plan, times: Mapping[str, Any] | None, shown: Sequence[Row], types: Collection[str]
) -> Iterator[str]:
    refused = refused_types(plan)
    yield from (f"{kind}: {one_line(refused[kind])}" for kind in types if kind in refused)
    yield QUALITY_NOTE
    if times is not None:
        recommended = recommended_row(plan)
        yield from making(plan, times, () if recommended is None else (recommended["type"],))
    hidden = len(sized_rows(plan)) - len(shown)
    if hidden:
        yield f"{hidden} more types are in the plan's Markdown."


def _alternatives(plan: Plan) -> Table:
    table = _empty_table()
    for index, title in enumerate(ALTERNATIVE_TITLES):
        table.add_column(Text(title), justify="right" if index in (1, 3, 4) else "left", overflow="fold")
    for alternative in plan["alternatives"]:
        table.add_row(*(Text(cell) for cell in alternative_cells(plan, alternative)))
    return table


def _empty_table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", collapse_padding=True)
