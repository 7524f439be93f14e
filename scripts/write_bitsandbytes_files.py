"""Write config, index and tokenizer of a bitsandbytes checkpoint, and its record.

    python scripts/write_bitsandbytes_files.py --precision nf4 --layers records/nf4/plan.json --settings '{"load_in_4bit": true,
        "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true, "bnb_4bit_compute_dtype": "bfloat16"}' \\
        --manifest merged/model_files.json --records records/nf4/model-*.json --output bitsandbytes/nf4 \\
        --record bitsandbytes/nf4.json
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.bitsandbytes_configuration import PRECISIONS
from ollamake.bitsandbytes_files import write_bitsandbytes_files
from ollamake.bitsandbytes_treatment import TreatedCheckpoint
from ollamake.errors import run
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, required=True, help="what linear layers are quantized to")
    parser.add_argument("--layers", type=Path, required=True, help="what plan_bitsandbytes found")
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: arguments of BitsAndBytesConfig")
    parser.add_argument("--manifest", type=Path, required=True, help="model_files.json of the merged checkpoint")
    parser.add_argument("--records", type=Path, nargs="+", required=True, help="the records of the quantized shards")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the quantized shards")
    parser.add_argument("--record", type=Path, required=True, help="what the checkpoint is, as JSON; written last")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    treated = TreatedCheckpoint.from_json(read_record(args.layers))
    shards = [read_record(file) for file in args.records]
    record = write_bitsandbytes_files(args.manifest, shards, treated, args.settings, args.output)
    write_json(args.record, {"precision": args.precision, "versions": shards[0]["versions"], **record})
    for warning in record["warnings"]:
        logging.warning("warning: %s", warning)
    logging.info(
        "%d matrices in %s: %.2f GB, %.2f bits a weight; the merged weights take %.2f GB",
        *(record["quantized"], args.precision, record["bytes"] / 1e9, record["bits_per_weight"]),
        record["merged_bytes"] / 1e9,
    )


if __name__ == "__main__":
    run(main)
