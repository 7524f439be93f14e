"""Quantize a GGUF with llama.cpp's llama-quantize.

    python scripts/quantize.py --program llama-quantize --gguf m.unquantized.gguf --source-record m.unquantized.json \\
        --type Q4_K_M --output m.Q4_K_M.gguf --record m.Q4_K_M.json --threads 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import temporary_beside, write_json
from ollamake.errors import run
from ollamake.free_disk import require_free_disk
from ollamake.gguf_quantization import quantize, type_argument
from ollamake.gguf_record import estimated_size, gguf_record, importance_of
from ollamake.proven_inputs import Recorded, proven
from ollamake.record_seal import read_record
from ollamake.unquantized_record import require_gguf


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="llama-quantize")
    parser.add_argument("--gguf", type=Path, required=True, help="the unquantized GGUF")
    parser.add_argument("--source-record", type=Path, required=True, help="its record")
    parser.add_argument("--type", required=True, help="the type, by llama-quantize's name")
    parser.add_argument("--spec", default="{}", help="what the result depends on beside its files, kept in the record")
    parser.add_argument("--output", type=Path, required=True, help="the quantized GGUF")
    parser.add_argument("--record", type=Path, required=True, help="what it is, as JSON")
    parser.add_argument("--threads", type=int, required=True, help="threads of llama-quantize")
    parser.add_argument(
        "--imatrix", type=Path, nargs="?", help="importance matrix of that GGUF, for types that use one"
    )
    parser.add_argument("--imatrix-record", type=Path, nargs="?", help="its record; with --imatrix")
    args = parser.parse_args(argv)
    if (args.imatrix is None) is not (args.imatrix_record is None):
        parser.error("--imatrix and --imatrix-record need each other")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    require_gguf(args.gguf)
    source = read_record(args.source_record)
    made_with = {} if args.imatrix is None else importance_of(args.imatrix_record, args.type, source)
    require_free_disk(args.output.parent, estimated_size(source, args.type), f"the {args.type} GGUF")
    read = [Recorded.by(args.gguf, source)]
    read += [] if args.imatrix is None else [Recorded.by(args.imatrix, made_with["imatrix"])]
    with temporary_beside(args.output) as temporary:
        kind = type_argument(args.type, source["type"])
        with proven(read):
            quantize(args.program, args.gguf, temporary, kind, args.threads, args.imatrix)
        record = gguf_record(temporary, args.output.name, args.type)
    write_json(args.record, record | {"source_sha256": source["sha256"], "spec": args.spec} | made_with)


if __name__ == "__main__":
    run(main)
