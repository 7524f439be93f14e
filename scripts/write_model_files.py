"""Write config, index, tokenizer and chat template of a merged checkpoint.

    python scripts/write_model_files.py --spec '{"base": "BASE", "adapters": ["ADAPTER"]}' --plan merge_plan.json \\
        --manifest merged/model_files.json
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.errors import run
from ollamake.model_files import write_model_files
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=json.loads, required=True, help="JSON: base, adapters")
    parser.add_argument("--plan", type=Path, required=True, help="the merge plan")
    parser.add_argument(
        "--manifest", type=Path, required=True, help="model_files.json, written beside the files it lists"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    plan = read_record(args.plan)
    adapters = [Path(adapter) for adapter in args.spec["adapters"]]
    written = write_model_files(Path(args.spec["base"]), adapters, plan, args.manifest)
    logging.info(
        "%d files; tokenizer of the %s; chat template: %s",
        len(written["files"]),
        written["tokenizer"],
        written["chat_template"] or "none",
    )


if __name__ == "__main__":
    run(main)
