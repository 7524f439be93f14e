"""Measure what a model will take, in bytes and MiB, by llama.cpp's own programs and without its weights.

    python scripts/measure_ghost.py --plan results/m/merge_plan.json --spec '{"base": "BASE", "adapters": ["ADAPTER"]}' \\
        --name m --converter .../convert_hf_to_gguf.py --llama-quantize .../llama-quantize \\
        --llama-fit-params .../llama-fit-params --context 8192 --parallel 1 --output results/m/ghost.json

With --shape config/shapes/ORG/REPO.yaml in place of --plan and --spec: a fine-tune of that model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.ghost_measurement import Programs, Wanted, measure_merge, measure_shape
from ollamake.record_seal import read_record
from ollamake.shape import read_shape


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--plan", type=Path, help="the merge plan")
    model.add_argument("--shape", type=Path, help="the shape of a model")
    parser.add_argument("--spec", type=json.loads, help="JSON: base, adapters; with --plan")
    parser.add_argument("--name", help="general.name of the GGUF; with --plan")
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--llama-quantize", type=Path, required=True, help="the program")
    parser.add_argument("--llama-fit-params", type=Path, nargs="?", help="the program; without it memory is computed")
    parser.add_argument("--context", type=int, nargs="*", default=[], help="further contexts, tokens a slot")
    parser.add_argument("--parallel", type=int, nargs="*", default=[], help="further numbers of slots")
    parser.add_argument("--output", type=Path, required=True, help="ghost.json")
    args = parser.parse_args(argv)
    if args.plan and not (args.spec and args.name):
        parser.error("--plan needs --spec and --name")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    programs = Programs(args.converter, args.llama_quantize, args.llama_fit_params)
    wanted = Wanted(contexts=args.context, parallel=args.parallel)
    if args.plan:
        plan = read_record(args.plan)
        base, adapters = Path(args.spec["base"]), [Path(adapter) for adapter in args.spec["adapters"]]
        ghost = measure_merge(plan, base, adapters, args.name, str(args.plan), programs, wanted)
    else:
        ghost = measure_shape(read_shape(args.shape), programs, wanted)
    write_json(args.output, ghost)


if __name__ == "__main__":
    run(main)
