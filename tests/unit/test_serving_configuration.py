"""`serving` of the configuration: what is served where nothing is said, and what cannot be, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ollamake.configuration import read_configuration
from ollamake.errors import OllamakeError
from ollamake.serving_configuration import Serving

SCHEMA = Path(__file__).parents[2] / "config/schemas/config.schema.yaml"


def serving(model: str, more: str = "") -> Serving | None:
    configuration = read_configuration(yaml.safe_load(f"models: {{m: {{base: b, {model}}}}}\n{more}"), SCHEMA)
    return configuration.models["m"].serving


@pytest.mark.parametrize(
    ("model", "checkpoints"),
    [
        ("serving: {}", ("merged",)),
        ("adapter: a, serving: {}", ("merged",)),
        ("adapter: a, serve: adapter, serving: {}", ("adapter",)),
        ("serve: adapter, serving: {}", ("merged",)),  # without an adapter it is the base
        ("adapter: a, serving: {checkpoints: [adapter, merged]}", ("merged", "adapter")),
    ],
)
def test_what_is_served(model: str, checkpoints: tuple[str, ...]) -> None:
    assert serving(model) == Serving(checkpoints, 8000)


def test_nothing_is_served_where_it_is_not_asked_for() -> None:
    assert serving("adapter: a") is None
    assert serving("adapter: a, serving: null") is None


def test_a_port() -> None:
    assert serving("serving: {port: 8080}") == Serving(("merged",), 8080)


KEPT = "keep: {merged: false}"


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("serving: {checkpoints: [merged]}", KEPT, r"merged cannot be served: `keep.merged: false` removes"),
        ("serving: {}", KEPT, r"nothing to serve: merged: `keep.merged: false`"),
        ("adapter: a, serve: adapter, serving: {checkpoints: [merged]}", "", "with `serve: adapter` nothing is merged"),
        ("serving: {checkpoints: [adapter]}", "", "the model has no adapter"),
        ("adapters: [{path: a}, {path: c}], serving: {checkpoints: [adapter]}", "", "the model is the sum of 2"),
        ("adapters: [{path: a, weight: 0.5}], serving: {checkpoints: [adapter]}", "", r"added 0\.5 times"),
        ("serving: {checkpoints: [nf4]}", "", r"nf4 cannot be served: `bitsandbytes: \{types: \[nf4\]\}` makes it"),
    ],
)
def test_what_cannot_be_served(model: str, more: str, message: str) -> None:
    with pytest.raises(OllamakeError, match=message) as caught:
        serving(model, more)
    assert str(caught.value).startswith("models.m.serving")


@pytest.mark.parametrize(
    "value", ["{checkpoints: []}", "{checkpoints: [gguf]}", "{port: 80}", "{engine: vllm}", "true"]
)
def test_the_schema_refuses(value: str) -> None:
    with pytest.raises(OllamakeError, match=r"models\.m\.serving"):
        serving(f"serving: {value}")


def test_of_a_model_for_comparison_nothing_is_served(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("道路", encoding="utf-8")
    model = {"base": "b", "adapter": "a", "serving": {}, "quality": {"text": [str(tmp_path / "text")]}}
    models = read_configuration({"models": {"m": model}}, SCHEMA).models
    assert {name: model.serving is not None for name, model in models.items()} == {"m": True, "m-base": False}
