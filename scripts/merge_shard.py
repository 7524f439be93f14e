"""Merge an adapter into one shard of a base model.

    python scripts/merge_shard.py --plan merge_plan.json --shard model-00001-of-00003.safetensors \\
        --output merged/model-00001-of-00003.safetensors --record merge_records/model-00001-of-00003.json --threads 4
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.record_seal import read_record
from ollamake.shard_stream import merge_shard


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True, help="the merge plan")
    parser.add_argument("--shard", required=True, help="name of the shard in the plan")
    parser.add_argument("--seen", type=json.loads, default={}, help="JSON: path -> identity under which it was planned")
    parser.add_argument("--known", type=json.loads, default={}, help="JSON: path -> sha256 that it must have")
    parser.add_argument("--output", type=Path, required=True, help="the merged shard")
    parser.add_argument("--record", type=Path, required=True, help="what was read, done and written, as JSON")
    parser.add_argument("--threads", type=int, default=1, help="threads: two read and write, the others compute")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    plan = read_record(args.plan)
    record = merge_shard(plan, args.shard, args.output, args.threads, args.known)
    for entry in (record["base"], *record["adapters"], *record["others"]):
        entry["identity"] = args.seen.get(entry["path"], "")
    write_json(args.record, record)
    survivals = [tensor["survival"] for tensor in record["tensors"].values() if tensor["survival"] is not None]
    if survivals:
        logging.info(
            "%d tensors merged; of the smallest update %.2f %% is stored", len(survivals), 100 * min(survivals)
        )


if __name__ == "__main__":
    run(main)
