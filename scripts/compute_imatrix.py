"""Compute the importance matrix of a model on a text, with llama.cpp's llama-imatrix.

    python scripts/compute_imatrix.py --program llama-imatrix --gguf m.unquantized.gguf --source-record m.unquantized.json \\
        --text calibration.txt --text-record calibration.json --output m.imatrix.gguf --record m.imatrix.json --threads 8

Run again after it was killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.atomic_write import temporary_beside, write_json
from ollamake.errors import run
from ollamake.importance_file import importance_record
from ollamake.importance_matrix import Calibration, compute_importance, of_whole_files
from ollamake.proven_inputs import Recorded
from ollamake.record_seal import read_record
from ollamake.unquantized_record import require_gguf

log = logging.getLogger("ollamake")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="llama-imatrix")
    parser.add_argument("--gguf", type=Path, required=True, help="the unquantized GGUF")
    parser.add_argument("--source-record", type=Path, required=True, help="its record")
    parser.add_argument("--text", type=Path, required=True, help="the calibration text")
    parser.add_argument("--text-record", type=Path, required=True, help="its record")
    parser.add_argument("--spec", default="{}", help="what the result depends on beside its files, kept in the record")
    parser.add_argument("--output", type=Path, required=True, help="the importance matrix")
    parser.add_argument("--record", type=Path, required=True, help="what it is, as JSON")
    parser.add_argument("--threads", type=int, required=True, help="threads of llama-imatrix")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    require_gguf(args.gguf)
    source, text = (read_record(path) for path in (args.source_record, args.text_record))
    reading = Calibration(args.text, text["sha256"], text["chunks"], text["context"], text["parse_special"])
    log.info("reading %d chunks of %d tokens with the unquantized model", reading.chunks, reading.context)
    partial = args.output.with_name(f".{args.output.name}.partial")
    with temporary_beside(args.output) as temporary:
        with of_whole_files([Recorded.by(args.gguf, source), Recorded.by(args.text, text)], partial):
            compute_importance(args.program, args.gguf, source["sha256"], reading, temporary, partial, args.threads)
        record = importance_record(temporary, args.gguf, source, text)
    write_json(args.record, record | {"spec": args.spec})
    partial.unlink(missing_ok=True)
    for warning in record["warnings"]:
        log.warning("%s: %s", args.output, warning)


if __name__ == "__main__":
    run(main)
