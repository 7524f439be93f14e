"""Check that an unquantized GGUF that was made again is the one that its record tells of.

python scripts/release_unquantized.py --conversion m.conversion.json --record m.unquantized.json
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.errors import run
from ollamake.unquantized_record import require_the_same


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversion", type=Path, required=True, help="what convert_to_gguf.py wrote last, as JSON")
    parser.add_argument("--record", type=Path, required=True, help="the record of the unquantized GGUF, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    require_the_same(args.conversion, args.record)
    logging.info("%s is of the same bytes", args.conversion)


if __name__ == "__main__":
    run(main)
