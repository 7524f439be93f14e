"""Make sure that everything of a model was measured against the same fine-tune, on the same text.

python scripts/gather_quality.py --measured quality/base.json quality/Q4_K_M.json --output quality/measured.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.quality_identity import gathered


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, nargs="+", required=True, help="what evaluate_quality.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="of which files it was measured, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    records = {str(file): json.loads(file.read_text(encoding="utf-8")) for file in args.measured}
    write_json(args.output, gathered(records))


if __name__ == "__main__":
    run(main)
