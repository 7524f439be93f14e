"""Stop a quantization that is beyond a limit of quality before it is registered, or warn of it.

python scripts/judge_quality.py --type Q4_K_M --quality results/m/quality.json --output Q4_K_M.verdict.json
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import OllamakeError, run
from ollamake.quality_gate import judge, refusal
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", required=True, help="the quantization that is judged")
    parser.add_argument("--quality", type=Path, required=True, help="quality.json, as summarize_quality.py wrote it")
    parser.add_argument("--output", type=Path, required=True, help="the verdict, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    quality = read_record(args.quality)
    verdict = judge(quality, args.type)
    if verdict["passes"] is False:
        message = refusal(quality, verdict)
        if verdict["on_fail"] == "stop":
            raise OllamakeError(message)
        logging.warning("warning: %s", message)
    write_json(args.output, verdict)


if __name__ == "__main__":
    run(main)
