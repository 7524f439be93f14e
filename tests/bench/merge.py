"""Times the merge against copying the base and against peft, in one run, in turn.

    python tests/bench/merge.py --layers 8 --rounds 3

makes a random Qwen2-shaped bfloat16 checkpoint in shards and a rank-16 adapter on all linear layers, in a temporary
folder, and prints medians, ratios and peak memory. Machines differ and are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

SCRIPTS = Path(__file__).parents[2] / "scripts"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, output = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
model.merge_and_unload().save_pretrained(output)
"""

OURS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ollamake.adapter import read_adapter
from ollamake.checkpoint import read_checkpoint
from ollamake.merge_plan import plan_merge
from ollamake.shard_stream import merge_shard
base, adapter, output, threads = sys.argv[2:]
plan = plan_merge(read_checkpoint(base, "base"), [read_adapter(Path(adapter))], "auto")
for shard in plan["shards"]:
    merge_shard(plan, shard["file"], Path(output) / shard["file"], int(threads))
"""


def make_model(folder: Path, layers: int) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder / "base", max_shard_size="1GB")
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=LINEAR, init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")


def timed(command: list[str]) -> tuple[float, float]:
    """Return (seconds, peak RSS in MB) of a command, and of the flush of what it wrote."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    if status:
        sys.exit(f"{command[0]} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="36 makes 3.1 B parameters, 8 about 0.9 B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, args.layers)
        base, adapter, output = str(folder / "base"), str(folder / "adapter"), str(folder / "output")
        commands = {
            "cp + sync": ["cp", "-r", base, output],
            "ollamake": [sys.executable, "-c", OURS, str(SCRIPTS), base, adapter, output, str(args.threads)],
            "peft": [sys.executable, "-c", PEFT, base, adapter, output],
        }
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                results[name].append(timed(command))
                shutil.rmtree(output)
        size = sum(file.stat().st_size for file in Path(base).glob("*.safetensors")) / 1e9
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} threads; base of {size:.2f} GB, {args.rounds} rounds"
    )
    copy = statistics.median(seconds for seconds, _ in results["cp + sync"])
    for name, rows in results.items():
        seconds = statistics.median(row[0] for row in rows)
        print(f"{name:10} {seconds:7.1f} s  {seconds / copy:5.2f} x cp  peak RSS {max(row[1] for row in rows):6.0f} MB")


if __name__ == "__main__":
    main()
