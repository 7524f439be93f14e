"""Quantize one shard of a merged checkpoint with bitsandbytes, as transformers would save it.

    python scripts/quantize_bitsandbytes.py --precision nf4 --plan merge_plan.json --base BASE --key models.m.bitsandbytes \\
        --settings '{"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true}' \\
        --shard merged/model-00001-of-00003.safetensors --merge-record merge_records/model-00001-of-00003.json \\
        --output bitsandbytes/nf4/model-00001-of-00003.safetensors --record records/nf4/model-00001-of-00003.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.bitsandbytes_configuration import PRECISIONS
from ollamake.bitsandbytes_modules import treat_checkpoint
from ollamake.bitsandbytes_shard import quantize_shard, versions
from ollamake.errors import run
from ollamake.model_files import merged_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, required=True, help="what linear layers are quantized to")
    parser.add_argument("--plan", type=Path, required=True, help="the merge plan")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model, for its config.json")
    parser.add_argument("--key", required=True, help="the key of the configuration that messages name")
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: arguments of BitsAndBytesConfig")
    parser.add_argument("--shard", type=Path, required=True, help="the merged shard")
    parser.add_argument("--merge-record", type=Path, required=True, help="the record of its merge")
    parser.add_argument("--output", type=Path, required=True, help="the quantized shard")
    parser.add_argument("--record", type=Path, required=True, help="what was read and written, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    plan = json.loads(args.plan.read_text(encoding="utf-8"))
    names = [tensor["name"] for shard in plan["shards"] for tensor in shard["tensors"]]
    treated = treat_checkpoint(merged_config(args.base, plan), names, args.settings, args.key)
    merged = json.loads(args.merge_record.read_text(encoding="utf-8"))["output"]
    record = quantize_shard(args.shard, treated, args.precision, args.output)
    write_json(args.record, {"merged": merged, "settings": args.settings, "versions": versions(), **record})


if __name__ == "__main__":
    run(main)
