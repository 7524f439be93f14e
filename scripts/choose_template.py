"""Choose how a model's conversations are written in Ollama, and prove it where it can be proven.

    python scripts/choose_template.py --model-files merged/model_files.json --record gguf/m.unquantized.json \\
        --policy auto --output ollama/template.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.merged_checkpoint import read_model_files
from ollamake.prompt_template import prompt_template
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-files", type=Path, required=True, help="model_files.json beside the chat template")
    parser.add_argument("--record", type=Path, required=True, help="the record of the GGUF")
    parser.add_argument("--policy", required=True, help="auto, gguf, a TEMPLATE, or - for a TEMPLATE on standard input")
    parser.add_argument("--output", type=Path, required=True, help="the record of the template")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    template_file = read_model_files(args.model_files)["chat_template"]
    tokenizer = read_record(args.record)["tokenizer"]
    policy = json.load(sys.stdin) if args.policy == "-" else args.policy
    write_json(args.output, prompt_template(args.model_files.parent, template_file, policy, tokenizer))


if __name__ == "__main__":
    run(main)
