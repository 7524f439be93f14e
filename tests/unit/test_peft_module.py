"""Every method of the installed peft is either refused by name, or merges one module as peft merges the whole model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import load_all, merge_checkpoint
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    DeloraConfig,
    HiraConfig,
    IA3Config,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    VBLoRAConfig,
    VeraConfig,
    WaveFTConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig
from small_models import load_base, logits_of, lora, random_model, save_adapter

from ollamake.errors import OllamakeError
from ollamake.peft_methods import NOT_MERGED, THROUGH_PEFT, is_plain_lora, refusal
from ollamake.peft_module import merge_module

LINEAR = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 50},
    "GRALORA": {"gralora_k": 2, "r": 8},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": ["down_proj", "c_proj"]},
    "MISS": {"r": 8},
    "OFT": {"oft_block_size": 4, "r": 0},
    "PSOFT": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {"sparsity": 0.5},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2], "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "topk": 2},
    "WAVEFT": {"n_frequency": 50},
}
ON_CONV1D = (
    "ADALORA",
    "DEFT",
    "FOURIERFT",
    "GRALORA",
    "HIRA",
    "IA3",
    "LN_TUNING",
    "PVERA",
    "RANDLORA",
    "VBLORA",
    "VERA",
    "WAVEFT",
)
VARIANTS: dict[str, Callable[[], PeftConfig]] = {
    "dora": lora(use_dora=True, target_modules=["q_proj", "embed_tokens"]),
    "dora, rslora, patterns": lora(use_dora=True, use_rslora=True, rank_pattern={"q_proj": 2}),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "kasa": lora(kasa_config=KasaConfig()),
    "qalora": lora(use_qalora=True, qalora_group_size=8),
    "velora": lora(velora_config={}),
    "monteclora": lora(monteclora_config=MontecloraConfig()),
    "bdlora": lora(
        target_modules=["q_proj", "down_proj"],
        use_bdlora=BdLoraConfig(nblocks=2, target_modules_bd_a=["down_proj"], target_modules_bd_b=["q_proj"]),
    ),
    "vera, projections from the seed": lambda: VeraConfig(
        target_modules=["q_proj", "down_proj"], save_projection=False, projection_prng_key=7
    ),
}


def config_of(method: str, family: str) -> PeftConfig:
    options = {} if method == "LN_TUNING" else {"target_modules": LINEAR[family]}
    options |= OPTIONS.get(method, {})
    if method == "IA3":
        options["feedforward_modules"] = [n for n in options["feedforward_modules"] if n in LINEAR[family]]
    if method == "BEFT":
        options["target_modules"] = ["v_proj"]  # it trains a bias, which the layer must have
    config: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)](**options)
    return config


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for family in ("llama", "gpt2"):
        folders[family] = tmp_path_factory.mktemp(family)
        model = random_model(family, torch.float32, False)
        if family == "llama":
            model.config.attention_bias = True
            torch.manual_seed(3)
            model = type(model)(model.config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, 0, 0.05)
        model.save_pretrained(folders[family], max_shard_size="60KB")
    return folders


def assert_as_peft(base: Path, folder: Path, config: PeftConfig) -> None:
    """The merged checkpoint has the weights of peft's own merge, and they are not the base's."""
    save_adapter(base, folder / "adapter", config, size=0.05)
    random_state = torch.random.get_rng_state()
    merge_checkpoint(base, [folder / "adapter"], folder / "merged")
    assert torch.equal(random_state, torch.random.get_rng_state()), "the merge disturbs other people's random numbers"
    adapted = PeftModel.from_pretrained(load_base(base, torch.float32), folder / "adapter")
    adapted.merge_and_unload(safe_merge=True).save_pretrained(folder / "exact")
    ours, exact, before = load_all(folder / "merged"), load_all(folder / "exact"), load_all(base)
    assert ours.keys() == exact.keys()
    for name, tensor in ours.items():
        assert torch.allclose(
            tensor.float(), exact[name], rtol=0, atol=1e-6 * max(1.0, float(exact[name].abs().max()))
        ), name
    assert any(float((exact[name] - before[name]).abs().max()) > 1e-3 for name in exact)


@pytest.mark.parametrize(
    ("method", "family"),
    [(method, "llama") for method in sorted(THROUGH_PEFT)] + [(method, "gpt2") for method in ON_CONV1D],
)
def test_methods(bases: dict[str, Path], tmp_path: Path, method: str, family: str) -> None:
    assert_as_peft(bases[family], tmp_path, config_of(method, family))


OTHER_OPTIONS: dict[str, Callable[[], PeftConfig]] = {
    "BOFT, blocks counted, all biases": lambda: BOFTConfig(
        target_modules=["q_proj", "v_proj"], boft_block_size=0, boft_block_num=4, bias="all"
    ),
    "DeLoRA with patterns": lambda: DeloraConfig(
        target_modules=["q_proj", "v_proj"], r=4, rank_pattern={"q_proj": 2}, lambda_pattern={"v_proj": 3}
    ),
    "HiRA of the embedding": lambda: HiraConfig(target_modules=["embed_tokens", "q_proj"], r=4),
    "IA3, inputs scaled by a pattern": lambda: IA3Config(
        target_modules=r".*\.(q_proj|down_proj)", feedforward_modules=r".*\.down_proj"
    ),
    "IA3, inputs scaled by the end of a name": lambda: IA3Config(
        target_modules=["down_proj", "v_proj"], feedforward_modules=["down_proj"]
    ),
    "LoKr, both halves": lambda: LoKrConfig(target_modules=["q_proj"], r=2, decompose_both=True, decompose_factor=8),
    "MiSS, bat": lambda: MissConfig(target_modules=["q_proj", "v_proj"], r=8, init_weights="bat"),
    "OFT of the embedding": lambda: OFTConfig(target_modules=["embed_tokens", "q_proj"], oft_block_size=4, r=0),
    "OFT, shared blocks": lambda: OFTConfig(target_modules=["q_proj"], oft_block_size=8, r=0, block_share=True),
    "VB-LoRA, weights of the chosen vectors": lambda: VBLoRAConfig(
        target_modules=["q_proj"], num_vectors=8, vector_length=4, topk=2, save_only_topk_weights=True
    ),
    "VeRA and a module saved whole": lambda: VeraConfig(
        target_modules=["q_proj", "down_proj"], r=8, modules_to_save=["lm_head"]
    ),
    "WaveFT, shares by size": lambda: WaveFTConfig(
        target_modules=["q_proj", "v_proj", "down_proj"], n_frequency=50, proportional_parameters=True
    ),
}


@pytest.mark.parametrize("options", OTHER_OPTIONS)
def test_options_that_speak_of_other_modules(bases: dict[str, Path], tmp_path: Path, options: str) -> None:
    assert_as_peft(bases["llama"], tmp_path, OTHER_OPTIONS[options]())


def test_adalora_after_training_has_a_rank_for_each_module(bases: dict[str, Path], tmp_path: Path) -> None:
    """The budget takes singular values away while it is trained; what is left stands in rank_pattern, by module."""
    config = AdaLoraConfig(
        target_modules=LINEAR["llama"], total_step=8, tinit=1, tfinal=3, deltaT=1, init_r=6, target_r=2
    )
    torch.manual_seed(0)
    adapted = get_peft_model(load_base(bases["llama"], torch.float32), config)
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    tokens = torch.arange(48).view(2, 24) * 7 % 160
    for step in range(8):
        adapted(tokens, labels=tokens).loss.backward()
        optimizer.step()
        adapted.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    adapted.save_pretrained(tmp_path / "adapter")
    kept = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["rank_pattern"].values()
    assert len({sum(ranks) for ranks in kept}) > 1, "every module has the same rank"
    merge_checkpoint(bases["llama"], [tmp_path / "adapter"], tmp_path / "merged")
    truth, ours = logits_of(adapted), logits_of(load_base(tmp_path / "merged", torch.float32))
    before = logits_of(load_base(bases["llama"], torch.float32))
    assert float((ours - truth).abs().max()) < 1e-4 * float(truth.abs().max()) < float((truth - before).abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_lora(bases: dict[str, Path], tmp_path: Path, variant: str) -> None:
    assert_as_peft(bases["llama"], tmp_path, VARIANTS[variant]())


@pytest.mark.parametrize("start", ["pissa", True])
def test_dora_and_pissa_on_conv1d(bases: dict[str, Path], tmp_path: Path, start: Any) -> None:
    config = LoraConfig(r=4, target_modules=LINEAR["gpt2"], init_lora_weights=start, use_dora=start is True)
    assert_as_peft(bases["gpt2"], tmp_path, config)


def test_every_method_of_peft_is_decided() -> None:
    known = {kind.value for kind in PeftType}
    assert known == THROUGH_PEFT | NOT_MERGED.keys() | {"LORA"}
    for kind in known - NOT_MERGED.keys():
        assert hasattr(PEFT_TYPE_TO_TUNER_MAPPING[PeftType(kind)], "merge_and_unload")


def test_every_option_of_lora_is_decided() -> None:
    """A field that is set to something unheard of is refused unless it is known; a newer peft brings new ones."""
    plain = json.loads(json.dumps(LoraConfig(target_modules=["q_proj"]).to_dict(), default=list))
    assert refusal(plain) is None
    assert is_plain_lora(plain)
    for field in (field for field in fields(LoraConfig) if field.name != "peft_type"):
        answer = refusal(plain | {field.name: {"some": "thing"}})
        assert answer is None or "does not know" not in answer, field.name


def test_convolutions(tmp_path: Path) -> None:
    """LoRA of convolutions, compared with the module that peft trained."""
    torch.manual_seed(0)
    for layer in (torch.nn.Conv1d(6, 8, 3), torch.nn.Conv2d(6, 8, 3)):
        model = torch.nn.Sequential(layer)
        before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
        config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        adapted = get_peft_model(model, config)
        tensors = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(adapted).items()}
        merged = merge_module(config.to_dict(), "0", "conv", before, tensors, {})
        exact = adapted.merge_and_unload()[0]
        assert torch.allclose(merged["weight"], exact.weight)
        assert not torch.allclose(merged["weight"], before["weight"])


def test_what_peft_does_not_know_or_miss_is_said() -> None:
    weight = {"weight": torch.zeros(8, 8)}
    config = {"peft_type": "LOHA", "r": 2, "alpha": 2}
    halves = {f"base_model.model.m.hada_{half}": torch.ones(8, 2) for half in ("w1_a", "w2_a")}
    halves |= {f"base_model.model.m.hada_{half}": torch.ones(2, 8) for half in ("w1_b", "w2_b")}
    assert float(merge_module(config, "m", "linear", weight, halves, {})["weight"].max()) == 4
    with pytest.raises(OllamakeError, match=r"peft does not know: use_quantum_loha"):
        merge_module(config | {"use_quantum_loha": True}, "m", "linear", weight, halves, {})
    lost = dict(list(halves.items())[:3])
    with pytest.raises(OllamakeError, match=r"m: the tensors of the adapter .* missing: base_model.model.m.hada_w2_b"):
        merge_module(config, "m", "linear", weight, lost, {})
    with pytest.raises(OllamakeError, match=r"unused: base_model.model.m.hada_x"):
        merge_module(config, "m", "linear", weight, halves | {"base_model.model.m.hada_x": torch.ones(1)}, {})
    with pytest.raises(
        OllamakeError, match=r"(?s)m: peft cannot merge its LOHA update into this layer: .*size mismatch"
    ):
        merge_module(config | {"r": 3}, "m", "linear", weight, halves, {})
