"""Compare a quantization, or the base, with the unquantized fine-tune, with llama.cpp's llama-perplexity.

    python scripts/evaluate_quality.py --program llama-perplexity --measured Q4_K_M --gguf m.Q4_K_M.gguf \\
        --gguf-record m.Q4_K_M.json --logits reference.kld --reference-gguf m.unquantized.gguf \\
        --reference-record reference.json --text evaluation.txt --text-record evaluation.json --output Q4_K_M.json --threads 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.perplexity_comparison import Measured, Reference, evaluate_quality
from ollamake.perplexity_reference import EvaluationText
from ollamake.proven_inputs import Recorded, proven
from ollamake.record_seal import read_record
from ollamake.unquantized_record import require_gguf


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="llama-perplexity")
    parser.add_argument("--measured", required=True, help="the type of the GGUF, or base")
    parser.add_argument("--gguf", type=Path, required=True, help="the GGUF that is measured")
    parser.add_argument("--gguf-record", type=Path, required=True, help="its record")
    parser.add_argument("--logits", type=Path, required=True, help="the log-probabilities of the reference")
    parser.add_argument("--reference-gguf", type=Path, required=True, help="the reference: the unquantized GGUF")
    parser.add_argument("--reference-record", type=Path, required=True, help="what evaluate_reference found")
    parser.add_argument("--text", type=Path, required=True, help="the evaluation text")
    parser.add_argument("--text-record", type=Path, required=True, help="its record")
    parser.add_argument("--spec", default="", help="what the figures depend on beside the files; stands in the output")
    parser.add_argument("--output", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--threads", type=int, required=True, help="threads of llama-perplexity")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for gguf in (args.gguf, args.reference_gguf):
        require_gguf(gguf)
    records = (args.gguf_record, args.reference_record, args.text_record)
    gguf_record, reference_record, text_record = (read_record(path) for path in records)
    measured = Measured(args.measured, args.gguf, gguf_record)
    reference = Reference(args.reference_gguf, args.logits, reference_record)
    text = EvaluationText(args.text, text_record)
    read = [Recorded.by(args.gguf, gguf_record), Recorded.by(args.text, text_record)]
    if reference_record["piped"] or not args.logits.exists():
        read.append(Recorded(args.reference_gguf, reference_record["gguf_sha256"]))
    with proven(read):
        figures = evaluate_quality(args.program, measured, reference, text, args.threads)
    write_json(args.output, figures | {"spec": args.spec})


if __name__ == "__main__":
    run(main)
