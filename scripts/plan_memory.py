"""Plan which quantization of a model fits where, and with how long a context, without any weights.

    python scripts/plan_memory.py --name m --ghost results/m/ghost.json --alternatives resources/ghosts/ORG/REPO.json \\
        --spec '{"asked": {"context": 8192, "parallel": 1, "kv_cache": "f16", "margin_gib": 1},
        "hardware": {"gpus": null, "ram_gib": null}, "host": null, "left_out": {}}' --output results/m/plan.json
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.memory_plan import memory_plan
from ollamake.record_seal import read_record

log = logging.getLogger("ollamake")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the model's name in the configuration")
    parser.add_argument("--ghost", type=Path, required=True, help="what measure_ghost.py wrote of the model")
    parser.add_argument(
        "--alternatives", type=Path, nargs="*", default=[], help="the same of models to compare it with"
    )
    parser.add_argument(
        "--spec", type=json.loads, required=True, help="JSON: what is asked and what there is, see above"
    )
    parser.add_argument("--output", type=Path, required=True, help="the plan, as JSON: results/MODEL/plan.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    ghost, *alternatives = (read_record(path) for path in (args.ghost, *args.alternatives))
    plan = memory_plan(args.name, ghost, alternatives, args.spec)
    for warning in plan["warnings"]:
        log.warning("%s", warning)
    write_json(args.output, plan)


if __name__ == "__main__":
    run(main)
