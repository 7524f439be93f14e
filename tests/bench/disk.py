"""Measures the disk that a build of several models takes while it runs, with and without a budget, by sampling.

    python tests/bench/disk.py --llama-cpp resources/llama.cpp/0.3.36 --models 5 --budget-mb 250 --cores 2

Each model has an adapter of its own on one random base of 40 million parameters (80 MB) and becomes Q4_K_M; intermediate files
are not kept. Without a budget Snakemake fills all cores; with hardware.disk_gib a model begins when its files fit. Ends with an
error if the budget is exceeded, or if it would not be without it: then it proves nothing. Bytes are those that files have on the
disk, each counted once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "dag"))

from dag_build import save_small_adapter

from ollamake.demo_base import save_base, train_tokenizer

REPOSITORY = Path(__file__).parents[2]
SECONDS_BETWEEN = 0.03


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp, as in tools.llama_cpp")
    parser.add_argument("--models", type=int, default=5, help="how many models are built")
    parser.add_argument("--budget-mb", type=float, default=250, help="the budget, MB")
    parser.add_argument("--cores", type=int, default=2, help="cores that Snakemake may use")
    return parser.parse_args()


def save_models(folder: Path, count: int, llama_cpp: Path) -> dict[str, object]:
    """Save a base in one shard and adapters on it; return the configuration."""
    torch.manual_seed(1)
    shape = Qwen2Config(
        vocab_size=4096, hidden_size=768, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    base = folder / "base"
    save_base(Qwen2ForCausalLM(shape).to(torch.bfloat16), train_tokenizer(["road design", "道路設計"]), base)
    tensors = {}
    for shard in sorted(base.glob("model-*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (base / "model.safetensors.index.json").unlink()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    models = {}
    for number in range(count):
        save_small_adapter(base, folder / f"adapter{number}", seed=number)
        models[f"m{number}"] = {"base": "base", "adapter": f"adapter{number}", "quantizations": ["Q4_K_M"]}
    return {
        "models": models,
        "ollama": {"target": "store"},
        "tools": {"llama_cpp": str(llama_cpp.resolve())},
        "keep": {"merged": False, "unquantized": False},
        "hardware": {"gpus": [], "ram_gib": 64},
    }


def bytes_below(folder: Path) -> int:
    """Return the bytes that the files below a folder have on the disk; some may go while it is looked at."""
    seen: dict[int, int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))  # noqa: PTH118 (a third of the time)
            except FileNotFoundError:
                continue
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def build(folder: Path, config: dict[str, object], cores: int) -> tuple[int, int, float]:
    """Build from nothing; return the peak of the bytes below results/, what stays, and seconds."""
    for made in ("results", ".snakemake"):
        shutil.rmtree(folder / made, ignore_errors=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(REPOSITORY / "Snakefile"),
        "--directory",
        str(folder),
    ]
    command += ["--workflow-profile", str(REPOSITORY / "profiles/default"), "--configfile", str(folder / "mine.yaml")]
    peak, began = 0, time.perf_counter()
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        running = subprocess.Popen([*command, "--cores", str(cores), "gguf"], stdout=log, stderr=subprocess.STDOUT)
        while running.poll() is None:
            peak = max(peak, bytes_below(folder / "results"))
            time.sleep(SECONDS_BETWEEN)
    if running.returncode:
        sys.exit((folder / "log.txt").read_text(encoding="utf-8"))
    return peak, bytes_below(folder / "results"), time.perf_counter() - began


def main() -> None:
    args = parse_args()
    budget = args.budget_mb * 1e6
    with tempfile.TemporaryDirectory() as name:
        config = save_models(Path(name), args.models, args.llama_cpp)
        peaks = {}
        for what, gib in (("with the budget", budget / 2**30), ("without", None)):
            hardware = {"gpus": [], "ram_gib": 64, "disk_gib": gib}
            peaks[what], stays, seconds = build(Path(name), {**config, "hardware": hardware}, args.cores)
            print(
                f"{what}: {peaks[what] / 1e6:.0f} MB at the peak, {stays / 1e6:.0f} MB stay, {seconds:.0f} s",
                flush=True,
            )
    if not peaks["with the budget"] <= budget < peaks["without"]:
        sys.exit(f"expected at most {args.budget_mb:.0f} MB with the budget, and more without")


if __name__ == "__main__":
    main()
