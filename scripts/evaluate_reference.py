"""Measure the perplexity of the unquantized GGUF, and keep its log-probabilities, with llama.cpp's llama-perplexity.

    python scripts/evaluate_reference.py --program llama-perplexity --gguf m.unquantized.gguf \\
        --source-record m.unquantized.json --text evaluation.txt --text-record evaluation.json --logits reference.kld \\
        --record reference.json --threads 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.perplexity_reference import EvaluationText, evaluate_reference
from ollamake.proven_inputs import Recorded, proven
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="llama-perplexity")
    parser.add_argument("--gguf", type=Path, required=True, help="the unquantized GGUF")
    parser.add_argument("--source-record", type=Path, required=True, help="its record")
    parser.add_argument("--text", type=Path, required=True, help="the evaluation text")
    parser.add_argument("--text-record", type=Path, required=True, help="its record")
    parser.add_argument(
        "--logits", type=Path, required=True, help="the log-probabilities, or a note that they do not fit"
    )
    parser.add_argument("--record", type=Path, required=True, help="the perplexity, as JSON")
    parser.add_argument("--threads", type=int, required=True, help="threads of llama-perplexity")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    source = read_record(args.source_record)
    text = EvaluationText(args.text, read_record(args.text_record))
    with proven([Recorded.by(args.gguf, source), Recorded.by(args.text, text.record)]):
        record = evaluate_reference(args.program, args.gguf, source, text, args.logits, args.threads)
    write_json(args.record, record)


if __name__ == "__main__":
    run(main)
