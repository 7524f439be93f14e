"""A small model and a working directory as a user has it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from snakemake_runs import planned_jobs, run_snakemake
from transformers import Qwen2Config, Qwen2ForCausalLM

from ollamake.demo_base import save_base, train_tokenizer

PAGES = ("write_overview", "write_page")


def save_small_base(folder: Path, seed: int = 1) -> None:
    """Save a random Qwen2 in three shards, with a tokenizer and chat template of its own."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
    )
    save_base(Qwen2ForCausalLM(config), train_tokenizer(["road design", "道路設計"]), folder)


def save_small_adapter(base: Path, folder: Path, seed: int = 1) -> None:
    """Save a random LoRA adapter, none of it zero."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    # peft keeps the targets as a set, whose order changes from run to run.
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = base.name
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


@dataclass
class Build:
    """A working directory with a configuration, as a user has it."""

    folder: Path
    config: dict[str, Any]

    def write_config(self) -> None:
        (self.folder / "mine.yaml").write_text(yaml.safe_dump(self.config, allow_unicode=True), encoding="utf-8")

    def run(self, *arguments: str | Path) -> str:
        """Run Snakemake and return what it printed; it must end well."""
        done = run_snakemake("--configfile", "mine.yaml", *arguments, folder=self.folder)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def run_to_failure(self, *arguments: str | Path) -> str:
        """Run Snakemake and return what it printed; it must fail."""
        done = run_snakemake("--configfile", "mine.yaml", *arguments, folder=self.folder)
        assert done.returncode != 0, done.stdout
        return done.stdout

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return rule -> number of jobs of a dry run, without `all` itself and the pages of the report.

        These follow whatever is shown on them, see planned_pages.
        """
        jobs = self._planned(*arguments)
        return {rule: count for rule, count in jobs.items() if rule not in PAGES}

    def planned_pages(self) -> dict[str, int]:
        """Return rule -> number of jobs of a dry run that write pages of the report."""
        jobs = self._planned()
        return {rule: count for rule, count in jobs.items() if rule in PAGES}

    def _planned(self, *arguments: str) -> dict[str, int]:
        self.write_config()
        jobs = planned_jobs(self.run("-n", *arguments))
        jobs.pop("all", None)
        return jobs

    def model(self) -> dict[str, Any]:
        model: dict[str, Any] = self.config["models"]["small"]
        return model
