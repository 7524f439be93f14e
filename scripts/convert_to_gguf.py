"""Convert a merged checkpoint to an unquantized GGUF with llama.cpp's converter.

    python scripts/convert_to_gguf.py --converter .../convert_hf_to_gguf.py --plan results/m/merge_plan.json \\
        --manifest results/m/merged/model_files.json --records results/m/merge_records/*.json --name m \\
        --output results/m/gguf/m.unquantized.gguf --record results/m/gguf/m.unquantized.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import temporary_beside, write_json
from ollamake.errors import run
from ollamake.free_disk import require_free_disk
from ollamake.gguf_conversion import convert, outtype_for, require_own_head
from ollamake.gguf_record import gguf_record
from ollamake.merged_checkpoint import recorded_shards, require_whole
from ollamake.proven_inputs import proven
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--plan", type=Path, required=True, help="the merge plan")
    parser.add_argument("--manifest", type=Path, required=True, help="model_files.json in the checkpoint's folder")
    parser.add_argument("--records", type=Path, nargs="*", default=[], help="the records of the merged shards")
    parser.add_argument("--name", required=True, help="general.name of the GGUF")
    parser.add_argument("--output", type=Path, required=True, help="the GGUF")
    parser.add_argument("--record", type=Path, required=True, help="what it is, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    plan = read_record(args.plan)
    size = require_whole(args.manifest, plan)
    require_free_disk(args.output.parent, size, f"the unquantized GGUF of {args.name}")
    outtype = outtype_for(plan)
    shards = recorded_shards(args.manifest.parent, args.records)
    with temporary_beside(args.output) as temporary:
        with proven(shards):
            convert(args.converter, args.manifest.parent, outtype, args.name, temporary)
        require_own_head(temporary, plan)
        record = gguf_record(temporary, args.output.name, outtype.upper())
    write_json(args.record, record)


if __name__ == "__main__":
    run(main)
