"""Check what a model is to be built from, and with what, before anything heavy starts.

python scripts/check_inputs.py --model m --spec '{"base": "BASE", "adapters": [], "made_here": [], "dtype": "auto",
    "quantizations": ["Q4_K_M"], "target": "auto", "host": null, "store": "results/ollama-store", "questions": null,
    "compiler_needed": false, "tools": [], "keep_merged": true, "keep_unquantized": true, "disk_gib": null}'
    --now '{"chosen": [], "builds_llama_cpp": false, "jobs_run_here": true, "others": [{"name": "other", "base_bytes": 988097824,
    "quantizations": ["Q4_K_M", "auto"]}]}' --output results/m/inputs.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.file_digest import state_of
from ollamake.input_checks import check_inputs, refuse_incomplete


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model's name in the configuration")
    parser.add_argument("--spec", type=json.loads, required=True, help="JSON: what to check, see above")
    parser.add_argument(
        "--now", type=json.loads, default="{}", help="JSON: what may change without a new check, see above"
    )
    parser.add_argument("--read", type=Path, nargs="*", default=[], help="small files whose state is recorded")
    parser.add_argument("--output", type=Path, required=True, help="what was found, as JSON: results/MODEL/inputs.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    refuse_incomplete(args.spec, args.now)
    found = check_inputs(args.model, args.spec, args.output.parent.parent, args.now)
    write_json(args.output, found | {"read": [state_of(file) for file in args.read]})


if __name__ == "__main__":
    run(main)
