"""Sum up a merge: how large the updates are, how much of them was stored, what was read and written.

    python scripts/write_merge_report.py --model m --plan merge_plan.json --records merge_records/*.json \\
        --report merge_report.json --picture merge_report.svg
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.atomic_write import write_json, write_sealed_text
from ollamake.errors import run
from ollamake.merge_plot import draw_merge
from ollamake.merge_report import merge_report
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name of the model, for the picture's title")
    parser.add_argument("--plan", type=Path, required=True, help="the merge plan")
    parser.add_argument("--records", type=Path, nargs="+", required=True, help="the records of all shards")
    parser.add_argument("--report", type=Path, required=True, help="the report, as JSON")
    parser.add_argument("--picture", type=Path, required=True, help="the size of the update over the layers, as SVG")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    plan = read_record(args.plan)
    report = merge_report(plan, [read_record(record) for record in args.records])
    write_sealed_text(args.picture, draw_merge(args.model, report).decode("utf-8"))
    write_json(args.report, report)
    totals = report["totals"]
    if totals["relative_norm"] is not None and totals["survival"] is not None:
        logging.info(
            "%d of %d tensors changed, by %.2f %% of the weights' size; %.1f %% of the update is stored",
            totals["edited"],
            totals["tensors"],
            100 * totals["relative_norm"],
            100 * totals["survival"],
        )
    for warning in report["warnings"]:
        logging.warning("warning: %s", warning)


if __name__ == "__main__":
    run(main)
