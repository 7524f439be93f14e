"""Fixtures that save small random models and adapters, made by transformers and peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import ALL_LINEAR, load_base, random_model


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
    """Return a function that saves a peft adapter with random weights, none of them zero."""

    def make(base: Path, size: float = 0.01, **options: Any) -> Path:
        model = load_base(base, torch.float32)
        options = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR} | options
        adapted = get_peft_model(model, LoraConfig(**options))
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * (0.1 if "lora_A" in name else size))
        folder = tmp_path / "adapter"
        adapted.save_pretrained(folder)
        return folder

    return make
