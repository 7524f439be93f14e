"""Shapes are read as they are written, condensed names stand for what they say, and defects are named."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snakemake_runs import REPOSITORY

from ollamake import shape as shape_module
from ollamake.errors import OllamakeError
from ollamake.safetensors_header import BITS
from ollamake.shape import (
    Shape,
    cached_names,
    estimated_metadata_bytes,
    expanded,
    read_shape,
    shape_of_folder,
    shipped_names,
    shipped_shape,
    write_shape,
)

SHIPPED = REPOSITORY / "config/shapes"
GOOD = """\
source: https://huggingface.co/org/model
metadata_bytes: 12
config: {architectures: [Qwen2ForCausalLM], rms_norm_eps: 1.0e-06}
tensors:
  model.layers.{0..11}.mlp.experts.{2..3}.weight: [BF16, 4, 6]
  model.norm.weight: [F32, 4]
"""


def written(folder: Path, text: str, name: str = "org/model-1.5.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_condensed_names_stand_for_all_combinations(tmp_path: Path) -> None:
    shape = read_shape(written(tmp_path, GOOD))
    assert shape.name == "org/model-1.5"
    assert (shape.source, shape.metadata_bytes) == ("https://huggingface.co/org/model", 12)
    assert shape.config == {"architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6}
    experts = {f"model.layers.{layer}.mlp.experts.{expert}.weight" for layer in range(12) for expert in (2, 3)}
    assert {name for name, _, _ in shape.tensors} == experts | {"model.norm.weight"}
    assert {(dtype, dims) for name, dtype, dims in shape.tensors if name in experts} == {("BF16", (4, 6))}
    assert list(shape.tensors) == sorted(shape.tensors)


TEXTS = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs", "Cc"]), max_size=8)
RANGES = st.tuples(st.integers(0, 200), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(TEXTS, st.lists(st.tuples(RANGES, TEXTS), max_size=3))
def test_ranges_are_what_a_product_of_their_numbers_is(first: str, rest: list[tuple[tuple[int, int], str]]) -> None:
    pattern = first + "".join(f"{{{a}..{b}}}{text}" for (a, b), text in rest)
    numbers = itertools.product(*([*map(str, range(a, b + 1))] for (a, b), _ in rest))
    expected = [first + "".join(n + text for n, (_, text) in zip(own, rest, strict=True)) for own in numbers]
    assert list(expanded(pattern)) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "a.{0..}",
        "a.{3..2}",
        "a.{0..2",
        "a.0..2}",
        "a.{00..02}",
        "a.{0...2}",
        "a.{-1..2}",
        "{{0..1}}",
        "{0..999}{0..1000}.{0..1}",
    ],
)
def test_braces_that_are_no_ranges(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"range|stands for"):
        list(expanded(pattern))


SHAPES = st.builds(
    Shape,
    name=st.just("org/model"),
    source=st.text(st.characters(exclude_categories=["Cs"])),
    config=st.dictionaries(TEXTS, st.integers() | st.booleans() | st.floats(allow_nan=False) | TEXTS | st.none()),
    tensors=st.dictionaries(
        TEXTS, st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 2**40), max_size=4)), min_size=1
    ).map(lambda table: tuple(sorted((name, dtype, tuple(dims)) for name, (dtype, dims) in table.items()))),
    metadata_bytes=st.none() | st.integers(0, 10**9),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(SHAPES)
def test_a_shape_is_read_as_it_was_written(tmp_path: Path, shape: Shape) -> None:
    path = tmp_path / "resources/shapes/other/name.json"
    write_shape(path, shape)
    assert read_shape(path) == shape


@pytest.mark.parametrize("name", shipped_names(SHIPPED))
def test_shipped_shapes_are_read_and_come_back_expanded(name: str, tmp_path: Path) -> None:
    path = shipped_shape(name, SHIPPED)
    assert path is not None
    shape = read_shape(path)
    assert shape.name == name
    write_shape(tmp_path / "shape.json", shape)
    assert read_shape(tmp_path / "shape.json") == shape
    # The one who reads YAML without us finds as many numbers in the ranges.
    table = yaml.safe_load(path.read_text(encoding="utf-8"))["tensors"]
    assert sum(math.prod(dims[1:]) * len(list(expanded(pattern))) for pattern, dims in table.items()) == sum(
        math.prod(dims) for _, _, dims in shape.tensors
    )


def test_shipped_parameters_are_the_published_ones() -> None:
    published = {"Qwen/Qwen2.5-32B-Instruct": 32_763_876_352, "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248}
    for name, parameters in published.items():
        tensors = read_shape(SHIPPED / f"{name}.yaml").tensors
        assert sum(math.prod(dims) for _, _, dims in tensors) == parameters


DEFECTS = {
    "not YAML": (GOOD + "  a: [", "cannot be read"),
    "list": ("- a", "expected the keys source, metadata_bytes, config, tensors, found list"),
    "key missing": (GOOD.replace("source:", "sauce:"), "found sauce"),
    "key twice": (GOOD + "  model.norm.weight: [F32, 5]\n", "'model.norm.weight' stands there twice"),
    "name twice": (
        GOOD + "  model.layers.3.mlp.experts.{1..2}.weight: [BF16, 4, 6]\n",
        "experts.2.weight' is there twice",
    ),
    "dtype": (GOOD.replace("F32, 4", "F33, 4"), "expected [dtype, rows, columns]"),
    "no dtype": (GOOD.replace("[F32, 4]", "[4]"), "expected [dtype, rows, columns]"),
    "no list": (GOOD.replace("[F32, 4]", "F32"), "expected [dtype, rows, columns]"),
    "negative": (GOOD.replace("F32, 4", "F32, -4"), "has the shape [-4]"),
    "size of text": (GOOD.replace("F32, 4", "F32, '4'"), "has the shape ['4']"),
    "size yes": (GOOD.replace("F32, 4", "F32, true"), "has the shape [True]"),
    "number as text": (GOOD.replace("1.0e-06", "1e-6"), "`config: rms_norm_eps` is the text '1e-6'"),
    "metadata": (GOOD.replace("12\n", "many\n"), "`metadata_bytes` is 'many'"),
    "metadata negative": (GOOD.replace("12\n", "-1\n"), "`metadata_bytes` is -1"),
    "metadata yes": (GOOD.replace("12\n", "yes\n"), "`metadata_bytes` is True"),
    "range": (GOOD.replace("{0..11}", "{0..}"), "a brace that is no range"),
    "far too many": (GOOD.replace("{0..11}", "{0..999999999}"), "more than 1000000 tensors"),
    "no tensors": (GOOD.split("tensors:", maxsplit=1)[0] + "tensors: {}\n", "it has no tensors"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_named_with_their_file(defect: str, tmp_path: Path) -> None:
    text, part = DEFECTS[defect]
    assert text != GOOD
    path = written(tmp_path, text)
    with pytest.raises(OllamakeError) as caught:
        read_shape(path)
    assert str(caught.value).startswith(f"{path} is not the shape of a model: ")
    assert part in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 3}', "[" * 100_000])
def test_defects_of_fetched_shapes(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text, "org/model.json")
    with pytest.raises(OllamakeError, match=r"org/model\.json is not the shape .*Delete it"):
        read_shape(path)
    with pytest.raises(OllamakeError, match=r"other\.json cannot be read"):
        read_shape(path.with_name("other.json"))


def test_names_count_upper_and_lower_case(tmp_path: Path) -> None:
    path = written(tmp_path / "shapes", GOOD, "Org/Model-1.5B.yaml")
    written(tmp_path, GOOD, "outside/x.yaml")
    written(tmp_path / "fetched", "{}", "Org/Model-1.5B.json")
    assert shipped_names(tmp_path / "shapes") == cached_names(tmp_path / "fetched") == ["Org/Model-1.5B"]
    assert shipped_shape("Org/Model-1.5B", tmp_path / "shapes") == path
    for name in ("org/model-1.5b", "Org/Model-1.5B.yaml", "../outside/x", "Org", ""):
        assert shipped_shape(name, tmp_path / "shapes") is None
    assert shipped_names(tmp_path / "nothing") == []


@pytest.mark.parametrize("safetensors", [True, False])
def test_a_folder_has_the_tensors_that_transformers_saved(
    safetensors: bool, make_base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_base("mistral", torch.float16, tied=False)
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).state_dict()
    if not safetensors:
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        torch.save(state, folder / "pytorch_model.bin")
    shape = shape_of_folder(folder)
    assert shape.tensors == tuple(sorted((name, "F16", tuple(tensor.shape)) for name, tensor in state.items()))
    assert shape.config == json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (shape.name, shape.source, shape.metadata_bytes) == (folder.name, str(folder), None)


def test_a_configuration_alone_is_no_shape(tmp_path: Path) -> None:
    written(tmp_path, "{}", "config.json")
    with pytest.raises(OllamakeError, match=r"has config\.json, but no \.safetensors.*hub \(org/name\)"):
        shape_of_folder(tmp_path)
    with pytest.raises(OllamakeError, match="does not exist"):
        shape_of_folder(tmp_path / "nothing")


def test_metadata_of_known_vocabularies_is_estimated_within_two_percent() -> None:
    for name in shipped_names(SHIPPED):
        shape = read_shape(SHIPPED / f"{name}.yaml")
        assert shape.metadata_bytes is not None
        assert estimated_metadata_bytes(shape.config) == pytest.approx(shape.metadata_bytes, rel=0.02)


@pytest.mark.parametrize("family", [(32_000, 32_768), (100_352, 102_400), (128_256, 131_072), (151_936, 152_064)])
def test_a_family_told_from_the_others_is_within_the_bound(
    family: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tuple((size, figure) for size, figure in shape_module._MEASURED if size not in family)
    assert len(others) == len(shape_module._MEASURED) - 2
    monkeypatch.setattr(shape_module, "_MEASURED", others)
    measured = [read_shape(SHIPPED / f"{name}.yaml") for name in shipped_names(SHIPPED)]
    errors = [
        abs(estimated_metadata_bytes(shape.config) - (shape.metadata_bytes or 0))
        for shape in measured
        if shape.config.get("vocab_size") in family
    ]
    assert errors
    assert max(errors) <= 3_000_000


@pytest.mark.parametrize("config", [{}, {"vocab_size": None}, {"text_config": {"hidden_size": 3840}}])
def test_a_vocabulary_left_to_transformers_is_that_of_gemma_3(config: dict[str, Any]) -> None:
    gemma = read_shape(SHIPPED / "google/gemma-3-12b-it.yaml")
    assert "vocab_size" not in gemma.config | gemma.config["text_config"]
    assert estimated_metadata_bytes(config) == pytest.approx(gemma.metadata_bytes, rel=0.02)


def test_a_vocabulary_within_text_config_counts() -> None:
    assert estimated_metadata_bytes({"text_config": {"vocab_size": 128_256}}) == pytest.approx(7_823_569, rel=0.02)


def test_beyond_what_was_measured_the_estimate_grows() -> None:
    assert estimated_metadata_bytes({"vocab_size": 524_416}) == 2 * estimated_metadata_bytes({"vocab_size": 262_208})


def test_the_estimate_of_a_tiny_vocabulary_is_small() -> None:
    assert 0 < estimated_metadata_bytes({"vocab_size": 160}) < 10_000
