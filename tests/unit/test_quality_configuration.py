"""What `imatrix` and `quality` say, and what they add to the models that are built."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ollamake.configuration import read_configuration
from ollamake.errors import OllamakeError
from ollamake.quality_configuration import DomainText

SCHEMA = Path(__file__).parents[2] / "config/schemas/config.schema.yaml"


def read(text: str) -> Any:
    return read_configuration(yaml.safe_load(text), SCHEMA)


def one(keys: str) -> Any:
    return read(f"models: {{m: {{base: b, adapter: a, {keys}}}}}").models["m"]


@pytest.fixture(autouse=True)
def _texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files where the workflow runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("t", "u", "c", "q"):
        Path(name).touch()


def test_without_text_nothing_is_measured() -> None:
    models = read("models: {m: {base: b, adapter: a}}").models
    assert list(models) == ["m"]
    assert not models["m"].quality.is_measured
    assert not models["m"].quality.guards_registration
    assert not models["m"].calibration.is_given


def test_texts_are_taken_in_one_spelling() -> None:
    model = one("imatrix: {text: [./t], chunks: null}, quality: {chat: [c], text: [./u], context: 256}")
    assert model.calibration == DomainText(text=("t",), chunks=None, context=512)
    assert model.quality.evaluation == DomainText(text=("u",), chat=("c",), chunks=100, context=256)
    assert model.quality.evaluation.files == ("u", "c")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("imatrix: {text: [gone]}", r"^models\.m\.imatrix\.text: there is no file gone\."),
        ("imatrix: {chat: [gone]}", r"^models\.m\.imatrix\.chat: there is no file gone\."),
        ("quality: {text: [gone]}", r"^models\.m\.quality\.text: there is no file gone\."),
        ("quality: {max_kld_mean: 0.1}", r"^models\.m\.quality\.max_kld_mean: nothing is measured without text"),
        ("quality: {min_top1: 0}", r"^models\.m\.quality\.min_top1: nothing is measured without text"),
        ("quality: {compare: [Q6_K]}", r"^models\.m\.quality\.compare: nothing is measured without text"),
        ("quality: {min_answers: 0.9}", r"^models\.m\.quality\.min_answers: no questions are asked"),
        ("quality: {min_top1: 97}", r"models\.m\.quality\.min_top1: expected at most 1; found 97"),
        ("quality: {max_kld_mean: -1}", r"models\.m\.quality\.max_kld_mean: expected at least 0; found -1"),
        ("quality: {on_fail: ask}", r"models\.m\.quality\.on_fail: expected one of stop, warn; found 'ask'"),
        ("quality: {max_kld_men: 1}", r"models\.m\.quality\.max_kld_men: unknown key\. Did you mean 'max_kld_mean'\?"),
        ("quality: {text: t}", r"models\.m\.quality\.text: expected array; found 't'"),
        ("quality: {compare: [Q9]}", r"'Q9' is not a type of llama-quantize"),
        ("quality: {context: 8}", r"models\.m\.quality\.context: expected at least 32; found 8"),
        ("imatrix: {chunks: 0}", r"models\.m\.imatrix\.chunks: expected at least 1; found 0"),
    ],
)  # fmt: skip
def test_faults(keys: str, message: str) -> None:
    with pytest.raises(OllamakeError, match=message):
        one(keys)


@pytest.mark.parametrize("key", ["quantizations: [IQ2_XS]", "quality: {text: [t], compare: [IQ2_XS]}"])
def test_a_type_that_needs_a_matrix_is_taken_with_one(key: str) -> None:
    with pytest.raises(OllamakeError, match=r"IQ2_XS can only be made with an importance matrix\. .*imatrix: \{text:"):
        one(key)
    model = one(f"{key}, imatrix: {{chat: [c]}}")
    assert "IQ2_XS" in model.quantizations + model.quality.compare


def test_types_that_are_registered_anyway_are_not_compared_twice() -> None:
    model = one("quantizations: [Q8_0], quality: {text: [t], compare: [Q6_K, Q8_0]}")
    assert model.quality.compare == ("Q6_K",)


@pytest.mark.parametrize(
    ("keys", "guards"),
    [
        ("", False),
        (", max_kld_mean: 0.1", True),
        (", min_top1: 0", True),
        (", max_kld_p99: 0", True),
        (", max_ppl_ratio: 1.1, on_fail: warn", False),
        (", min_answers: 0.9", False),
    ],
)
def test_limits_guard_the_registration(keys: str, guards: bool) -> None:
    model = one(f"quality: {{text: [t]{keys}}}, answers: {{questions: q}}")
    assert model.quality.guards_registration is guards


@pytest.mark.parametrize(
    ("quality", "limit"),
    [
        ("{}", (0.5, "models.m.answers.min_score", "stop")),
        # What only warns of a quantization beyond a limit says nothing of a score that is no limit of quality.
        ("{text: [t], on_fail: warn}", (0.5, "models.m.answers.min_score", "stop")),
        ("{min_answers: 0.95}", (0.95, "models.m.quality.min_answers", "stop")),
        ("{min_answers: 0}", (0.0, "models.m.quality.min_answers", "stop")),
        ("{min_answers: 0.95, on_fail: warn}", (0.95, "models.m.quality.min_answers", "warn")),
    ],
)
def test_the_share_of_right_answers_is_one_limit(quality: str, limit: tuple[float, str, str]) -> None:
    answers = one(f"quality: {quality}, answers: {{questions: q, min_score: 0.5}}").answers
    assert (answers.min_score, answers.limit_key, answers.on_fail) == limit


def test_the_base_is_measured_unquantized() -> None:
    models = read("""
