"""Plan the merge of an adapter into a base model, from headers alone.

    python scripts/plan_merge.py --spec '{"base": "BASE", "adapters": [{"path": "ADAPTER", "weight": 1}], "dtype": "auto"}' \\
        --output merge_plan.json

The specification is JSON because it is also what Snakemake compares to tell whether the plan is outdated.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.adapter import read_adapter
from ollamake.atomic_write import write_json
from ollamake.checkpoint import read_checkpoint
from ollamake.errors import run
from ollamake.merge_plan import plan_merge


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=json.loads, required=True, help="JSON: base, adapters (path, weight), dtype")
    parser.add_argument("--output", type=Path, required=True, help="the plan")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    base = read_checkpoint(args.spec["base"], "base")
    adapters = [read_adapter(Path(adapter["path"]), adapter["weight"]) for adapter in args.spec["adapters"]]
    plan = plan_merge(base, adapters, args.spec["dtype"])
    write_json(args.output, plan)
    tensors = [tensor for shard in plan["shards"] for tensor in shard["tensors"]]
    edited = sum(bool(tensor["edits"]) for tensor in tensors)
    logging.info("%d of %d tensors in %d shards get an update", edited, len(tensors), len(plan["shards"]))


if __name__ == "__main__":
    run(main)
