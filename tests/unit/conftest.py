"""Fixtures that save small random models and adapters, made by transformers and peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from small_models import ALL_LINEAR, random_model, save_adapter


@pytest.fixture
def make_base(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a random model in several shards."""

    def make(family: str = "qwen2", dtype: torch.dtype = torch.bfloat16, tied: bool = True) -> Path:
        folder = tmp_path / f"base-{family}-{str(dtype)[6:]}-{tied}"
        random_model(family, dtype, tied).save_pretrained(folder, max_shard_size="60KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        return folder

    return make


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a LoRA adapter with random weights, none of them zero."""

    def make(base: Path, size: float = 0.01, **options: Any) -> Path:
        options = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR} | options
        save_adapter(base, tmp_path / "adapter", LoraConfig(**options), size=size)
        return tmp_path / "adapter"

    return make
