"""Sum up what was measured of a model's quantizations: figures, verdicts, what to take, a table and a picture.

    python scripts/summarize_quality.py --model m --plan plan.json --text-record evaluation.json --reference reference.json \\
        --base base.json --measured Q4_K_M.json --records m.Q4_K_M.json --speeds Q4_K_M.speed.json --checkpoints nf4.json \\
        --spec '{"limits": {"max_kld_mean": 0.05}, "on_fail": "stop", "registered": ["Q4_K_M"]}' \\
        --output quality.json --table quality.md --picture quality.svg
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path

from ollamake.atomic_write import write_json, write_sealed_text
from ollamake.errors import run
from ollamake.quality_plot import draw_quality
from ollamake.quality_summary import summarize
from ollamake.quality_table import quality_markdown
from ollamake.record_seal import read_optional, read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model's name in the configuration")
    for flag, what in (("--plan", "its plan.json"), ("--text-record", "what it was measured on, as JSON"),
                       ("--reference", "reference.json, of the unquantized fine-tune"), ("--output", "all of it, as JSON"),
                       ("--table", "as Markdown"), ("--picture", "as SVG")):  # fmt: skip
        parser.add_argument(flag, type=Path, required=True, help=what)
    parser.add_argument("--base", nargs="?", type=Path, help="the base's measurement, nothing if there is none")
    parser.add_argument("--measured", nargs="+", type=Path, required=True, help="each quantization's measurement")
    parser.add_argument("--records", nargs="+", type=Path, required=True, help="the records of their GGUFs")
    parser.add_argument("--speeds", nargs="*", type=Path, default=[], help="their speeds, as far as they are measured")
    parser.add_argument("--checkpoints", nargs="*", type=Path, default=[], help="measured bitsandbytes checkpoints")
    parser.add_argument("--overlap", nargs="?", type=Path, help="what was calibrated on, too; nothing without a matrix")
    parser.add_argument("--spec", type=json.loads, required=True, help="JSON: limits, on_fail and registered types")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    told = map(read_optional, (args.plan, args.text_record, args.reference, args.base))
    measured = ([*map(read_record, files)] for files in (args.measured, args.records, args.speeds))
    quality = summarize(
        args.model, *told, *measured, args.spec, read_optional(args.overlap), [*map(read_record, args.checkpoints)]
    )
    for sentence in quality["sentences"]:
        logging.info("%s", sentence)
    write_sealed_text(args.picture, draw_quality(quality).decode("utf-8"))
    write_sealed_text(args.table, quality_markdown(quality, os.path.relpath(args.picture, args.table.parent)))
    write_json(args.output, quality)


if __name__ == "__main__":
    run(main)
