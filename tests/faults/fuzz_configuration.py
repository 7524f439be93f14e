"""Read configurations that nobody would write for some minutes, and say how many; what is neither read nor refused ends it.

python tests/faults/fuzz_configuration.py --minutes 10
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests/unit")]

from fuzzed_configuration import files, outcome  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

from ollamake.errors import OllamakeError  # noqa: E402

MOST_SECONDS, MOST_BYTES = 20, 2 << 30
"""What one file may take: a real one takes hundredths of a second."""


def fuzz(seconds: float) -> Counter[str]:
    """Return how many files were read and refused. Raises what reading one raises, with the smallest file that does."""
    counts: Counter[str] = Counter()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.yaml"

        @settings(
            max_examples=200, deadline=MOST_SECONDS * 1000, database=None, suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )  # fmt: skip
        @given(content=files())
        def one_round(content: bytes) -> None:
            file.write_bytes(content)
            counts["refused" if isinstance(outcome(file), OllamakeError) else "read"] += 1

        while time.monotonic() < end:
            one_round()
    return counts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    counts = fuzz(parser.parse_args(argv).minutes * 60)
    print(f"{counts.total()} configurations: {counts['read']} read, {counts['refused']} refused, nothing else raised")


if __name__ == "__main__":
    main()
