"""Ask a registered model the user's questions.

    python scripts/ask_questions.py --marker ollama/Q4_K_M/registered.json --questions questions.jsonl \\
        --spec '{"max_tokens": 512}' --output ollama/Q4_K_M/answers.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.answers import ask
from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.ollama_server import PATIENCE
from ollamake.questions import read_questions
from ollamake.record_seal import read_record
from ollamake.store_server import server_of


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--marker", type=Path, required=True, help="the registration marker")
    parser.add_argument("--questions", type=Path, required=True, help="the questions, one JSON object a line")
    parser.add_argument(
        "--spec", required=True, help="JSON: max_tokens of an answer, and what else is to be remembered"
    )
    parser.add_argument("--timeout", type=float, default=PATIENCE, help="seconds that the server may stay silent")
    parser.add_argument("--output", type=Path, required=True, help="the answers, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    marker = read_record(args.marker)
    questions = read_questions(args.questions)
    with server_of(marker, args.timeout) as server:
        answers = ask(server, marker["name"], questions, json.loads(args.spec)["max_tokens"])
    write_json(args.output, answers | {"spec": args.spec})


if __name__ == "__main__":
    run(main)
