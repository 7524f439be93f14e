"""The library behind the rules: typed functions without argparse, print or Snakemake."""

from __future__ import annotations

import sys
from types import TracebackType

__version__ = "0.1.0"


def _say_limits(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """End a program in one message where it was not given the memory to import torch, before anything of it could run."""
    from ollamake.machine_limits import limit_met

    if (message := limit_met(error)) is None:
        sys.__excepthook__(kind, error, at)
    else:
        sys.stderr.write(f"error: {message}\n")


sys.excepthook = _say_limits
