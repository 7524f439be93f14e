"""Chat with a registered model.

    python scripts/chat.py results/rag-finetuned/ollama/Q4_K_M/registered.json [QUESTION]

For a model in the store a server is started on it for as long as the chat lasts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ollamake.errors import run
from ollamake.record_seal import read_record
from ollamake.store_server import serving


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("marker", type=Path, help="the registration marker")
    parser.add_argument("question", nargs="*", help="ask this and end (default: an interactive chat)")
    return parser.parse_args(argv)


def address_of(marker: dict[str, Any], folder: Path) -> AbstractContextManager[str | None]:
    """Return the address of the server that has the model, or of one that is started on its store and logs to ``folder``."""
    if marker["target"] == "store":
        return serving(Path(marker["store"]), folder / "serve.log")
    return nullcontext(marker.get("host"))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    marker = read_record(args.marker)
    with tempfile.TemporaryDirectory(prefix="ollamake-") as folder, address_of(marker, Path(folder)) as address:
        command = ["ollama", "run", marker["name"], *args.question]
        done = subprocess.run(command, env={**os.environ, "OLLAMA_HOST": address}, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    run(main)
