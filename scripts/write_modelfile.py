"""Write the Modelfile of a model and the request that registers it.

    echo '{"name": "m:q4_k_m", "system": "...", "license": [], "parameters": {}}' | \\
        python scripts/write_modelfile.py --model-files merged/model_files.json --template ollama/template.json \\
        --gguf gguf/m.Q4_K_M.gguf --modelfile ollama/Q4_K_M/Modelfile --request ollama/Q4_K_M/create_request.json

What the user configured comes on standard input, since a system prompt may be longer than an argument may be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path, PurePosixPath

from ollamake.atomic_write import write_json, write_sealed_text
from ollamake.create_request import compose_request
from ollamake.errors import run
from ollamake.generation_defaults import generation_parameters, special_tokens
from ollamake.merged_checkpoint import read_model_files
from ollamake.modelfile import modelfile_text
from ollamake.planned_context import num_ctx_of_plan
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-files", type=Path, required=True, help="model_files.json, beside the files it lists")
    parser.add_argument("--template", type=Path, required=True, help="the record of the template")
    parser.add_argument("--plan", type=Path, nargs="*", default=[], help="plan.json, if it gives num_ctx")
    parser.add_argument("--gguf", type=Path, required=True, help="the GGUF that the Modelfile names")
    parser.add_argument("--adapter", type=Path, nargs="?", help="the GGUF of an adapter beside it")
    parser.add_argument("--modelfile", type=Path, required=True, help="the Modelfile")
    parser.add_argument("--request", type=Path, required=True, help="the create request, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    spec, folder = json.load(sys.stdin), args.model_files.parent
    files = read_model_files(args.model_files)["files"]
    defaults = {}
    if "generation_config.json" in files:
        defaults = generation_parameters(folder / "generation_config.json", special_tokens(folder))
    template = read_record(args.template)
    planned = [num_ctx_of_plan(read_record(plan), spec["quantization"]) for plan in args.plan]
    ggufs = [args.gguf, *([args.adapter] if args.adapter else [])]
    gguf, *adapter = (file.name for file in ggufs)
    request = compose_request(spec, gguf, template, defaults, next(iter(planned), None), *adapter)
    beside = [PurePosixPath(os.path.relpath(file, args.modelfile.parent)) for file in ggufs]
    write_sealed_text(args.modelfile, modelfile_text(request, *beside))
    write_json(args.request, request.as_json())


if __name__ == "__main__":
    run(main)
