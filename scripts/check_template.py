"""Check that a registered model is prompted as its tokenizer prompts it, token for token, and stops where it should.

    python scripts/check_template.py --marker ollama/Q4_K_M/registered.json --template ollama/template.json \\
        --model-files merged/model_files.json --record gguf/m.Q4_K_M.json --gguf gguf/m.Q4_K_M.gguf \\
        --tokenize llama-tokenize --spec '{"differs": "stop"}' --output template_check.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.ollama_server import PATIENCE
from ollamake.proven_inputs import Recorded, proven
from ollamake.record_seal import read_record
from ollamake.template_check import check_template


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--marker", type=Path, required=True, help="the registration marker")
    parser.add_argument("--template", type=Path, required=True, help="the record of the template")
    parser.add_argument("--model-files", type=Path, required=True, help="model_files.json beside the tokenizer")
    parser.add_argument("--record", type=Path, required=True, help="the record of the GGUF")
    parser.add_argument("--gguf", type=Path, required=True, help="the GGUF, of which the tokenizer is read")
    parser.add_argument("--tokenize", type=Path, required=True, help="llama-tokenize")
    parser.add_argument("--serve", type=Path, nargs="?", help="llama-server, if there is one")
    parser.add_argument("--spec", required=True, help="JSON: differs (stop or warn), and what else is to be remembered")
    parser.add_argument("--timeout", type=float, default=PATIENCE, help="seconds that the server may stay silent")
    parser.add_argument("--output", type=Path, required=True, help="what was found, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    marker, template, record = (read_record(file) for file in (args.marker, args.template, args.record))
    folder = args.model_files.parent
    programs, stops = (args.tokenize, args.serve), json.loads(args.spec)["differs"] == "stop"
    with proven([Recorded.by(args.gguf, record)]):
        result = check_template(marker, template, record, folder, args.gguf, *programs, stops, args.timeout)
    write_json(args.output, result | {"spec": args.spec})


if __name__ == "__main__":
    run(main)
