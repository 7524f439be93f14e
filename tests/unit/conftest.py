"""Fixtures: small random models and adapters, made by transformers and peft; a hub to fetch from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig
from small_models import ALL_LINEAR, random_model, save_adapter
from stand_in.hub import HubStandIn, hub_stand_in


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A stand-in that is the hub to huggingface_hub, with a cache and a home of its own, and no token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    huggingface_hub.close_session()
    with hub_stand_in() as stand_in:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, stand_in.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.address)
        yield stand_in
    huggingface_hub.close_session()
