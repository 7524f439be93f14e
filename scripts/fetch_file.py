"""Fetch one file of a model from the Hugging Face hub: from the cache of huggingface_hub, else downloaded.

    python scripts/fetch_file.py --file '{"repo": "Qwen/Qwen3-8B", "name": "config.json", "size": 728, "git_sha1": "..."}' \\
        --commit 0123456789abcdef0123456789abcdef01234567 --output resources/hub/Qwen/Qwen3-8B/0123456789ab/config.json

Size and digest (sha256 of a file in Git LFS, git_sha1 of any other) are those of results/MODEL/sources.json; the file is checked
against them. A download that is interrupted goes on where it was. Address and token are those of huggingface_hub: HF_ENDPOINT,
and HF_TOKEN or `hf auth login` for gated and private models; HF_HUB_OFFLINE=1 takes files from the cache only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.errors import run
from ollamake.hub_download import fetch_file, hub_file
from ollamake.termination import interruptible


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=json.loads, required=True, help="JSON: repo, name, size, sha256 or git_sha1")
    parser.add_argument("--commit", required=True, help="the commit that the file is taken of")
    parser.add_argument("--output", type=Path, required=True, help="the file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with interruptible():
        fetch_file(hub_file(args.file), args.commit, args.output)


if __name__ == "__main__":
    run(main)
