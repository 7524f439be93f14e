"""Register a model in Ollama, check what it then holds, and write the registration marker.

    python scripts/register.py --request create_request.json --gguf m.Q4_K_M.gguf --record m.Q4_K_M.json \\
        --spec '{"target": "auto", "host": null, "store": "results/ollama-store"}' --output registered.json
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.adapter_gguf import require_fitting
from ollamake.atomic_write import write_json
from ollamake.create_request import read_create_request
from ollamake.errors import run
from ollamake.ollama_server import PATIENCE
from ollamake.record_seal import read_record
from ollamake.registration import Place, register


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--request", type=Path, required=True, help="the create request")
    parser.add_argument("--gguf", type=Path, required=True, help="the weights")
    parser.add_argument("--record", type=Path, required=True, help="their record, with size and sha256")
    parser.add_argument("--adapter", type=Path, nargs="?", help="the GGUF of an adapter beside the weights")
    parser.add_argument("--adapter-record", type=Path, nargs="?", help="its record, with size and sha256")
    parser.add_argument("--spec", type=json.loads, required=True, help="JSON: target, host, store")
    parser.add_argument("--timeout", type=float, default=PATIENCE, help="seconds that the server may stay silent")
    parser.add_argument("--output", type=Path, required=True, help="the registration marker")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    record = read_record(args.record)
    request = read_create_request(args.request)
    adapter = None
    if args.adapter is not None:
        require_fitting(args.adapter, args.gguf)
        adapter = (args.adapter, read_record(args.adapter_record))
    marker = register(request, args.gguf, record, Place(**args.spec, timeout=args.timeout), adapter)
    write_json(args.output, marker)
    logging.info("%s is registered (%s), checked by digest", marker["name"], marker.get("host") or marker["store"])


if __name__ == "__main__":
    run(main)
