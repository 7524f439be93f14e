"""Record what the unquantized GGUF is, and what it was made from.

python scripts/record_conversion.py --conversion m.conversion.json --spec '{}' --output m.unquantized.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.record_seal import read_record
from ollamake.unquantized_record import unquantized_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversion", type=Path, required=True, help="what convert_to_gguf.py wrote, as JSON")
    parser.add_argument("--spec", required=True, help="what it depends on beside files of the workflow, as text")
    parser.add_argument("--output", type=Path, required=True, help="the record, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    conversion = read_record(args.conversion)
    write_json(args.output, unquantized_record(conversion, args.spec))


if __name__ == "__main__":
    run(main)
