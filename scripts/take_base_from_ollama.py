"""Take the weights of a model that Ollama has for the base of an adapter, once they are proven to be the base's.

    python scripts/take_base_from_ollama.py --from qwen2.5:7b-instruct-q4_K_M --type Q4_K_M --plan results/m/merge_plan.json \\
        --spec '{"target": "auto", "host": null, "store": "results/ollama-store"}' --name m \\
        --output results/m/gguf/m.Q4_K_M.gguf --record results/m/gguf/m.Q4_K_M.json

The output is a symbolic link to Ollama's blob, which is neither copied nor changed.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.atomic_write import write_json, write_link
from ollamake.errors import run
from ollamake.ollama_server import PATIENCE
from ollamake.ollama_weights import find_weights, weights_record
from ollamake.record_seal import read_record
from ollamake.registration import Place
from ollamake.same_base import require_same_base


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, help="name of the model in Ollama")
    parser.add_argument("--type", required=True, help="its quantization")
    parser.add_argument("--plan", type=Path, required=True, help="the merge plan, which names the base's weights")
    parser.add_argument("--spec", type=json.loads, required=True, help="JSON: target, host, store")
    parser.add_argument("--name", required=True, help="name of the model in the configuration, for messages")
    parser.add_argument("--timeout", type=float, default=PATIENCE, help="seconds that the server may stay silent")
    parser.add_argument("--output", type=Path, required=True, help="a link to the weights")
    parser.add_argument("--record", type=Path, required=True, help="what they are, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    key = f"models.{args.name}.ollama.from"
    found = find_weights(args.source, Place(**args.spec, timeout=args.timeout), key)
    record = weights_record(found, args.source, args.output.name, args.type, key)
    plan = read_record(args.plan)
    norms = require_same_base(plan, found.blob, args.source, key)
    write_link(args.output, found.blob)
    write_json(args.record, record | {"source": {"ollama": args.source, "where": found.where, "norms": norms}})
    logging.info("%s has the base's weights: %d norms are equal to the bit, sha256 as named", args.source, norms)


if __name__ == "__main__":
    run(main)
