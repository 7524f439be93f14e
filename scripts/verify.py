"""Read all that was built, all that was built from and all that is registered, and say what is not as it was.

    python scripts/verify.py --results results/m --markers results/*/ollama/*/registered.json --programs resources/llama.cpp

Changes nothing. Files and blobs of a store are read whole; of a server's blobs those that lie on this machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.build_check import BuildCheck, Findings
from ollamake.errors import OllamakeError, run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="the models' folders of results")
    parser.add_argument("--markers", type=Path, nargs="*", default=[], help="their registration markers, there or not")
    parser.add_argument("--programs", type=Path, help="the folder of llama.cpp's built versions")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check, found, any_built = BuildCheck(), Findings(), False
    for results in args.results:
        findings = check.model(results, [marker for marker in args.markers if results in marker.parents])
        any_built |= findings is not None
        found.add(findings or Findings())
    if not any_built:
        raise OllamakeError("nothing is built yet: run `snakemake --cores 1 all`.")
    if args.programs:
        found.add(check.programs(args.programs))
    if found.lines:
        raise OllamakeError(found.message())


if __name__ == "__main__":
    run(main)
