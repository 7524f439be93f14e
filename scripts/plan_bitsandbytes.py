"""Ask transformers which tensors of a merged checkpoint it would quantize, from shapes alone; refuse what cannot be.

    python scripts/plan_bitsandbytes.py --plan merge_plan.json --base BASE --key models.m.bitsandbytes \\
        --settings '{"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true}' \\
        --output records/nf4/plan.json
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.bitsandbytes_modules import treat_checkpoint
from ollamake.errors import run
from ollamake.model_files import merged_config
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True, help="the merge plan")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model, for its config.json")
    parser.add_argument("--key", required=True, help="the key of the configuration that messages name")
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: arguments of BitsAndBytesConfig")
    parser.add_argument("--output", type=Path, required=True, help="how each tensor is stored, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    plan = read_record(args.plan)
    names = [tensor["name"] for shard in plan["shards"] for tensor in shard["tensors"]]
    treated = treat_checkpoint(merged_config(args.base, plan), names, args.settings, args.key)
    write_json(args.output, treated.as_json() | {"settings": args.settings})
    quantized = sum(one.quantized for one in treated.treatments.values())
    logging.info("%d of %d tensors are quantized", quantized, len(names))
    if treated.kept_experts:
        logging.warning("warning: %d tensors of experts are not quantized", len(treated.kept_experts))


if __name__ == "__main__":
    run(main)
