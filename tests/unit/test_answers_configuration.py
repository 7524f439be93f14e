"""What `answers` adds to the models that are built: their bases, and themselves before quantization."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ollamake.configuration import read_configuration
from ollamake.errors import OllamakeError

SCHEMA = Path(__file__).parents[2] / "config/schemas/config.schema.yaml"


def read(text: str) -> Any:
    return read_configuration(yaml.safe_load(text), SCHEMA)


@pytest.fixture(autouse=True)
def _questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file `q` where the workflow runs."""
    monkeypatch.chdir(tmp_path)
    Path("q").touch()


@pytest.mark.parametrize(("said", "taken"), [("q", "q"), ("./q", "q"), ("~/q", "HOME/q")])
def test_one_spelling_of_the_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, taken: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    questions = read(f"models: {{m: {{base: b, answers: {{questions: {said}}}}}}}").models["m"].answers.questions
    assert questions == taken.replace("HOME", str(tmp_path))


def test_questions_that_are_not_there() -> None:
    with pytest.raises(
        OllamakeError, match=r"^models\.m\.answers\.questions: there is no file r\. .* a question a line"
    ):
        read("models: {m: {base: b, answers: {questions: r}}}")


def test_a_base_is_built_for_comparison() -> None:
    models = read("""
models:
  m:
    base: b
    adapter: a
    quantizations: [Q8_0, Q4_K_M]
    ollama: {name: "me/m:{quant}", system: S, license: [MIT], parameters: {top_k: 1}, template: T}
    answers: {questions: q, compare: [base]}
""").models
    assert list(models) == ["m", "m-base"]
    model, base = models["m"], models["m-base"]
    assert model.answers.base == ("m-base", "Q8_0")
    assert not model.is_derived
    assert (base.base, base.adapters, base.quantizations) == ("b", (), ("Q8_0",))
    assert base.registered_names == {"Q8_0": "m-base:q8_0"}
    assert (base.system, base.license, base.parameters, base.template) == ("S", ("MIT",), {"top_k": 1}, "T")
    # Nothing of its own is demanded of it.
    assert (base.is_derived, base.answers.questions, base.template_differs) == (True, None, "warn")


@pytest.mark.parametrize("order", ["first, m", "m, first"])
def test_a_model_that_is_the_base_anyway_is_compared_with(order: str) -> None:
    described = {
        "first": "first: {base: ./b/, quantizations: [Q6_K, Q8_0]}",
        "m": "m: {base: b, adapter: a, answers: {questions: q, compare: [base]}}",
    }
    text = "models: {" + ", ".join(described[name] for name in order.split(", ")) + "}"
    models = read(text).models
    assert sorted(models) == ["first", "m"]
    assert models["m"].answers.base == ("first", "Q6_K")
    assert not models["first"].is_derived


def test_models_of_one_base_share_it_and_others_do_not() -> None:
    models = read("""
defaults: {answers: {questions: q, compare: [base]}}
models:
  one: {base: b, adapter: x}
  two: {base: b, adapter: y}
  three: {base: other, adapter: x}
""").models
    assert list(models) == ["one", "two", "three", "one-base", "three-base"]
    assert [models[name].answers.base for name in ("one", "two", "three")] == [
        ("one-base", "Q4_K_M"),
        ("one-base", "Q4_K_M"),
        ("three-base", "Q4_K_M"),
    ]


@pytest.mark.parametrize(
    "model",
    [
        "{base: b, answers: {questions: q, compare: [base]}}",
        "{base: b, adapter: a, answers: {compare: [base, unquantized]}}",
        "{base: b, adapter: a, answers: {questions: q}}",
    ],
)
def test_nothing_is_built_for_a_comparison_that_is_none(model: str) -> None:
    models = read(f"models: {{m: {model}}}").models
    assert list(models) == ["m"]
    assert models["m"].quantizations == ("Q4_K_M",)
    assert (models["m"].answers.base, models["m"].answers.unquantized) == (None, None)


@pytest.mark.parametrize("taken", ["{base: other}", "{base: b, adapter: c}"])
def test_a_name_that_the_base_for_comparison_would_have(taken: str) -> None:
    with pytest.raises(OllamakeError) as caught:
        read(f"models: {{m-base: {taken}, m: {{base: b, adapter: a, answers: {{questions: q, compare: [base]}}}}}}")
    assert str(caught.value).startswith(
        "models.m-base: this name is taken by the base of models.m (answers.compare: [base])"
    )
    assert str(caught.value).endswith("Give it another name.")


def test_a_registered_name_that_the_base_for_comparison_would_have() -> None:
    with pytest.raises(OllamakeError, match=r"would both be registered as 'm-base:q8_0'"):
        read("""
models:
  m: {base: b, adapter: a, quantizations: [Q8_0], answers: {questions: q, compare: [base]}}
  other: {base: c, quantizations: [Q8_0], ollama: {name: m-base}}
""")


def test_a_base_for_comparison_whose_name_would_be_too_long() -> None:
    with pytest.raises(OllamakeError, match=r"models\.x+\.answers\.compare: 'x+-base:q4_k_m' is not a name"):
        read(f"models: {{{'x' * 78}: {{base: b, adapter: a, answers: {{questions: q, compare: [base]}}}}}}")


@pytest.mark.parametrize(
    ("dtype", "kind"), [("auto", "F16"), ("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")]
)
def test_the_fine_tune_before_quantization_has_the_type_of_the_merge(dtype: str, kind: str) -> None:
    text = "models: {m: {base: b, adapter: a, answers: {questions: q, compare: [unquantized]}}}"
    model = read(f"{text}\nmerge: {{dtype: {dtype}}}").models["m"]
    assert model.answers.unquantized == kind
    assert model.quantizations == ("Q4_K_M", kind)
    assert model.registered_names == {"Q4_K_M": "m:q4_k_m", kind: f"m:{kind.lower()}"}


def test_an_unquantized_type_that_is_named_anyway_is_judged_as_the_others() -> None:
    text = "{base: b, quantizations: [F16, Q8_0], answers: {questions: q, compare: [unquantized]}}"
    model = read(f"models: {{m: {text}}}").models["m"]
    assert (model.quantizations, model.answers.unquantized) == (("F16", "Q8_0"), None)


def test_both_comparisons_at_once() -> None:
    models = read("""
models: {m: {base: b, adapter: a, answers: {questions: q, compare: [base, unquantized]}}}
""").models
    assert models["m"].quantizations == ("Q4_K_M", "F16")
    assert models["m-base"].quantizations == ("Q4_K_M",)


def test_one_name_with_a_tag_has_no_room_for_the_fine_tune_before_quantization() -> None:
    with pytest.raises(OllamakeError, match=r"models\.m\.ollama\.name: 'm:mine' .* 2 quantizations \(Q4_K_M, F16\)"):
        read("models: {m: {base: b, ollama: {name: 'm:mine'}, answers: {questions: q, compare: [unquantized]}}}")
