"""Fetch the shape of a model from the Hugging Face hub: its configuration and the headers of its weights, no weights.

    python scripts/fetch_shape.py --model Qwen/Qwen3-8B --output resources/shapes/Qwen/Qwen3-8B.json

Address and token are those of huggingface_hub: HF_ENDPOINT, and HF_TOKEN or `hf auth login` for gated and private models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.errors import run
from ollamake.hub_shape import fetch_shape
from ollamake.shape import write_shape


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="ORG/REPO or ORG/REPO@REVISION (a branch, tag or commit)")
    parser.add_argument("--shipped", type=Path, default=Path("config/shapes"), help="shapes that come with ollamake")
    parser.add_argument("--cached", type=Path, default=Path("resources/shapes"), help="shapes that were fetched")
    parser.add_argument("--output", type=Path, required=True, help="the shape: resources/shapes/ORG/REPO.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    write_shape(args.output, fetch_shape(args.model, shipped=args.shipped, cached=args.cached))


if __name__ == "__main__":
    run(main)
