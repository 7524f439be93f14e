"""The whole campaign of kills, or of signals, from a shell. It goes on where it was ended: what came of it is in a file.

    PYTHONPATH=scripts:tests:tests/dag:tests/faults python tests/faults/campaign.py --number 200 --outcomes kills.jsonl \\
        --folder /tmp/kills
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

from interruptions import KILLS, SIGNALS, Interrupter, chain
from outcomes import add, is_good, read
from small_build import FEW_JOBS, copied, final_bytes, small_inputs
from snakemake_runs import LLAMA_CPP

log = logging.getLogger(__name__)

OF_A_CHAIN = 40


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200, help="how many there are to be in the file")
    parser.add_argument("--signals", action="store_true", help="signals in place of kills, on fewer jobs")
    parser.add_argument("--outcomes", type=Path, required=True, help="the file, one JSON object a line")
    parser.add_argument("--folder", type=Path, required=True, help="where to build")
    args = parser.parse_args(argv)
    build = small_inputs(args.folder / "undisturbed", LLAMA_CPP, without=FEW_JOBS if args.signals else ())
    kinds = tuple(SIGNALS) if args.signals else KILLS
    inputs = copied(build, args.folder / "inputs")
    build.run("--cores", "1", "all")
    expected = final_bytes(build.folder)
    while missing := max(0, args.number - len(done := read(args.outcomes))):
        seed = max((outcome.seed for outcome in done), default=0) + 1
        one = copied(inputs, args.folder / f"chain-{seed}")
        output = args.folder / f"chain-{seed}.out"
        outcomes = chain(one, Interrupter(seed, kinds), min(OF_A_CHAIN, missing), expected, output)
        add(args.outcomes, outcomes)
        log.info("seed %d: %d of %d are recovered from", seed, sum(map(is_good, outcomes)), len(outcomes))
        # What went wrong is kept to be looked at.
        if all(map(is_good, outcomes)):
            shutil.rmtree(one.folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
