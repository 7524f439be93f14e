"""Quantize one shard of a merged checkpoint with bitsandbytes, as transformers would save it.

    python scripts/quantize_bitsandbytes.py --precision nf4 --layers records/nf4/plan.json \\
        --shard merged/model-00001-of-00003.safetensors --merge-record merge_records/model-00001-of-00003.json \\
        --output bitsandbytes/nf4/model-00001-of-00003.safetensors --record records/nf4/model-00001-of-00003.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.bitsandbytes_configuration import PRECISIONS
from ollamake.bitsandbytes_shard import quantize_shard, require_merged, versions
from ollamake.bitsandbytes_treatment import TreatedCheckpoint
from ollamake.errors import run
from ollamake.proven_inputs import Recorded, proven
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, required=True, help="what linear layers are quantized to")
    parser.add_argument("--layers", type=Path, required=True, help="what plan_bitsandbytes found")
    parser.add_argument("--shard", type=Path, required=True, help="the merged shard")
    parser.add_argument("--merge-record", type=Path, required=True, help="the record of its merge")
    parser.add_argument("--spec", default="", help="what the bytes depend on beside the files; stands in the record")
    parser.add_argument("--output", type=Path, required=True, help="the quantized shard")
    parser.add_argument("--record", type=Path, required=True, help="what was read and written, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    require_merged(args.shard)
    layers = read_record(args.layers)
    merged = read_record(args.merge_record)["output"]
    with proven([Recorded.by(args.shard, merged)]):
        record = quantize_shard(args.shard, TreatedCheckpoint.from_json(layers), args.precision, args.output)
    about = {"merged": merged, "settings": layers["settings"], "versions": versions(), "spec": args.spec}
    write_json(args.record, about | record)


if __name__ == "__main__":
    run(main)
