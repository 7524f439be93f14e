"""Fail if a registered quantization answers too few of the user's questions rightly, or warn of it.

python scripts/check_answers.py --answers results/m/answers.json --output results/m/answers.verdict.json
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ollamake.answers_gate import judge, refusal
from ollamake.atomic_write import write_json
from ollamake.errors import OllamakeError, run
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="answers.json, as compare_answers.py wrote it")
    parser.add_argument("--output", type=Path, required=True, help="the verdict, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    comparison = read_record(args.answers)
    verdict = judge(comparison)
    if not verdict["passes"]:
        message = refusal(comparison)
        if verdict["on_fail"] == "stop":
            raise OllamakeError(message)
        logging.warning("warning: %s", message)
    write_json(args.output, verdict)


if __name__ == "__main__":
    run(main)
