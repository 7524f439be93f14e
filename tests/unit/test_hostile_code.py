"""What a checkpoint brings that could be run is not run: Python named by auto_map, and pickles."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ollamake.adapter import read_adapter
from ollamake.bitsandbytes_modules import treat_checkpoint
from ollamake.checkpoint import read_checkpoint
from ollamake.demo_base import save_tokenizer
from ollamake.demo_text import train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.gguf_conversion import convert
from ollamake.template_check import _tokenizer
from ollamake.text_tokens import load_tokenizer

CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("run")
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class Config(PretrainedConfig):
    model_type = "{kind}"
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


class Touch:
    """A pickle of it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "run")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is made where the code is run."""
    return tmp_path / "run"


def planted(folder: Path, mark: Path, kind: str, where: str) -> Path:
    """Return a checkpoint's folder whose configuration names code: in itself, or in another folder."""
    model = folder / "model"
    model.mkdir()
    save_tokenizer(train_tokenizer(["road design", "道路設計"]), model)
    code = {"beside": model, "elsewhere": folder / "code"}[where]
    code.mkdir(exist_ok=True)
    (code / "evil.py").write_text(CODE.format(mark=str(mark), kind=kind))
    prefix = "" if where == "beside" else f"{code}--"
    values = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = {"model_type": kind, "auto_map": {"AutoConfig": f"{prefix}evil.Config"}} | values
    (model / "config.json").write_text(json.dumps(config))
    file = model / "tokenizer_config.json"
    named = {"auto_map": {"AutoTokenizer": [f"{prefix}evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    return model


TRUSTING = """
import sys
from transformers import AutoTokenizer
print(AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True))
open(sys.argv[3], "w").close()
"""


@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_a_converter_that_trusts_code_runs_none(
    tmp_path: Path, mark: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's own does for some families (conversion/glm.py); see tests/e2e/test_hostile_converter.py."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "convert_hf_to_gguf.py").write_text(TRUSTING)
    model = planted(tmp_path, mark, "unheard-of", where)
    with pytest.raises(OllamakeError, match=r"cannot convert .*it needs Python code of its own \(auto_map") as found:
        convert(tmp_path / "convert_hf_to_gguf.py", model, "f16", "m", tmp_path / "out.gguf")
    assert "\n" not in str(found.value)
    assert not mark.exists()


def test_where_transformers_has_a_class_its_own_is_used_and_said(
    tmp_path: Path, mark: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "convert_hf_to_gguf.py").write_text(TRUSTING)
    model = planted(tmp_path, mark, "qwen2", "beside")
    with caplog.at_level(logging.INFO):
        convert(tmp_path / "convert_hf_to_gguf.py", model, "f16", "m", tmp_path / "out.gguf")
    assert "names Python code of its own (auto_map), which is never run" in caplog.text
    assert not mark.exists()


def test_nothing_else_runs_code_of_a_checkpoint(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = planted(tmp_path, mark, "unheard-of", "beside")
    with pytest.raises(OllamakeError):
        _tokenizer(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(OllamakeError):
        load_tokenizer(model, parse_special=True)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "evil.Config"
    with pytest.raises(OllamakeError, match="has no causal language model"):
        treat_checkpoint(config, [], {"load_in_4bit": True}, "models.m.bitsandbytes")
    assert not mark.exists()


@pytest.mark.parametrize("form", ["plain", "in torch's archive"])
def test_pickles_are_not_run(tmp_path: Path, mark: Path, form: str) -> None:
    """Those with the names of weights are refused; the others that training leaves are not opened at all."""
    names = (
        "pytorch_model.bin",
        "adapter_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    )
    for name in names:
        with (tmp_path / name).open("wb") as file:
            if form == "plain":
                pickle.dump(Touch(mark), file)
            else:
                torch.save({"weight": torch.zeros(2), "more": Touch(mark)}, file)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(OllamakeError, match=r"pytorch_model\.bin is not a file of tensors"):
        read_checkpoint(str(tmp_path), "base")
    with pytest.raises(OllamakeError, match=r"adapter_model\.bin is not a file of tensors"):
        read_adapter(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "training_args.bin"}}))
    with pytest.raises(OllamakeError, match=r"training_args\.bin is not a file of tensors"):
        read_checkpoint(str(tmp_path), "base")
    assert not mark.exists()
