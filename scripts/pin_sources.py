"""Pin what a model is made from on the Hugging Face hub: commits, and the files that are needed with sizes and digests.

    python scripts/pin_sources.py --spec '{"format": 1, "base": "Qwen/Qwen3-8B", "adapters": ["me/my-adapter@v2", null]}' \\
        --output results/MODEL/sources.json

A reference (ORG/NAME or ORG/NAME@REVISION) that the output has from before keeps its commit, and the hub is not asked; --renew
asks for all. null stands for a folder here. Address and token are those of huggingface_hub (HF_ENDPOINT, HF_TOKEN); where the
hub does not answer, a reference is pinned as the cache of huggingface_hub has it, if it has all of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.hub_pin import pin_sources, read_former


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=json.loads, required=True, help="JSON: format, base, adapters, see above")
    parser.add_argument("--output", type=Path, required=True, help="the record; what it has from before is read")
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="records of other models, which decide first")
    parser.add_argument("--renew", action="store_true", help="ask the hub for references that are pinned already")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    others = [pins for file in args.known if (pins := read_former(file)) is not None]
    write_json(args.output, pin_sources(args.spec, read_former(args.output), others, renew=args.renew))


if __name__ == "__main__":
    run(main)
