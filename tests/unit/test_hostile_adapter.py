"""Whatever stands in a stranger's adapter_config.json or in the names of an adapter's tensors is one refusal, and soon."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollamake import foreign_pattern
from ollamake.adapter import read_adapter
from ollamake.adapter_base import config_of_named
from ollamake.adapter_options import malformed
from ollamake.checkpoint import read_checkpoint
from ollamake.errors import OllamakeError
from ollamake.foreign_pattern import matches_whole
from ollamake.merge_plan import plan_merge
from ollamake.peft_module import merge_module

FOREVER = "(([a-z_.0-9]+)+)+!"
"""Compared with the name of a module it takes longer than anybody lives."""

HOSTILE: dict[str, tuple[str | dict[str, Any], str]] = {
    "not JSON": ("{", "cannot be read as JSON"),
    "not UTF-8": ('{"peft_type": "\udcff"}', "cannot be read as JSON"),
    "a list": ("[1]", "expected a JSON object"),
    "deep": ("[" * 100_000, "nested more than 100 levels deep"),
    "deep but whole": (
        '{"peft_type": "LORA", "eva_config": ' + '{"a":' * 200 + "1" + "}" * 201,
        "nested more than 100",
    ),
    "half a character": ('{"peft_type": "LORA", "task_type": "\\ud800"}', "surrogates not allowed"),
    "endless number": ('{"peft_type": "LORA", "r": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    "r": ({"r": 10**12}, f"r is {10**12}; expected a whole number up to 65536"),
    "r of text": ({"r": "8"}, "r is '8'"),
    "r of 0": ({"r": 0}, "r is 0"),
    "r yes": ({"r": True}, "r is True"),
    "lora_alpha NaN": ('{"peft_type": "LORA", "lora_alpha": NaN}', "lora_alpha is nan"),
    "lora_alpha infinite": ('{"peft_type": "LORA", "lora_alpha": 1e999}', "lora_alpha is inf"),
    "lora_alpha of text": ({"lora_alpha": "x" * 10_000}, "lora_alpha is 'xxx"),
    "lora_alpha, larger than a float": ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
    "NaN elsewhere": ('{"peft_type": "LORA", "runtime_config": {"x": [NaN]}}', "has the number nan"),
    "rank_pattern, a list": ({"rank_pattern": ["q"]}, "rank_pattern is ['q']"),
    "rank_pattern of texts": ({"rank_pattern": {"q": "8"}}, "rank_pattern is {'q': '8'}"),
    "alpha_pattern": ({"alpha_pattern": {"q": None}}, "alpha_pattern is {'q': None}"),
    "no pattern": ({"rank_pattern": {"(": 4}}, "'(' is not a regular expression"),
    "deep pattern": ({"rank_pattern": {"(" * 20_000: 4}}, "is not a regular expression"),
    "target_modules": ({"target_modules": [1, 2]}, "target_modules is [1, 2]"),
    "modules_to_save": ({"modules_to_save": {"a": 1}}, "modules_to_save is {'a': 1}"),
    "target_parameters": ({"target_parameters": 5}, "target_parameters is 5"),
    "a row before the first": ({"trainable_token_indices": [-1]}, "trainable_token_indices is [-1]"),
    "rows of texts": ({"trainable_token_indices": {"embed_tokens": ["1"]}}, "trainable_token_indices is {"),
    "no known method": ({"peft_type": ["LORA"]}, "peft_type is None"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_configuration(tmp_path: Path, case: str) -> None:
    config, said = HOSTILE[case]
    text = config if isinstance(config, str) else json.dumps({"peft_type": "LORA"} | config)
    (tmp_path / "adapter_config.json").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(OllamakeError) as found:
        read_adapter(tmp_path)
    assert said in str(found.value)
    assert str(tmp_path / "adapter_config.json") in str(found.value)
    assert len(str(found.value)) < 1000


def test_what_peft_itself_writes_is_well_formed() -> None:
    """All of the tests of the merge read such files; here are those that say more than others."""
    assert malformed({"peft_type": "ADALORA", "rank_pattern": {"model.q_proj": [True, False]}}) is None
    assert malformed({"peft_type": "OFT", "r": 0, "oft_block_size": 32}) is None
    assert malformed({"peft_type": "LORA", "r": 8, "lora_alpha": 16.5, "target_modules": r".*\.q_proj"}) is None
    assert malformed({"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 2]}) is None


def seconds_until_refusal(work: Callable[[], object]) -> float:
    began = time.process_time()
    with pytest.raises(OllamakeError, match=r"pattern .* takes more than 1 s .*repetitions within repetitions"):
        work()
    return time.process_time() - began


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_without_end(key: str, make_base: Callable[..., Path], make_adapter: Callable[..., Path]) -> None:
    base = make_base()
    adapter = make_adapter(base)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: {FOREVER: 4}}))
    checkpoint = read_checkpoint(str(base), "base")
    assert seconds_until_refusal(lambda: plan_merge(checkpoint, [read_adapter(adapter)], "auto")) < 10


def test_a_pattern_without_end_for_peft() -> None:
    """It never sees one: what a pattern says of the module is told before."""
    weight = {"weight": torch.ones(4, 4)}
    module = "model.layers.0.self_attn.q_proj"
    lokr: dict[str, Any] = {"peft_type": "LOKR", "r": 2, "alpha": 4, "rank_pattern": {FOREVER: 4}}
    ia3: dict[str, Any] = {"peft_type": "IA3", "feedforward_modules": FOREVER}
    seconds_until_refusal(lambda: merge_module(lokr, module, "linear", weight, {}, {}))
    seconds_until_refusal(lambda: merge_module(ia3, module, "linear", weight, {}, {}))


def test_the_time_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_pattern, "MAX_SECONDS", 0.05)
    with pytest.raises(OllamakeError):
        matches_whole(FOREVER, "model.layers.0.self_attn.q_proj", "key")
    end_at = time.process_time() + 0.2
    while time.process_time() < end_at:
        assert matches_whole("a+", "aaa", "key")
    assert not matches_whole("a+", "aab", "key")


def test_names_of_tensors_without_end(make_base: Callable[..., Path], make_adapter: Callable[..., Path]) -> None:
    base = make_base()
    file = make_adapter(base) / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.0.mlp" + ".base_layer" * 300 + ".lora_A.weight"
    save_file(tensors | {name: torch.zeros(4, 64)}, file)
    with pytest.raises(OllamakeError, match=r"mlp: has .* without its other half|mlp: \d+ updates of one module"):
        plan_merge(read_checkpoint(str(base), "base"), [read_adapter(file.parent)], "auto")
    save_file({name * 20: torch.zeros(4, 64)}, file)
    with pytest.raises(OllamakeError, match=r"the name of a tensor has \d+ characters"):
        read_adapter(file.parent)


@pytest.mark.parametrize(
    "name", ["~nobody-of-that-name/base", "/" + "x" * 5000, "a\0b", "../../../../etc", "", 5, None]
)
def test_a_base_that_is_named_strangely(tmp_path: Path, name: Any) -> None:
    assert config_of_named(tmp_path, {"base_model_name_or_path": name, "revision": "../../x\0"}, None) is None
