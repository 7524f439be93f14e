"""Convert a LoRA adapter to a GGUF that Ollama and llama.cpp add to the base's while they run.

    python scripts/convert_adapter_to_gguf.py --converter .../convert_hf_to_gguf.py --plan results/m/merge_plan.json \\
        --base BASE --name m --output results/m/gguf/m.adapter.gguf --record results/m/gguf/m.adapter.json

--seen: JSON, path -> identity under which the adapter's weights were planned; it stands in the record.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ollamake.adapter_conversion import convert_adapter, require_same_update, updates_of
from ollamake.adapter_gguf import adapter_record, read_adapter_gguf
from ollamake.adapter_serving import require_servable
from ollamake.atomic_write import temporary_beside, write_json
from ollamake.errors import run
from ollamake.file_digest import state_of
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--plan", type=Path, required=True, help="the merge plan")
    parser.add_argument("--base", type=Path, required=True, help="the base's folder")
    parser.add_argument("--name", required=True, help="general.name of the GGUF")
    parser.add_argument("--seen", type=json.loads, default={}, help="JSON: path -> identity under which it was planned")
    parser.add_argument("--output", type=Path, required=True, help="the GGUF")
    parser.add_argument("--record", type=Path, required=True, help="what it is, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    plan = read_record(args.plan)
    weights = Path(plan["adapters"][0]["path"])
    require_servable(plan, args.base, weights.parent, key=f"models.{args.name}.serve")
    read = state_of(weights) | {"identity": args.seen.get(str(weights), "")}
    updates = updates_of(plan)
    with temporary_beside(args.output) as temporary:
        convert_adapter(args.converter, updates, args.base, args.name, temporary)
        converted = read_adapter_gguf(temporary)
        require_same_update(updates, converted, args.output)
        record = adapter_record(temporary, args.output.name, converted)
    write_json(args.record, record | {"base": str(args.base), "adapters": [read], "others": []})


if __name__ == "__main__":
    run(main)
