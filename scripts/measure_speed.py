"""Measure the speed of a GGUF on this machine with llama.cpp's llama-bench.

    python scripts/measure_speed.py --program llama-bench --type Q4_K_M --gguf m.Q4_K_M.gguf --gguf-record m.Q4_K_M.json \\
        --output Q4_K_M.speed.json --threads 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.proven_inputs import Recorded, require_proven
from ollamake.record_seal import read_record
from ollamake.speed_run import measure_speed


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="llama-bench")
    parser.add_argument("--type", required=True, help="the type of the GGUF")
    parser.add_argument("--gguf", type=Path, required=True, help="the GGUF")
    parser.add_argument("--gguf-record", type=Path, required=True, help="its record")
    parser.add_argument("--output", type=Path, required=True, help="the speed, as JSON")
    parser.add_argument("--threads", type=int, required=True, help="threads of llama-bench")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    record = read_record(args.gguf_record)
    # Before, not beside: a core that hashes would be missed.
    require_proven([Recorded.by(args.gguf, record)])
    write_json(args.output, measure_speed(args.program, args.gguf, record, args.type, args.threads))


if __name__ == "__main__":
    run(main)
