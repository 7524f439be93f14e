"""Write a plan for people: as Markdown and as a picture.

python scripts/draw_plan.py --plan results/m/plan.json --times times.json --text plan.md --picture plan.svg
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ollamake.atomic_write import write_sealed_text
from ollamake.errors import run
from ollamake.plan_plot import draw_plan
from ollamake.plan_text import plan_markdown
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True, help="the plan, as plan_memory.py wrote it")
    parser.add_argument("--times", type=Path, help="how long each type takes to make, as JSON")
    parser.add_argument("--text", type=Path, required=True, help="the plan as Markdown")
    parser.add_argument("--picture", type=Path, required=True, help="the memory of the candidates, as SVG")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    plan = read_record(args.plan)
    times = read_record(args.times) if args.times else None
    write_sealed_text(args.picture, draw_plan(plan).decode("utf-8"))
    picture = Path(os.path.relpath(args.picture, args.text.parent)).as_posix()
    write_sealed_text(args.text, plan_markdown(plan, times, picture))


if __name__ == "__main__":
    run(main)