models:
  m:
    base: b
    adapter: a
    quantizations: [Q8_0, Q4_K_M]
    imatrix: {text: [u]}
    quality: {text: [t]}
""").models
    assert list(models) == ["m", "m-base"]
    base = models["m-base"]
    assert models["m"].measured_base == "m-base"
    assert (base.base, base.adapters, base.quantizations, base.registered_names) == ("b", (), (), {})
    assert (base.is_derived, base.is_automatic, base.measured_base) == (True, False, None)
    assert not base.quality.is_measured
    assert not base.calibration.is_given


@pytest.mark.parametrize(
    "keys", ["base: b, quality: {text: [t]}", "base: b, adapter: a, quality: {text: [t], base: false}"]
)
def test_no_base_to_measure(keys: str) -> None:
    models = read(f"models: {{m: {{{keys}}}}}").models
    assert list(models) == ["m"]
    assert models["m"].measured_base is None


def test_a_model_that_is_the_base_anyway_is_measured() -> None:
    models = read("""
models:
  m: {base: b, adapter: a, quality: {text: [t]}}
  plain: {base: ./b, quantizations: [Q6_K]}
""").models
    assert sorted(models) == ["m", "plain"]
    assert models["m"].measured_base == "plain"


@pytest.mark.parametrize("order", ["asks, measures", "measures, asks"])
def test_one_base_is_asked_and_measured(order: str) -> None:
    described = {
        "asks": "asks: {base: b, adapter: x, quantizations: [Q4_0], answers: {questions: q, compare: [base]}}",
        "measures": "measures: {base: b, adapter: y, quality: {text: [t]}}",
    }
    models = read("models: {" + ", ".join(described[name] for name in order.split(", ")) + "}").models
    base = order.split(", ")[0] + "-base"
    assert sorted(models) == sorted(["asks", "measures", base])
    assert models["measures"].measured_base == base
    assert models["asks"].answers.base == (base, "Q4_0")
    assert models[base].quantizations == ("Q4_0",)


def test_an_automatic_model_measures_its_base_without_quantizing_it() -> None:
    models = read("models: {m: {base: b, adapter: a, quantizations: auto, quality: {text: [t]}}}").models
    base = models["m-base"]
    assert (base.is_automatic, base.quantizations, base.registered_names) == (False, (), {})


def test_a_name_that_is_taken_by_another_model() -> None:
    with pytest.raises(OllamakeError, match=r"models\.m-base: this name is taken .*quality\.base: true"):
        read("models: {m: {base: b, adapter: a, quality: {text: [t]}}, m-base: {base: other}}")
