"""Join, render, check and cut the text that a model is calibrated or evaluated on.

    python scripts/prepare_text.py --purpose evaluation --key models.m.quality --model-files merged/model_files.json \\
        --text a.txt b.txt --chat c.jsonl --chunks 100 --context 512 --output quality/evaluation.txt \\
        --record quality/evaluation.json
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.domain_text import prepare_text
from ollamake.errors import run
from ollamake.text_overlap import sources


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--purpose", choices=("evaluation", "calibration"), required=True, help="what it is used for")
    parser.add_argument("--key", required=True, help="the configuration key that messages name: models.m.quality")
    parser.add_argument("--model-files", type=Path, required=True, help="model_files.json beside the tokenizer")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="plain UTF-8 text")
    parser.add_argument("--chat", type=Path, nargs="*", default=[], help="conversations with answers, JSON lines")
    parser.add_argument("--chunks", type=_chunks, required=True, help="how many chunks are wanted, or `all`")
    parser.add_argument("--context", type=int, required=True, help="tokens of a chunk")
    parser.add_argument("--output", type=Path, required=True, help="the text")
    parser.add_argument("--record", type=Path, required=True, help="what it is, as JSON")
    args = parser.parse_args(argv)
    if not args.text and not args.chat:
        parser.error("neither --text nor --chat is given")
    return args


def _chunks(value: str) -> int | None:
    return None if value == "all" else int(value)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    mine = sources(args.key, args.text, args.chat)
    record = prepare_text(args.purpose, args.model_files, mine, args.chunks, args.context, args.output)
    logging.info("%d tokens, %d chunks of %d", record["tokens"], record["chunks"], args.context)
    write_json(args.record, record)


if __name__ == "__main__":
    run(main)
