"""Times the merge against copying the base, against peft and against mergekit, in one run, in turn.

    python tests/bench/merge.py --size 3.1 --rounds 3

makes a Qwen2-shaped bfloat16 checkpoint of random weights in seven shards and a rank-16 adapter on all linear layers in a
temporary folder, and prints medians, ratios and peak memory. Machines differ and are noisy: read the ratios. mergekit is
not among ollamake's requirements; `--mergekit PATH` names its mergekit-yaml program if you have it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"

SIZES = {
    "0.5": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "3.1": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7.6": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}  # fmt: skip
"""Billions of parameters -> the shape of the Qwen2.5 of that size."""

# The programs run in processes of their own, and this one imports nothing heavy: a child's peak memory counts from its parent's.
MAKE = """
import json, sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM
folder, shape, shards = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
with torch.device("meta"):
    model = Qwen2ForCausalLM(Qwen2Config(**shape))
noise = torch.randn(1 << 24).mul_(0.02).to(torch.bfloat16)
def random(shape):
    size = shape.numel()
    return noise.repeat(-(-size // noise.numel()))[:size].view(shape).contiguous()
names = [name for name in model.state_dict() if not (shape["tie_word_embeddings"] and name == "lm_head.weight")]
sizes = {name: model.state_dict()[name].shape for name in names}
total, done, parts = sum(s.numel() for s in sizes.values()), 0, [[] for _ in range(shards)]
for name in names:
    parts[min(shards - 1, done * shards // total)].append(name)
    done += sizes[name].numel()
(folder / "base").mkdir()
weight_map = {}
for number, part in enumerate(parts, start=1):
    file = f"model-{number:05d}-of-{shards:05d}.safetensors"
    save_file({name: random(sizes[name]) for name in part}, folder / "base" / file, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(part, file)
(folder / "base/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
model.config.architectures = ["Qwen2ForCausalLM"]
model.config.dtype = torch.bfloat16
model.config.save_pretrained(folder / "base")
linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
config = LoraConfig(r=16, target_modules=linear, base_model_name_or_path=str(folder / "base"))
with torch.device("meta"):
    adapted = get_peft_model(model, config)
tensors = {n.replace(".default", ""): torch.randn(p.shape) * 0.01 for n, p in adapted.named_parameters() if "lora_" in n}
(folder / "adapter").mkdir()
save_file(tensors, folder / "adapter/adapter_model.safetensors")
config.save_pretrained(folder / "adapter")
"""

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, output = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
model.merge_and_unload().save_pretrained(output)
"""

OURS = """
import sys
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

JOBS = """
import json, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
scripts, base, adapter, output, threads = sys.argv[1:]
output = Path(output)
spec = json.dumps({"base": base, "adapters": [{"path": adapter, "weight": 1.0}], "dtype": "auto"})
run = lambda script, *words: subprocess.run([sys.executable, f"{scripts}/{script}.py", *map(str, words)], check=True)
def merge(file):
    run("merge_shard", "--plan", output / "plan.json", "--shard", file.name, "--output", file,
        "--record", file.with_suffix(".json"), "--threads", 1)
run("plan_merge", "--spec", spec, "--output", output / "plan.json")
with ThreadPoolExecutor(int(threads)) as cores:
    list(cores.map(merge, [output / shard["file"] for shard in json.loads((output / "plan.json").read_text())["shards"]]))
"""
"""As Snakemake runs it: a process a shard, as many at once as there are cores."""


def timed(command: list[str]) -> tuple[float, float]:
    """Return (seconds until what was written is on the disk, peak RSS in MB) of a command."""
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    if status:
        sys.exit(f"{command[0]} failed:\n{said.decode(errors='replace')[-2000:]}")
    return time.perf_counter() - began, usage.ru_maxrss / 1000


def mergekit_command(program: str, folder: Path, output: str) -> list[str]:
    """Return mergekit's merge of base+adapter; it writes bfloat16, as the base is."""
    config = folder / "mergekit.yaml"
    model = f"{folder / 'base'}+{folder / 'adapter'}"
    config.write_text(f"merge_method: passthrough\ndtype: bfloat16\nmodels:\n  - model: {model}\n", encoding="utf-8")
    return [program, str(config), output, "--lora-merge-cache", str(folder / "lora-cache")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5", help="billions of parameters")
    parser.add_argument("--shards", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--without-peft", action="store_true", help="peft holds the whole model in memory")
    parser.add_argument("--mergekit", help="path of mergekit-yaml")
    parser.add_argument("--folder", type=Path, help="where to work; default: the temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        shape = json.dumps(SIZES[args.size])
        subprocess.run(
            [sys.executable, "-c", MAKE, name, shape, str(args.shards)], check=True, stderr=subprocess.DEVNULL
        )
        base, adapter, output = str(folder / "base"), str(folder / "adapter"), str(folder / "output")
        ours = [str(SCRIPTS), base, adapter, output, str(args.threads)]
        commands = {
            "cp": ["cp", "-r", base, output],
            "ollamake": [sys.executable, "-c", OURS, *ours],
            "ollamake, job by job": [sys.executable, "-c", JOBS, *ours],
        }
        if not args.without_peft:
            commands["peft"] = [sys.executable, "-c", PEFT, base, adapter, output]
        if args.mergekit:
            commands["mergekit"] = mergekit_command(args.mergekit, folder, output)
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for title, command in commands.items():
                results[title].append(timed(command))
                shutil.rmtree(output)
                shutil.rmtree(folder / "lora-cache", ignore_errors=True)
        size = sum(file.stat().st_size for file in Path(base).glob("*.safetensors")) / 1e9
    print(f"{processor()}, {args.threads} threads; base of {size:.2f} GB in {args.shards} shards, {args.rounds} rounds")
    copy = statistics.median(seconds for seconds, _ in results["cp"])
    for title, rows in results.items():
        seconds = statistics.median(row[0] for row in rows)
        each = " ".join(f"{row[0]:.1f}" for row in rows)
        peak = max(row[1] for row in rows)
        print(f"{title:24} {seconds:7.1f} s  {seconds / copy:5.2f} x cp  peak RSS {peak:6.0f} MB   ({each})")


def processor() -> str:
    """Return the processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


if __name__ == "__main__":
    main()
