"""Write the files that serve a model with vLLM or Text Generation Inference: vllm.yaml, compose.yaml.

    echo '{"base": "base", "adapter": "adapter", "parameters": {"temperature": 0.1}, "port": 8000, "system": false,
    "keeps_merged": true}' | python scripts/write_serving_files.py --name m --checkpoint merged \\
        --plan results/m/plan.json --merge-plan results/m/merge_plan.json \\
        --model-files results/m/merged/model_files.json --output results/m/serve/merged/serving.json

What the user configured comes on standard input. A model whose memory is short is written all the same, and it is said.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ollamake.errors import run
from ollamake.merged_checkpoint import read_model_files
from ollamake.record_seal import read_record
from ollamake.serving_configuration import CHECKPOINTS
from ollamake.serving_files import Sources, write_serving_files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the model's name")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, required=True, help="what is served")
    parser.add_argument("--plan", type=Path, required=True, help="plan.json")
    parser.add_argument("--merge-plan", type=Path, required=True, help="merge_plan.json")
    parser.add_argument("--model-files", type=Path, required=True, help="model_files.json of the merged model")
    parser.add_argument("--output", type=Path, required=True, help="the record, beside which the files are written")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    spec = json.load(sys.stdin)
    merge_plan = read_record(args.merge_plan)
    read_model_files(args.model_files)
    sources = Sources(args.name, args.checkpoint, spec, merge_plan, args.model_files.parent)
    write_serving_files(sources, read_record(args.plan), args.output)


if __name__ == "__main__":
    run(main)
