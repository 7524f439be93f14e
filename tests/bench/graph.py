"""Measures what Snakemake takes to find that nothing is to be done, over the number of models; writes a table and a picture.

    python tests/bench/graph.py --models 1 10 50 200 --rounds 3 --folder FOLDER

Each model has a base of its own in 30 shards, an adapter, and 5 quantizations. The state of a finished build is written
without building (finish_jobs.py): weights are a few kB, so what grows here is the graph and not the weights. In each round two
more are timed beside: an empty workflow, which is Snakemake's own start, and floor.smk, rules with the same jobs and files but
without functions, params and environments, which is what Snakemake takes for a graph of that size. One more run under cProfile
says which part of the time is spent in our own code. Seconds beside the empty workflow are processor time of the one process,
which on a free core is the time that one waits; memory is the peak of the resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).parents[2]
QUANTIZATIONS = ["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
SHARDS, LAYERS, HIDDEN = 30, 64, 16
"""The shards and layers of a 32B: as many names in the plan as there."""

LINEAR = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}
MODULES = [f"model.layers.{layer}.{part}.{name}" for layer in range(LAYERS) for part in LINEAR for name in LINEAR[part]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 10, 50, 200], help="numbers of models")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed")
    parser.add_argument(
        "--folder", type=Path, help="where to build and to write graph.json and graph.svg; default: temporary"
    )
    parser.add_argument("--first", action="store_true", help="time the dry run of a first build as well")
    parser.add_argument("--snakefile", type=Path, default=REPOSITORY / "Snakefile", help="the workflow")
    return parser.parse_args()


def save_base(folder: Path) -> None:
    """Save a checkpoint with the names of a Qwen2 of 64 layers, and hardly any weights."""
    folder.mkdir(parents=True)
    names = ["model.embed_tokens.weight", "lm_head.weight"] + [f"{module}.weight" for module in MODULES]
    parts = np.array_split(np.array(names), SHARDS)
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        save_file(
            {name: np.ones((HIDDEN, HIDDEN), np.float16) for name in part}, folder / file, metadata={"format": "pt"}
        )
        weight_map |= dict.fromkeys(map(str, part), file)
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), HIDDEN)
    layers = {"num_hidden_layers": LAYERS, "num_attention_heads": 1, "torch_dtype": "float16"}
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **sizes, **layers}
    write(folder / "config.json", config)
    write(folder / "tokenizer.json", {"model": {"vocab": {f"token {number}": number for number in range(100_000)}}})
    write(folder / "tokenizer_config.json", {})


def save_adapter(folder: Path) -> None:
    """Save a LoRA adapter of rank 4 on all linear layers."""
    folder.mkdir(parents=True)
    shapes = {"lora_A": (4, HIDDEN), "lora_B": (HIDDEN, 4)}
    tensors = {f"base_model.model.{module}.{part}.weight": np.ones(shape, np.float32)
               for module in MODULES for part, shape in shapes.items()}  # fmt: skip
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": sorted(LINEAR["self_attn"] + LINEAR["mlp"]),
    }
    write(folder / "adapter_config.json", config)


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def save_programs(folder: Path) -> None:
    """Save what has the names of llama.cpp's programs: none of them is run."""
    for name in ("llama-quantize", "llama-tokenize", "llama-fit-params"):
        program = folder / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/false\n", encoding="utf-8")
        program.chmod(0o755)
    (folder / "gguf-py").mkdir()
    (folder / "convert_hf_to_gguf.py").write_text("", encoding="utf-8")


