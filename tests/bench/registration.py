"""Times another system prompt for a registered model against `ollama create` with the same Modelfile, in one run, in turn.

    python tests/bench/registration.py --gguf results/m/gguf/m.Q4_K_M.gguf --host 127.0.0.1:11434 --rounds 5

needs a running Ollama, its program on PATH, and a GGUF with its record beside it (which the workflow writes). Registers
`ollamake-bench:ours` and `ollamake-bench:theirs` and removes both afterwards. Prints medians and their ratio: machines
differ and are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="the weights, with their .json beside them")
    parser.add_argument("--host", default="127.0.0.1:11434", help="the server")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    return parser.parse_args()


def seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    return time.perf_counter() - began


def ours(gguf: Path, folder: Path, host: str) -> Callable[[str], list[str]]:
    """Return how ollamake registers: verified, by the script that the rule runs."""
    request = folder / "create_request.json"
    spec = json.dumps({"target": "server", "host": host, "store": str(folder / "store")})
    command = [sys.executable, str(SCRIPTS / "register.py"), "--request", str(request), "--gguf", str(gguf)]
    command += ["--record", str(gguf.with_suffix(".json")), "--spec", spec, "--output", str(folder / "registered.json")]

    def prepared(prompt: str) -> list[str]:
        request.write_text(json.dumps({"name": "ollamake-bench:ours", "file": gguf.name, "system": prompt}))
        return command

    return prepared


def theirs(gguf: Path, folder: Path) -> Callable[[str], list[str]]:
    """Return how Ollama's own program does it, which hashes the file and sends it each time; it verifies nothing."""
    modelfile = folder / "Modelfile"

    def prepared(prompt: str) -> list[str]:
        modelfile.write_text(f'FROM {gguf.resolve()}\nSYSTEM """{prompt}"""\n')
        return ["ollama", "create", "ollamake-bench:theirs", "-f", str(modelfile)]

    return prepared


def main() -> None:
    args = parse_args()
    environment = {**os.environ, "OLLAMA_HOST": args.host}
    with tempfile.TemporaryDirectory() as name:
        ways = {"ollamake": ours(args.gguf, Path(name), args.host), "ollama create": theirs(args.gguf, Path(name))}
        times: dict[str, list[float]] = {way: [] for way in ways}
        # The first round, which sends the weights, is not counted.
        for number in range(args.rounds + 1):
            for way, prepared in ways.items():
                taken = seconds(prepared(f"Prompt {number}."), environment)
                if number:
                    times[way].append(taken)
        for model in ("ours", "theirs"):
            subprocess.run(
                ["ollama", "rm", f"ollamake-bench:{model}"], env=environment, capture_output=True, check=True
            )
    medians = {way: statistics.median(taken) for way, taken in times.items()}
    print(f"{args.gguf.stat().st_size / 1e9:.2f} GB, another prompt, {os.cpu_count()} cores, median of {args.rounds}:")
    for way, median in medians.items():
        print(f"  {way:15} {median:7.2f} s")
    print(f"  ratio {medians['ollamake'] / medians['ollama create']:.2f}")


if __name__ == "__main__":
    main()
