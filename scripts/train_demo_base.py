"""Train the demo's base model.

    python scripts/train_demo_base.py --general config/demo/general.jsonl --questions config/demo/road_design.jsonl \\
        --output resources/demo/base
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.demo_base import train_base
from ollamake.demo_text import read_examples
from ollamake.errors import run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--general", type=Path, required=True, help="what the base knows")
    parser.add_argument("--questions", type=Path, required=True, help="what it has heard of, but does not know")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    loss = train_base(read_examples(args.general), read_examples(args.questions), args.output)
    logging.info("base model in %s, last loss %.4f", args.output, loss)


if __name__ == "__main__":
    run(main)