def save_models(folder: Path, count: int) -> None:
    """Save the inputs of so many models, and the configuration. The files of the bases are one on the disk."""
    save_base(folder / "bases/model-000")
    save_adapter(folder / "adapters/model-000")
    names = [f"model-{number:03d}" for number in range(count)]
    for name in names[1:]:
        for kind in ("bases", "adapters"):
            (folder / kind / name).mkdir()
            for file in (folder / kind / "model-000").iterdir():
                (folder / kind / name / file.name).hardlink_to(file)
    save_programs(folder / "llama.cpp")
    models = {
        name: {"base": f"bases/{name}", "adapter": f"adapters/{name}", "quantizations": QUANTIZATIONS} for name in names
    }
    config = {
        "models": models,
        "ollama": {"target": "store"},
        "tools": {"llama_cpp": "llama.cpp"},
        "hardware": {"gpus": [{"name": "RTX 4090", "memory_gib": 24}], "ram_gib": 64},
    }
    (folder / "many.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@dataclass(frozen=True)
class Taken:
    """What one run took: seconds of wall time and of processor time, MB at its peak; and what it said."""

    wall: float
    cpu: float
    mb: float
    said: str


def run(command: list[str], folder: Path) -> Taken:
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if child.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{said}")
    return Taken(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000, said)


def ours(snakefile: Path, folder: Path) -> list[str]:
    profile = snakefile.parent / "profiles/default"
    return ["--snakefile", str(snakefile), "--directory", str(folder), "--workflow-profile", str(profile),
            "--configfile", str(folder / "many.yaml")]  # fmt: skip


SNAKEMAKE = [sys.executable, "-m", "snakemake"]


def share_of_ours(snakefile: Path, folder: Path) -> float:
    """Return the part of the time that is spent in code of rules/ and scripts/ itself, by cProfile."""
    profile = folder / "dry-run.prof"
    command = [sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "snakemake"]
    run([*command, *ours(snakefile, folder), "-n", "all"], folder)
    stats = pstats.Stats(str(profile))
    home = (f"{snakefile.parent}/rules", f"{snakefile.parent}/scripts")
    own = sum(seconds for (file, _, _), (_, _, seconds, _, _) in stats.stats.items() if file.startswith(home))
    return own / stats.total_tt


def measure(count: int, folder: Path, rounds: int, snakefile: Path, first: bool) -> dict[str, float]:
    """Return the figures of so many models, in keys of the form WHAT_FIGURE."""
    floor = folder / "floor"
    for place in (folder, floor):
        save_models(place, count)
    (folder / "Empty").write_text("rule all:\n    input: []\n", encoding="utf-8")
    here = Path(__file__).parent
    workflows = {
        "empty": ["--snakefile", str(folder / "Empty"), "--directory", str(folder)],
        "floor": [
            "--snakefile",
            str(here / "floor.smk"),
            "--directory",
            str(floor),
            "--configfile",
            str(floor / "many.yaml"),
        ],
        "full": ours(snakefile, folder),
    }
    row: dict[str, float] = {"models": count}
    if first:
        taken = run([*SNAKEMAKE, *workflows["full"], "-n", "all", "--quiet", "rules"], folder)
        row |= {"first_wall": taken.wall, "first_cpu": taken.cpu, "first_mb": taken.mb}
    for name in ("floor", "full"):
        finish = [sys.executable, str(here / "finish_jobs.py"), *workflows[name], "--cores", "1", "--no-hooks", "all"]
        run(finish, folder)
    runs: dict[str, list[Taken]] = {name: [] for name in workflows}
    for _ in range(rounds):
        for name, workflow in workflows.items():
            runs[name].append(run([*SNAKEMAKE, *workflow, "-n", "all"], folder))
            if name != "empty" and "Nothing to be done" not in runs[name][-1].said:
                sys.exit(f"{name}: not the state of a finished build:\n{runs[name][-1].said[:5000]}")
    for name in workflows:
        for figure in ("wall", "cpu", "mb"):
            row[f"{name}_{figure}"] = statistics.median(getattr(taken, figure) for taken in runs[name])
    row["share_of_ours"] = share_of_ours(snakefile, folder)
    return row


def beside(row: dict[str, float], name: str) -> float:
    """Return the seconds of processor time that a workflow takes beside an empty one."""
    return row[f"{name}_cpu"] - row["empty_cpu"]


def table(rows: list[dict[str, float]]) -> str:
    lines = ["| models | beside an empty workflow | its jobs without functions | empty | wall | memory | own code |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {row['models']} | {beside(row, 'full'):.2f} s | {beside(row, 'floor'):.2f} s | {row['empty_cpu']:.2f} s"
        f" | {row['full_wall']:.2f} s, empty {row['empty_wall']:.2f} s | {row['full_mb']:.0f} MB, empty {row['empty_mb']:.0f} MB"
        f" | {row['share_of_ours']:.0%} |"
        for row in rows
    ]
    return "\n".join(lines)


def draw(rows: list[dict[str, float]], file: Path) -> None:
    """Draw time and memory over the number of models, each with the aim for 50 models."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    counts = [row["models"] for row in rows]
    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    times.plot(counts, [beside(row, "full") for row in rows], "o-", label="ollamake")
    times.plot(
        counts, [beside(row, "floor") for row in rows], "s--", label="Snakemake's own: the same jobs, no functions"
    )
    times.plot([50], [5], "x", color="grey", label="aim")
    times.set(ylabel="s of processor time beside an empty workflow", title="snakemake -n, nothing to be done")
    memory.plot(counts, [row["full_mb"] for row in rows], "o-", label="ollamake")
    memory.plot(counts, [row["floor_mb"] for row in rows], "s--", label="the same jobs, no functions")
    memory.plot([50], [1000], "x", color="grey", label="aim")
    memory.set(ylabel="MB", title="peak of the resident size")
    for axes in (times, memory):
        axes.set(xlabel="models, of 5 quantizations and 30 shards")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for count in args.models:
            rows.append(measure(count, folder / str(count), args.rounds, args.snakefile.resolve(), args.first))
            print(json.dumps(rows[-1]), flush=True)
        print(table(rows))
        if args.folder:
            (folder / "graph.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
            draw(rows, folder / "graph.svg")


if __name__ == "__main__":
    main()
