"""Check a server that speaks OpenAI's API: vLLM, TGI, llama-server, Ollama's /v1. Says what it has checked, or what fails.

    python scripts/check_endpoint.py --url http://127.0.0.1:8000/v1 --model my-model \\
        --tokenizer results/my-model/merged --context 8192 --questions questions.jsonl

It lists its models; it answers at once and as a stream, and stops by itself; a conversation may be as long as expected; a
prompt has as many tokens as the chat template gives; questions are answered rightly. A key is taken from OPENAI_API_KEY.
Exit code 1 for what fails.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from ollamake.endpoint import Endpoint
from ollamake.endpoint_check import NOT_CHECKED, Expected, check_endpoint
from ollamake.errors import run
from ollamake.questions import read_questions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="address of the API, with /v1 at its end")
    parser.add_argument("--model", help="name of the model; not needed where there is one")
    parser.add_argument("--context", type=int, help="tokens that a conversation may have at least")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer and chat template: results/NAME/merged")
    parser.add_argument("--questions", type=Path, help="questions, one JSON object a line, as of answers.questions")
    parser.add_argument("--min-score", type=float, default=0.8, help="share of right answers (default: 0.8)")
    parser.add_argument("--message", default="Hello", help="what is asked without questions (default: Hello)")
    parser.add_argument("--max-tokens", type=int, default=512, help="most tokens of an answer (default: 512)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that the server may stay silent")
    parser.add_argument("--api-key-env", default="OPENAI_API_KEY", help="environment variable with the key")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    questions = read_questions(args.questions, "--questions") if args.questions else []
    expected = Expected(
        args.model, args.context, args.tokenizer, questions, args.min_score, args.message, args.max_tokens
    )
    with Endpoint(args.url, os.environ.get(args.api_key_env), args.api_key_env, args.timeout) as endpoint:
        found = check_endpoint(endpoint, expected)
    done = [sentence for sentence in found if not sentence.startswith(NOT_CHECKED)]
    logging.info("%d checks passed, %d left out", len(done), len(found) - len(done))


if __name__ == "__main__":
    run(main)
