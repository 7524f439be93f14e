"""Find out how much of the text that a model is measured on stands in the text that it was calibrated on.

    python scripts/check_overlap.py --model m --evaluation-text measured.txt --evaluation-chat --calibration-text \\
        --calibration-chat calibration.jsonl --output results/m/quality/overlap.json
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.text_overlap import (
    overlap_fault,
    overlap_warning,
    refuse_overlap,
    refuse_same_files,
    sources,
    text_overlap,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model's name in the configuration")
    parser.add_argument("--evaluation-text", type=Path, nargs="*", default=[], help="plain text to measure on")
    parser.add_argument("--evaluation-chat", type=Path, nargs="*", default=[], help="conversations to measure on")
    parser.add_argument("--calibration-text", type=Path, nargs="*", default=[], help="plain text to calibrate on")
    parser.add_argument("--calibration-chat", type=Path, nargs="*", default=[], help="conversations to calibrate on")
    parser.add_argument("--output", type=Path, required=True, help="the share, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    mine = sources(f"models.{args.model}.quality", args.evaluation_text, args.evaluation_chat)
    others = sources(f"models.{args.model}.imatrix", args.calibration_text, args.calibration_chat)
    refuse_same_files(mine, others)
    overlap = text_overlap(mine, others)
    refuse_overlap(overlap, mine, others)
    logging.info("%.1f%% of the text to measure on stands in the text to calibrate on", 100 * overlap.share)
    if overlap.share:
        logging.warning("warning: %s.", overlap_fault(overlap, mine, others))
    warnings = [overlap_warning(overlap)] if overlap.share else []
    write_json(args.output, {"share": overlap.share, "sentence": overlap.sentence, "warnings": warnings})


if __name__ == "__main__":
    run(main)
