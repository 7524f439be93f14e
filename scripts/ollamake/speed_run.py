"""Tokens a second of a GGUF on this machine, by llama.cpp's llama-bench."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollamake.child_process import running
from ollamake.errors import OllamakeError
from ollamake.progress import progress_bar
from ollamake.termination import interruptible

PROMPT_TOKENS = 512
GENERATED_TOKENS = 64
REPETITIONS = 3
_LINES_SHOWN = 20
_RUN = re.compile(r"(?:prompt|generation) run \d+/\d+")


def measure_speed(program: Path, gguf: Path, record: Mapping[str, Any], kind: str, threads: int) -> dict[str, Any]:
    """Run llama-bench on a GGUF and return its record (speed.json): tokens a second, mean and standard deviation of the runs.

    ``prompt``: a prompt alone is read; ``generation``: tokens are made one by one after nothing, so a long conversation is
    slower. Raises OllamakeError if the program fails or prints something else.
    """
    command = [str(program), "-m", str(gguf), "-p", str(PROMPT_TOKENS), "-n", str(GENERATED_TOKENS)]
    command += ["-r", str(REPETITIONS), "-t", str(threads), "-o", "jsonl", "--progress"]
    returncode, output, last_lines = _run(command)
    if returncode:
        raise OllamakeError(f"{program.name} failed on {gguf} (exit code {returncode}):\n{last_lines}")
    try:
        return speed_record(output, record, kind)
    except (ValueError, KeyError, TypeError) as error:
        said = "\n".join([*output.splitlines()[-5:], last_lines])
        raise OllamakeError(
            f"{program.name} did not print what was expected of it on {gguf} ({error!r}). It said:\n{said}\n"
            "If it is another version than the pinned one: take it off PATH or out of tools.llama_cpp, and ollamake builds its"
            " own."
        ) from error


def speed_record(output: str, record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return speed.json from llama-bench's JSON lines. Raises ValueError, KeyError or TypeError for anything else."""
    tests = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    prompt = _only(tests, PROMPT_TOKENS, 0)
    generation = _only(tests, 0, GENERATED_TOKENS)
    return {
        "type": kind,
        "gguf_sha256": record["sha256"],
        "prompt": {"tokens": PROMPT_TOKENS, **_speed(prompt)},
        "generation": {"tokens": GENERATED_TOKENS, **_speed(generation)},
        "repetitions": len(prompt["samples_ns"]),
        "threads": prompt["n_threads"],
        "cpu": prompt["cpu_info"],
        "gpu": prompt["gpu_info"],
        "backends": prompt["backends"],
        "gpu_layers": prompt["n_gpu_layers"],
        "build": f"{prompt['build_commit']} ({prompt['build_number']})",
    }


def _only(tests: list[dict[str, Any]], prompt: int, generated: int) -> dict[str, Any]:
    found = [test for test in tests if (test["n_prompt"], test["n_gen"]) == (prompt, generated)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} tests of {prompt} prompt and {generated} generated tokens, expected 1")
    return found[0]


def _speed(test: dict[str, Any]) -> dict[str, float]:
    mean, deviation = float(test["avg_ts"]), float(test["stddev_ts"])
    if not (math.isfinite(mean) and mean > 0 and math.isfinite(deviation)):
        raise ValueError(f"{mean} +- {deviation} tokens a second")
    return {"per_second": mean, "stddev": deviation}


def _run(command: list[str]) -> tuple[int, str, str]:
    """Return (exit code, stdout, the end of stderr without the progress)."""
    output: list[str] = []
    said: list[str] = []
    with interruptible(), progress_bar(2 * REPETITIONS, "speed", unit=" runs") as progress:

        def hear_log(text: str) -> None:
            said.append(text)
            progress.update(len(_RUN.findall("".join(said))) - progress.n)

        with running(command, output.append, hear_log) as child:
            while child.returncode() is None:
                child.wait(1.0)
            returncode = child.ended()
    lines = [line for line in "".join(said).splitlines() if line.strip() and not _RUN.search(line)]
    return returncode, "".join(output), "\n".join(lines[-_LINES_SHOWN:])
