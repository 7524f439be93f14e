"""Make a RAG application use a registered model: set its keys in the application's YAML, and change nothing else there.

    python scripts/write_rag_config.py --marker results/m/ollama/Q4_K_M/registered.json \\
        --spec '{"file": "app/config.yaml"}' --dry-run

    python scripts/write_rag_config.py --marker results/m/ollama/Q4_K_M/registered.json \\
        --spec '{"file": "app/config.yaml", "keys": {"ollama_model": "llm.ollama_model"}, "use_ollama_fallback": true,
        "backup": true}' --output results/m/ollama/rag_config.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.rag_update import read_marker, update_rag_file


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--marker", type=Path, required=True, help="the registration marker of the model")
    parser.add_argument(
        "--spec", required=True, help="JSON: file; if wanted keys, use_ollama_fallback, backup; see above"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and write nothing")
    parser.add_argument("--output", type=Path, help="the record of what was written, as JSON")
    args = parser.parse_args(argv)
    if (args.output is None) != args.dry_run:
        parser.error("--output is needed to write, and --dry-run has none")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    record = update_rag_file(read_marker(args.marker), json.loads(args.spec), args.dry_run)
    if not args.dry_run:
        write_json(args.output, record | {"spec": args.spec})


if __name__ == "__main__":
    run(main)
