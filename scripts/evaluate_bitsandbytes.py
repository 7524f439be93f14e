"""Compare a bitsandbytes checkpoint with the merged weights, with transformers on the CPU, on the text of the GGUFs.

    python scripts/evaluate_bitsandbytes.py --precision nf4 --checkpoint bitsandbytes/nf4 --record bitsandbytes/nf4.json \\
        --merged merged --merge-records merge_records --unquantized-record gguf/m.unquantized.json \\
        --text quality/evaluation.txt --text-record quality/evaluation.json --output quality/nf4.json --threads 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.bitsandbytes_configuration import PRECISIONS
from ollamake.checkpoint_evaluation import about_checkpoint, compare_checkpoints, recorded_files, recorded_merged
from ollamake.errors import run
from ollamake.perplexity_reference import EvaluationText
from ollamake.proven_inputs import Recorded, proven
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, required=True, help="what is measured")
    parser.add_argument("--checkpoint", type=Path, required=True, help="its folder")
    parser.add_argument("--record", type=Path, required=True, help="its record")
    parser.add_argument("--merged", type=Path, required=True, help="the folder of the merged weights")
    parser.add_argument("--merge-records", type=Path, required=True, help="the folder of the records of these")
    parser.add_argument("--unquantized-record", type=Path, required=True, help="the record of the unquantized GGUF")
    parser.add_argument("--text", type=Path, required=True, help="the evaluation text")
    parser.add_argument("--text-record", type=Path, required=True, help="its record")
    parser.add_argument("--spec", default="", help="what the figures depend on beside the files; stands in the output")
    parser.add_argument("--output", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--threads", type=int, required=True, help="threads of torch")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    record, unquantized, text_record = map(read_record, (args.record, args.unquantized_record, args.text_record))
    files = [*recorded_files(args.record, record), *recorded_merged(record, args.merged, args.merge_records)]
    bos = unquantized["tokenizer"]["bos"] if unquantized["tokenizer"]["adds_bos"] else None
    with proven([*files, Recorded.by(args.text, text_record)]):
        text = EvaluationText(args.text, text_record)
        figures = compare_checkpoints(args.merged, args.checkpoint, text, bos, threads=args.threads)
    about = {"measured": args.precision, "text_sha256": text_record["sha256"], "spec": args.spec}
    write_json(args.output, about_checkpoint(record) | about | figures)


if __name__ == "__main__":
    run(main)
