"""Fetch the headers of a model's shards from the Hugging Face hub, so that a merge can be planned before the shards come.

    python scripts/fetch_headers.py --repo Qwen/Qwen3-8B --commit 0123456789abcdef0123456789abcdef01234567 \\
        --weights '["model-00001-of-00005.safetensors", "..."]' --output resources/hub/Qwen/Qwen3-8B/0123456789ab/headers.json

writes {shard: {"size": bytes of the file, "header": its JSON header}}. Address and token are those of huggingface_hub.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.hub_headers import fetch_headers


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, help="ORG/NAME")
    parser.add_argument("--commit", required=True, help="the commit that the shards are of")
    parser.add_argument("--weights", type=json.loads, required=True, help="JSON: a list of names of .safetensors files")
    parser.add_argument(
        "--output", type=Path, required=True, help="headers.json, in the folder where the shards will be"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    write_json(args.output, fetch_headers(args.repo, args.commit, args.weights, args.output.parent))


if __name__ == "__main__":
    run(main)
