"""Put the answers of a model's quantizations side by side, and hold each to the share of right ones that is asked for.

    python scripts/compare_answers.py --model m --answers 'base=a.json' 'Q4_K_M=b.json' --judged Q4_K_M \\
        --min-score 0.8 --limit-key models.m.answers.min_score --on-fail stop \\
        --table answers.md --picture answers.svg --output answers.json
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.answers_comparison import compare, table
from ollamake.answers_plot import draw_answers
from ollamake.atomic_write import write_json, write_sealed_text
from ollamake.errors import run
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model's name in the configuration")
    parser.add_argument("--answers", nargs="+", required=True, help="LABEL=FILE of each that was asked")
    parser.add_argument("--judged", nargs="+", required=True, help="the labels that must reach the score")
    parser.add_argument("--min-score", type=float, required=True, help="the share of right answers to reach")
    parser.add_argument("--limit-key", required=True, help="the key of the configuration that asks for it")
    parser.add_argument("--on-fail", choices=["stop", "warn"], required=True, help="what too low a score does")
    parser.add_argument("--spec", default="{}", help="what the result depends on beside the answers, kept in it")
    parser.add_argument("--table", type=Path, required=True, help="the table, as Markdown")
    parser.add_argument("--picture", type=Path, required=True, help="each question and who answered it, as SVG")
    parser.add_argument("--output", type=Path, required=True, help="scores and who is below the limit, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    files = {label: Path(file) for label, _, file in (item.partition("=") for item in args.answers)}
    asked = {label: read_record(file) for label, file in files.items()}
    comparison = compare(args.model, asked, args.judged, args.min_score, args.limit_key, args.on_fail)
    text = table(comparison, asked)
    logging.info("%s", text)
    write_sealed_text(args.table, text)
    write_sealed_text(args.picture, draw_answers(args.model, asked).decode("utf-8"))
    write_json(args.output, comparison | {"spec": args.spec})


if __name__ == "__main__":
    run(main)
