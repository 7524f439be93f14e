"""llama.cpp's converter trusts the code of a checkpoint; run by ollamake it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ghost_models import CONVERTER

from ollamake import converter_process
from ollamake.demo_base import save_tokenizer
from ollamake.demo_text import train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.gguf_conversion import run_converter_process

CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("run")
from transformers import PreTrainedTokenizerFast
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
CONFIG = {
    "architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "vocab_size": 512, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
}  # fmt: skip


@pytest.mark.parametrize("guarded", [False, True], ids=["by itself", "by ollamake"])
def test_code_that_a_tokenizer_names(
    tmp_path: Path, guarded: bool, llama_cpp: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first says that the second would fail without what protects from it."""
    llama_cpp("llama-quantize")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, code, mark = tmp_path / "model", tmp_path / "code", tmp_path / "run"
    model.mkdir()
    save_tokenizer(train_tokenizer(["road design"]), model)
    code.mkdir()
    (code / "evil.py").write_text(CODE.format(mark=str(mark)))
    (model / "config.json").write_text(json.dumps(CONFIG))
    file = model / "tokenizer_config.json"
    named = {"auto_map": {"AutoTokenizer": [f"{code}--evil.Tokenizer", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    arguments = [str(CONVERTER), str(model), "--outfile", str(tmp_path / "out.gguf"), "--vocab-only"]
    if guarded:
        with pytest.raises(
            OllamakeError, match=r"KeyError: .<.user.>"
        ):  # which the converter looks for in such a tokenizer
            run_converter_process(Path(converter_process.__file__), arguments, tmp_path / "out.gguf", model)
    else:
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    assert mark.exists() is not guarded
