"""Inputs that do not belong together are refused before anything is built, each message naming both places."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import load_all, merge_checkpoint
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from small_models import FAMILIES, random_model, save_adapter
from test_input_checks import spec
from transformers import Qwen2Config

from ollamake.configuration import read_configuration
from ollamake.demo_base import train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.input_checks import check_inputs
from ollamake.input_consistency import require_tokenizer
from ollamake.source_files import source_files

REPOSITORY = Path(__file__).parents[2]
SCHEMA = REPOSITORY / "config/schemas/config.schema.yaml"


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def trained_on(adapter: Path, name: object, **changes: Any) -> None:
    change_json(adapter / "adapter_config.json", base_model_name_or_path=name, **changes)


def check(base: Path, *adapters: Path, **changes: Any) -> list[str]:
    """Check a model of a base and adapters, and return the warnings."""
    listed = [{"path": str(adapter), "weight": 1.0} for adapter in adapters]
    found = check_inputs("m", spec(base, None, adapters=listed, **changes), base.parent / "results")
    warnings: list[str] = found["warnings"]
    return warnings


def refused(words: list[str], base: Path, *adapters: Path, **changes: Any) -> str:
    with pytest.raises(OllamakeError) as caught:
        check(base, *adapters, **changes)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# The base of the adapter ------------------------------------------------------------------------------------------
@pytest.fixture
def model(make_base: Callable[..., Path], make_adapter: Callable[..., Path]) -> tuple[Path, Path]:
    """A base and an adapter that was trained on it and says so."""
    base = make_base()
    return base, make_adapter(base)


def another(folder: Path, **config: Any) -> Path:
    """Save the config.json of another model."""
    folder.mkdir(parents=True)
    saved = Qwen2Config(**FAMILIES["qwen2"][1])
    (folder / "config.json").write_text(json.dumps(saved.to_dict() | config, default=str))
    return folder


def test_the_same_model_in_another_folder(model: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = model
    assert check(base, adapter) == []
    copied = tmp_path / "copied"
    shutil.copytree(base, copied)
    for name in (str(base), "../base-qwen2-bfloat16-True", None):
        trained_on(adapter, name)
        assert check(copied, adapter) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama"}, "model_type: qwen2 in models.m.base, llama in what the adapter names"),
        ({"num_hidden_layers": 28}, "num_hidden_layers: 2 in models.m.base, 28 in what the adapter names"),
        ({"hidden_size": 128}, "hidden_size: 64 in models.m.base, 128"),
        ({"vocab_size": 320}, "vocab_size: 160 in models.m.base, 320"),
        ({"num_attention_heads": 8}, "num_attention_heads: 4 in models.m.base, 8"),
    ],
)
@pytest.mark.parametrize("how", ["absolute", "beside the adapter", "from the working directory"])
def test_another_model_of_fitting_shapes(
    model: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    config: dict[str, Any],
    said: str,
) -> None:
    """All of the adapter's tensors fit, since these lie in the layers that both have."""
    base, adapter = model
    other = another(tmp_path / ("cwd/other" if "working" in how else "other"), **config)
    trained_on(adapter, str(other) if how == "absolute" else "other")
    if "working" in how:
        monkeypatch.chdir(tmp_path / "cwd")
    words = [
        f"models.m.base: {base} is another model",
        f"{adapter / 'adapter_config.json'} (models.m.adapter) names",
        said,
    ]
    refused([*words, f"known from {other / 'config.json'}", "Give that model as `base`"], base, adapter)


def test_the_second_of_several_adapters(model: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = model
    other = tmp_path / "second"
    shutil.copytree(adapter, other)
    trained_on(other, str(another(tmp_path / "other", num_hidden_layers=3)))
    refused(["second/adapter_config.json (models.m.adapters[1]) names"], base, adapter, other)


def test_a_text_model_and_its_part_of_another(model: tuple[Path, Path], tmp_path: Path) -> None:
    """A model that also sees has the sizes of its text part in text_config."""
    base, adapter = model
    text = json.loads((base / "config.json").read_text())
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "config.json").write_text(json.dumps({"model_type": "sees", "text_config": text, "hidden_size": 9}))
    trained_on(adapter, str(whole))
    assert check(base, adapter) == []
    (whole / "config.json").write_text(json.dumps({"model_type": "sees", "text_config": text | {"hidden_size": 9}}))
    refused(["hidden_size: 64 in models.m.base, 9"], base, adapter)


