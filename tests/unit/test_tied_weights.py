"""What an architecture ties, read from transformers' source, is what its class says when it is imported."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from ollamake import tied_weights
from ollamake.tied_weights import tied_weights as ties_of


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("qwen2", "Qwen2ForCausalLM"),
        ("gemma3_text", "Gemma3ForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("bert", "BertLMHeadModel"),
        ("rwkv", "RwkvForCausalLM"),
        ("bigbird_pegasus", "BigBirdPegasusForCausalLM"),
        ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
        ("mixtral", "MixtralForCausalLM"),
    ],
)
def test_the_source_says_what_the_class_says(
    model_type: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = getattr(transformers, architecture)._tied_weights_keys or {}
    monkeypatch.setattr(tied_weights, "_imported", lambda *_: pytest.fail("transformers was imported"))
    assert ties_of({"model_type": model_type, "architectures": [architecture]}) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt-sw3", "architectures": ["GPT2LMHeadModel"]}, {"lm_head.weight": "transformer.wte.weight"}),
        ({"model_type": "llama"}, {"lm_head.weight": "model.embed_tokens.weight"}),
        ({"model_type": "../x", "architectures": ["Nothing"]}, None),
        ({"model_type": "unheard", "architectures": ["UnheardForCausalLM"]}, None),
        ({}, None),
    ],
)
def test_else_the_class_is_asked(config: dict[str, object], expected: dict[str, str] | None) -> None:
    assert ties_of(config) == expected


def test_a_class_that_takes_it_from_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
class Base(PreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"head.weight": "embed.weight"}

class Model(Mixin, Base): pass
class Other(Base):
    _tied_weights_keys = {name: "embed.weight" for name in NAMES}
class Nothing(PreTrainedModel):
    _tied_weights_keys = None
class Plain(nn.Module): pass
"""
    package = tmp_path / "transformers"
    (package / "models/new").mkdir(parents=True)
    (package / "models/new/modeling_new.py").write_text(source)

    class Spec:
        origin = str(package / "__init__.py")

    monkeypatch.setattr(tied_weights.importlib.util, "find_spec", lambda _: Spec)
    table = {"head.weight": "embed.weight"}
    found = {
        name: tied_weights._in_source(name, "new") for name in ("Base", "Model", "Other", "Nothing", "Plain", "Absent")
    }
    assert found == {"Base": table, "Model": None, "Other": None, "Nothing": {}, "Plain": {}, "Absent": None}
