"""Estimate how long the build of a model will take, by the jobs that have run on this machine.

    python scripts/estimate_times.py --ghost results/m/ghost.json --benchmarks benchmarks --results results \\
        --output results/m/times.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.job_times import throughput, times_of_build
from ollamake.record_seal import read_record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ghost", type=Path, required=True, help="ghost.json of the model: its types and their sizes")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of Snakemake's benchmarks")
    parser.add_argument("--results", type=Path, required=True, help="folder of the records of what those jobs wrote")
    parser.add_argument("--output", type=Path, required=True, help="times.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    ghost = read_record(args.ghost)
    write_json(args.output, times_of_build(ghost, throughput(args.benchmarks, args.results)))


if __name__ == "__main__":
    run(main)
