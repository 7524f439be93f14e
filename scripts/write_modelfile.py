"""Write the Modelfile of a model and the request that registers it.

    python scripts/write_modelfile.py --model-files merged/model_files.json \\
        --spec '{"name": "m:q4_k_m", "system": "...", "parameters": {}}' --gguf gguf/m.Q4_K_M.gguf \\
        --modelfile ollama/Q4_K_M/Modelfile --request ollama/Q4_K_M/create_request.json
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path, PurePosixPath

from ollamake.atomic_write import write_json, write_text
from ollamake.chat_template import template_family
from ollamake.create_request import CreateRequest
from ollamake.errors import run
from ollamake.modelfile import modelfile_text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-files", type=Path, required=True, help="model_files.json beside the chat template")
    parser.add_argument("--spec", type=json.loads, required=True, help="JSON: name, system, parameters")
    parser.add_argument("--gguf", type=Path, required=True, help="the GGUF that the Modelfile names")
    parser.add_argument("--modelfile", type=Path, required=True, help="the Modelfile")
    parser.add_argument("--request", type=Path, required=True, help="the create request, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    template_file = json.loads(args.model_files.read_text(encoding="utf-8"))["chat_template"]
    family = None
    if template_file is not None:
        family = template_family((args.model_files.parent / template_file).read_bytes().decode("utf-8"))
    parameters = dict(args.spec["parameters"])
    if family is not None:
        parameters.setdefault("stop", list(family.stop))
    template = family.go_template if family is not None else None
    request = CreateRequest(args.spec["name"], args.gguf.name, args.spec["system"], template, parameters)
    beside = PurePosixPath(os.path.relpath(args.gguf, args.modelfile.parent))
    write_text(args.modelfile, modelfile_text(request, beside))
    write_json(args.request, request.as_json())


if __name__ == "__main__":
    run(main)
