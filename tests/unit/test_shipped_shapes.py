"""The shape files under config/shapes are whole, of one form, and count what the models' publishers count."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "config" / "shapes"
PUBLISHED_SIZES = ROOT / "tests" / "published_gguf_sizes.yaml"
DTYPES = {"BF16", "F16", "F32"}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")

# The parameters of each model as the Hugging Face API publishes them: `safetensors.total` of
# https://huggingface.co/api/models/<model>, and the files of the hub sum to it.
PUBLISHED_COUNTS = {
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-2-27b-it": 27_227_128_320,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
    "microsoft/phi-4": 14_659_507_200,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 15_706_484_224,
}

# What of the published count is vision: transformers' SigLIP tower and projector for these configurations
# (vision_tower.* and multi_modal_projector.*), which are not in the shapes.
VISION_COUNTS = {"google/gemma-3-12b-it": 421_290_864, "google/gemma-3-27b-it": 423_060_336}


def model_of(path: Path) -> str:
    """Return the Hugging Face id that a shape file's path says."""
    return path.relative_to(SHAPES).with_suffix("").as_posix()


def shape_files() -> list[Any]:
    """Return every shape file, as pytest parameters named after the models."""
    return [pytest.param(path, id=model_of(path)) for path in sorted(SHAPES.glob("*/*.yaml"))]


def load(path: Path) -> dict[str, Any]:
    """Parse one shape file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def expand(name: str) -> list[str]:
    """Return the names that a name with braces stands for."""
    ranges = [range(int(first), int(last) + 1) for first, last in BRACES.findall(name)]
    template = BRACES.sub("{}", name)
    return [template.format(*numbers) for numbers in itertools.product(*ranges)]


def tensors_of(shape: dict[str, Any]) -> dict[str, list[Any]]:
    """Return every tensor of a shape by its full name, each named once."""
    tensors: dict[str, list[Any]] = {}
    for pattern, tensor in shape["tensors"].items():
        for name in expand(pattern):
            assert name not in tensors, f"{name} is named twice"
            tensors[name] = tensor
    return tensors


def test_there_are_enough_models_and_each_has_a_published_count() -> None:
    models = {model_of(path) for path in SHAPES.rglob("*.yaml")}
    assert len(models) >= 12
    assert models == set(PUBLISHED_COUNTS)


@pytest.mark.parametrize("path", shape_files())
def test_form(path: Path) -> None:
    shape = load(path)
    assert set(shape) == {"source", "metadata_bytes", "config", "tensors"}
    assert shape["source"] == f"https://huggingface.co/{model_of(path)}/blob/main/config.json"
    assert 100_000 < shape["metadata_bytes"] < 20_000_000
    for name, (dtype, *sizes) in shape["tensors"].items():
        assert dtype in DTYPES, name
        assert sizes, name
        assert all(isinstance(size, int) and size > 0 for size in sizes), name


@pytest.mark.parametrize("path", shape_files())
def test_parameters_are_as_many_as_published(path: Path) -> None:
    counted = sum(math.prod(sizes) for _, *sizes in tensors_of(load(path)).values())
    assert counted + VISION_COUNTS.get(model_of(path), 0) == PUBLISHED_COUNTS[model_of(path)]


@pytest.mark.parametrize("path", shape_files())
def test_shapes_agree_with_the_config(path: Path) -> None:
    shape = load(path)
    config = shape["config"] | shape["config"].get("text_config", {})
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    tensors = tensors_of(shape)

    numbers = {int(found[1]) for name in tensors if (found := re.search(r"\.layers\.(\d+)\.", name))}
    assert numbers == set(range(layers))
    embedding = next(sizes for name, (_, *sizes) in tensors.items() if name.endswith("embed_tokens.weight"))
    assert embedding[1] == hidden
    assert embedding[0] == config.get("vocab_size", 262_208)  # Gemma 3 leaves it to transformers' default
    assert tensors.get("lm_head.weight", ["BF16", *embedding])[1:] == embedding
    assert ("lm_head.weight" in tensors) == (config.get("tie_word_embeddings", True) is False)
    for name, (_, *sizes) in tensors.items():
        if name.endswith("layernorm.weight") and "kv_a_layernorm" not in name:
            assert sizes == [hidden], name
        if name.endswith((".q_proj.weight", ".k_proj.weight", ".v_proj.weight", "qkv_proj.weight", "gate.weight")):
            assert sizes[1] == hidden, name
        if name.endswith(("gate_proj.weight", "up_proj.weight", ".w1.weight", ".w3.weight")):
            assert sizes[1] == hidden, name
        if name.endswith(("o_proj.weight", "down_proj.weight", ".w2.weight")):
            assert sizes[0] == hidden, name


def test_published_sizes_are_of_these_models() -> None:
    entries = yaml.safe_load(PUBLISHED_SIZES.read_text(encoding="utf-8"))["files"]
    assert {entry["model"] for entry in entries} == set(PUBLISHED_COUNTS)
    for entry in entries:
        assert ("bytes" in entry) != ("gigabytes" in entry), entry
        assert entry["source"].startswith(f"https://huggingface.co/{entry['maker']}/")
        assert entry["seen"]
