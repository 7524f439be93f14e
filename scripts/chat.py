"""Chat with a registered model.

    python scripts/chat.py results/rag-finetuned/ollama/Q4_K_M/registered.json [QUESTION]

For a model in the store a server is started on it for as long as the chat lasts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from ollamake.errors import run
from ollamake.store_server import serving


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("marker", type=Path, help="the registration marker")
    parser.add_argument("question", nargs="*", help="ask this and end (default: an interactive chat)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    marker = json.loads(args.marker.read_text(encoding="utf-8"))
    # Of a name that nobody can have made a link of beforehand.
    log = Path(tempfile.mkdtemp(prefix="ollamake-")) / "serve.log"
    server = serving(Path(marker["store"]), log) if marker["target"] == "store" else nullcontext(marker.get("host"))
    with server as address:
        command = ["ollama", "run", marker["name"], *args.question]
        done = subprocess.run(command, env={**os.environ, "OLLAMA_HOST": address}, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    run(main)
