"""Compare a bitsandbytes checkpoint with the merged weights, with transformers on the CPU, on the text of the GGUFs.

    python scripts/evaluate_bitsandbytes.py --precision nf4 --checkpoint bitsandbytes/nf4 --record bitsandbytes/nf4.json \\
        --merged merged --unquantized-record gguf/m.unquantized.json --text quality/evaluation.txt \\
        --text-record quality/evaluation.json --output quality/nf4.json --threads 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ollamake.atomic_write import write_json
from ollamake.bitsandbytes_configuration import PRECISIONS
from ollamake.bitsandbytes_shard import require_merged
from ollamake.checkpoint_evaluation import compare_checkpoints, require_same_weights, versions
from ollamake.errors import run
from ollamake.merged_checkpoint import recorded_shards
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
    torch.set_num_threads(args.threads)
    files = (args.record, args.unquantized_record, args.text_record)
    record, unquantized, text_record = (read_record(file) for file in files)
    require_same_weights(record, args.checkpoint)
    for name in record["files"]:
        if name.endswith(".safetensors"):
            require_merged(args.merged / name)
    tokenizer = unquantized["tokenizer"]
    bos = tokenizer["bos"] if tokenizer["adds_bos"] else None
    shards = [name for name in record["files"] if name.endswith(".safetensors")]
    read = [
        Recorded(args.checkpoint / name, entry["sha256"], () if name in shards else (args.record,))
        for name, entry in record["files"].items()
    ]
    merged = recorded_shards(args.merged, [args.merge_records / f"{Path(name).stem}.json" for name in shards])
    with proven([*read, *merged, Recorded.by(args.text, text_record)]):
        figures = compare_checkpoints(args.merged, args.checkpoint, EvaluationText(args.text, text_record), bos)
    about = {"measured": args.precision, "size": record["bytes"], "text_sha256": text_record["sha256"]}
    about |= {name: record[name] for name in ("bits_per_weight", "weights_sha256")}
    write_json(args.output, about | figures | {"versions": versions(), "spec": args.spec})


if __name__ == "__main__":
    run(main)
