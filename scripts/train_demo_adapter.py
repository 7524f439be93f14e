"""Train the demo's LoRA adapter.

    python scripts/train_demo_adapter.py --base resources/demo/base --questions config/demo/road_design.jsonl \\
        --system 道路設計の専門家として回答します。 --output resources/demo/adapter
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.demo_adapter import train_adapter
from ollamake.demo_text import read_examples
from ollamake.errors import run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--questions", type=Path, required=True, help="what the adapter learns")
    parser.add_argument("--system", required=True, help="the system prompt under which it learns")
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    loss = train_adapter(args.base, read_examples(args.questions), args.system, args.output)
    logging.info("adapter in %s, last loss %.4f", args.output, loss)


if __name__ == "__main__":
    run(main)