def test_a_shape_that_comes_with_ollamake(model: tuple[Path, Path]) -> None:
    base, adapter = model
    trained_on(adapter, "Qwen/Qwen2.5-7B-Instruct")
    words = ["names 'Qwen/Qwen2.5-7B-Instruct'", "known from", "hidden_size: 64 in models.m.base, 3584", "152064"]
    refused(words, base, adapter, shapes=str(REPOSITORY / "config/shapes"))
    trained_on(adapter, "mistralai/Mistral-7B-Instruct-v0.3")
    refused(["model_type: qwen2 in models.m.base, mistral"], base, adapter, shapes=str(REPOSITORY / "config/shapes"))


def test_a_model_in_the_hugging_face_cache(
    model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = model
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    for revision, layers in (("main", 2), ("v2", 3)):
        reference = tmp_path / "cache/models--org--model/refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit if layers == 2 else commit[::-1])
        another(tmp_path / "cache/models--org--model/snapshots" / reference.read_text(), num_hidden_layers=layers)
    trained_on(adapter, "org/model")
    assert check(base, adapter) == []
    trained_on(adapter, "org/model", revision="v2")
    refused(["names 'org/model'", f"snapshots/{commit[::-1]}/config.json", "num_hidden_layers: 2"], base, adapter)


def test_a_model_that_nothing_here_knows_is_said(model: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = model
    trained_on(adapter, "org/no-such-model")
    (warning,) = check(base, adapter)
    for word in ("(models.m.adapter) names 'org/no-such-model'", f"compared with models.m.base, {base}"):
        assert word in warning
    for named in (f"org/{base.name}", f"/training/machine/{base.name}/"):
        trained_on(adapter, named)
        assert check(base, adapter) == []
    snapshot = tmp_path / "models--org--no-such-model/snapshots/0123"
    shutil.copytree(base, snapshot)
    trained_on(adapter, "org/no-such-model")
    assert check(snapshot, adapter) == []


# Tokenizers -------------------------------------------------------------------------------------------------------
@pytest.fixture
def with_tokenizers(make_base: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return a function that saves a base and an adapter with tokenizers; options as of save_adapter.

    The base's embedding has 160 rows, its tokenizer ``tokens``; ``added`` are ids that only the adapter's has.
    """

    def make(
        added: dict[str, int], *, tokens: int = 150, config: LoraConfig | None = None, **options: Any
    ) -> tuple[Path, Path]:
        base, adapter = make_base(tied=False), tmp_path / "adapter"
        save_adapter(base, adapter, config or LoraConfig(r=4, target_modules=["q_proj"]), **options)
        definition = json.loads(train_tokenizer(["road design"]).to_str())
        definition["model"]["vocab"] = {f"t{n}": n for n in range(tokens)}
        definition["model"]["merges"], definition["added_tokens"] = [], []
        (base / "tokenizer.json").write_text(json.dumps(definition))
        definition["added_tokens"] = [{"id": number, "content": token} for token, number in added.items()]
        (adapter / "tokenizer.json").write_text(json.dumps(definition))
        return base, adapter

    return make


Saved = Callable[..., tuple[Path, Path]]


def test_the_same_tokenizer(with_tokenizers: Saved) -> None:
    assert check(*with_tokenizers({})) == []


def test_added_tokens_without_rows(with_tokenizers: Saved) -> None:
    base, adapter = with_tokenizers({"<new>": 160})
    refused(
        [f"the tokenizer of the adapter {adapter} has 1 tokens", "'<new>'", "has 160 rows", "modules_to_save"],
        base,
        adapter,
    )


def test_added_tokens_with_the_embeddings_that_came_along(with_tokenizers: Saved) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    base, adapter = with_tokenizers({"<new>": 160, "<newer>": 165}, config=config, rows=166)
    assert check(base, adapter) == []


def test_added_tokens_of_a_resized_model(with_tokenizers: Saved) -> None:
    """peft saves embeddings that were resized without being told."""
    assert check(*with_tokenizers({"<new>": 160}, rows=161)) == []


def test_added_tokens_in_the_padding(with_tokenizers: Saved) -> None:
    base, adapter = with_tokenizers({"<new>": 150, "<newer>": 151})
    (warning,) = check(base, adapter)
    for word in (
        f"{adapter}/tokenizer.json has 2 tokens that {base}/tokenizer.json has not",
        "'<new>'",
        "padded to 160",
    ):
        assert word in warning
    tokens = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[150, 151])
    shutil.rmtree(adapter)
    assert check(*with_tokenizers({"<new>": 150, "<newer>": 151}, config=tokens)) == []


def test_tokens_with_other_ids(with_tokenizers: Saved) -> None:
    base, adapter = with_tokenizers({"t3": 7, "t7": 3})
    words = [
        f"{adapter}/tokenizer.json gives 2 tokens another id than {base}/tokenizer.json ('t7' 3 instead of 7, 't3' 7"
    ]
    refused([*words, "brings no embedding", "remove the tokenizer's files"], base, adapter)
    (adapter / "tokenizer.json").unlink()
    assert check(base, adapter) == []
    shutil.rmtree(adapter)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    assert check(*with_tokenizers({"t3": 7, "t7": 3}, config=config)) == []


# Unfinished training ----------------------------------------------------------------------------------------------
def checkpoint(folder: Path, *, whole: bool = True) -> Path:
    """Make what the Trainer saves of a step; not whole: what is there when it is killed as it saves."""
    folder.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (folder / name).write_text("{}")
    for name in ("adapter_config.json", "adapter_model.safetensors") if whole else ("adapter_config.json",):
        (folder / name).write_text("{}")
    return folder


def fault_of_adapter(folder: Path) -> str:
    with pytest.raises(OllamakeError) as caught:
        source_files("adapter", str(folder), "models.m.adapter")
    return str(caught.value)


def test_checkpoints_without_what_is_saved_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (500, 1000, 1500):
        checkpoint(run / f"checkpoint-{step}")
    message = fault_of_adapter(run)
    for word in (
        f"models.m.adapter: '{run}' has no adapter_config.json and no adapter_model.safetensors",
        "there are checkpoints up to checkpoint-1500, but what training saves last is missing",
        f"The last whole one is {run}/checkpoint-1500",
    ):
        assert word in message
    checkpoint(run / "checkpoint-2000", whole=False)
    message = fault_of_adapter(run)
    assert "up to checkpoint-2000 (its saving was interrupted)" in message
    assert f"The last whole one is {run}/checkpoint-1500" in message


def test_checkpoints_without_an_adapter(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run/checkpoint-500", whole=False)
    assert "None of them has an adapter: train again" in fault_of_adapter(tmp_path / "run")


def test_the_state_of_an_optimizer_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    only = checkpoint(run / "checkpoint-1500", whole=False)
    message = fault_of_adapter(only)
    assert (
        f"'{only}' has no adapter_model.safetensors or adapter_model.bin. It has the state of a training (optimizer.pt"
        in message
    )
    assert "its saving was interrupted" in message
    assert "nearby" not in message
    for step in (500, 1000):
        checkpoint(run / f"checkpoint-{step}")
    assert f"A whole one nearby is {run}/checkpoint-1000." in fault_of_adapter(only)


def test_the_state_that_deepspeed_keeps(tmp_path: Path) -> None:
    (tmp_path / "run/global_step200").mkdir(parents=True)
    assert "the state of a training (global_step200)" in fault_of_adapter(tmp_path / "run")


def test_adapters_nearby_without_signs_of_training(tmp_path: Path) -> None:
    for step in (900, 1000):
        checkpoint(tmp_path / f"runs/try-{step}")
    near = f"Adapters nearby: {tmp_path}/runs/try-1000, {tmp_path}/runs/try-900."
    assert near in fault_of_adapter(tmp_path / "runs/try-100")
    (tmp_path / "runs/empty").mkdir()
    assert near in fault_of_adapter(tmp_path / "runs/empty")
    assert near in fault_of_adapter(tmp_path / "runs")


@pytest.mark.parametrize(
    ("state", "warned"),
    [
        ({"global_step": 500, "max_steps": 1200}, True),
        ({"global_step": 1200, "max_steps": 1200}, False),
        ({"global_step": 1}, False),
        ([], False),
    ],
)
def test_a_checkpoint_of_a_training_that_was_to_go_on(model: tuple[Path, Path], state: object, warned: bool) -> None:
    base, adapter = model
    (adapter / "trainer_state.json").write_text(json.dumps(state))
    warnings = check(base, adapter)
    assert warnings == (
        [f"{adapter}/trainer_state.json: the adapter is from step 500 of 1200; training was to go on."] * warned
    )


# Names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("road", "road"),
        ("Road", "road"),
        ("library/road", "road"),
        ("registry.ollama.ai/library/road", "road"),
        ("road:q4_k_m", "road"),
        ("road:{quant}", "road"),
    ],
)
def test_two_models_of_one_name_in_ollama(one: str, two: str) -> None:
    def configured(*names: str) -> None:
        models = {
            key: {"base": key, "quantizations": ["Q4_K_M"], "ollama": {"name": name}}
            for key, name in zip("ab", names, strict=True)
        }
        read_configuration({"models": models}, SCHEMA)

    with pytest.raises(
        OllamakeError, match=r"models\.b \(Q4_K_M\) and models\.a \(Q4_K_M\) would both be registered as 'road"
    ):
        configured(one, two)
    configured(one, "other/road")


# Routers ----------------------------------------------------------------------------------------------------------
ROUTERS = {
    "mixtral": ("block_sparse_moe.gate", "mlp.gate"),
    "qwen3-moe": ("mlp.gate", "mlp.gate"),
    "gpt-oss": ("mlp.router", "mlp.router"),
    "deepseek-v3": ("mlp.gate", "mlp.gate"),
}
"""Architecture -> its routers as they are stored (and were in memory before transformers 5), and as they are in memory."""


@pytest.mark.parametrize("spelling", [0, 1], ids=["stored", "in memory"])
@pytest.mark.parametrize("family", ROUTERS)
def test_an_adapter_of_routers(tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, spelling: int) -> None:
    """It is merged as any other weight; that routing was trained is said."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    random_model(family, torch.float32, tied=False).save_pretrained(base)
    save_adapter(base, adapter, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "kv_b_proj"]))
    stored = load_all(base)
    router = next(name for name in stored if f"1.{ROUTERS[family][0]}.weight" in name)
    rows, columns = stored[router].shape
    a, b = torch.randn(4, columns), torch.randn(rows, 4)
    file = adapter / "adapter_model.safetensors"
    module = f"base_model.model.model.layers.1.{ROUTERS[family][spelling]}"
    save_file({**load_file(file), f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, file)
    with caplog.at_level("INFO", "ollamake"):
        assert check(base, adapter) == []
    assert f"the adapter has updates of 1 routers, which are merged with it: {router}" in caplog.text
    merge_checkpoint(base, [adapter], tmp_path / "merged")
    merged = load_all(tmp_path / "merged")[router]
    assert torch.allclose(merged, stored[router] + 2 * b @ a, atol=1e-5)


def test_an_adapter_of_routers_for_a_model_that_has_none(model: tuple[Path, Path]) -> None:
    base, adapter = model
    file = adapter / "adapter_model.safetensors"
    module = "base_model.model.model.layers.1.mlp.gate"
    halves = {f"{module}.lora_A.weight": torch.randn(4, 64), f"{module}.lora_B.weight": torch.randn(4, 4)}
    save_file({**load_file(file), **halves}, file)
    refused(["does not fit the base", "model.layers.1.mlp.gate: the base has no such tensor"], base, adapter)


def test_a_base_without_a_tokenizer(tmp_path: Path) -> None:
    """The converter would find out, in words about a temporary file."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    with pytest.raises(OllamakeError, match=r"models\.m\.base: .*base' has no tokenizer: none of tokenizer\.json"):
        require_tokenizer("models.m.base", base, [adapter], {"shards": []})
    (base / "tokenizer.model").touch()
    require_tokenizer("models.m.base", base, [adapter], {"shards": []})
    (base / "tokenizer_config.json").write_text("{")
    with pytest.raises(OllamakeError, match=r"tokenizer_config\.json cannot be read as JSON"):
        require_tokenizer("models.m.base", base, [adapter], {"shards": []})
