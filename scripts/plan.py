"""Print the plans of models as tables: what fits, with how long a context, and what to take.

    python scripts/plan.py --plans results/a/plan.json results/b/plan.json

In a pipe the tables are COLUMNS wide, or 120, and without colours.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

from rich.console import Console

from ollamake.errors import OllamakeError, run
from ollamake.plan_terminal import plan_renderables
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, nargs="+", required=True, help="the plans, as plan_memory.py wrote them")
    parser.add_argument("--times", type=Path, nargs="*", default=[], help="times to make the types, one file a plan")
    parser.add_argument("--types", nargs="*", default=[], help="types to show beside the candidates")
    parser.add_argument("--all", action="store_true", help="show every type that can be made")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.times and len(args.times) != len(args.plans):
        raise OllamakeError(f"--times: expected one file a plan, {len(args.plans)}; found {len(args.times)}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name in letters that the terminal has not is no reason to fail.
        sys.stdout.reconfigure(errors="replace")
    columns = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else int(columns) if columns.isdecimal() and int(columns) else 120
    console = Console(width=width, highlight=False, emoji=False, markup=False)
    for index, path in enumerate(args.plans):
        plan = read_record(path)
        times = read_record(args.times[index]) if args.times else None
        console.print(*plan_renderables(plan, times, args.types, args.all), sep="\n")


if __name__ == "__main__":
    run(main)
