"""The configuration: defaults, inheritance, and one clear line for each fault."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ollamake.configuration import overlay_models, read_configuration
from ollamake.configuration_faults import nearest
from ollamake.errors import OllamakeError

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "config/schemas/config.schema.yaml"


def read(text: str) -> Any:
    return read_configuration(yaml.safe_load(text), SCHEMA)


def test_the_shipped_configuration() -> None:
    configuration = read((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    model = configuration.models["rag-finetuned"]
    assert model.quantizations == ("Q4_K_M", "Q8_0")
    assert model.system == "道路設計の専門家として回答します。"
    assert model.registered_names == {"Q4_K_M": "rag-finetuned:q4_k_m", "Q8_0": "rag-finetuned:q8_0"}
    assert configuration.target == "auto"


def test_five_lines_are_enough() -> None:
    configuration = read("models:\n  mine:\n    base: b/\n    adapter: a\n")
    model = configuration.models["mine"]
    assert (model.base, model.quantizations) == ("b", ("Q4_K_M",))
    assert [(adapter.path, adapter.weight) for adapter in model.adapters] == [("a", 1.0)]
    assert (model.system, model.parameters) == (None, {})
    assert configuration.dtype == "auto"
    assert configuration.keep_merged
    assert configuration.keep_unquantized


def test_the_defaults_of_what_need_not_be_said() -> None:
    configuration = read("models: {m: {base: b}}")
    assert (configuration.host, configuration.store, configuration.timeout) == (None, "results/ollama-store", 30.0)
    model = configuration.models["m"]
    assert (model.template, model.template_differs, model.license) == ("auto", "stop", ())
    answers = model.answers
    assert (answers.questions, answers.min_score, answers.max_tokens) == (None, 0.8, 512)
    assert (answers.unquantized, answers.base, model.compare, model.is_derived) == (None, None, (), False)


def test_every_key_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").touch()
    configuration = read("""
ollama: {target: server, host: "gpu:5000", store: ~/models/, timeout: 90}
models:
  m:
    base: b
    ollama: {template: "{{ .Prompt }}", template_differs: warn, license: [MIT, null, " BSD "]}
    answers: {questions: ./q.jsonl, min_score: 1, max_tokens: 7}
""")
    assert (configuration.target, configuration.host) == ("server", "gpu:5000")
    assert (configuration.store, configuration.timeout) == ("/home/me/models", 90.0)
    model = configuration.models["m"]
    assert (model.template, model.template_differs) == ("{{ .Prompt }}", "warn")
    assert model.license == ("MIT", " BSD ")
    answers = model.answers
    assert (answers.questions, answers.min_score, answers.max_tokens) == ("q.jsonl", 1.0, 7)


@pytest.mark.parametrize(("said", "template"), [("auto", "auto"), ("gguf", "gguf"), ("null", "auto")])
def test_policies_of_the_template(said: str, template: str) -> None:
    assert read(f"models: {{m: {{base: b, ollama: {{template: {said}}}}}}}").models["m"].template == template


TEXT = "道路設計\r\n\u3000\ttwo\n\n  \ufeffend "


@pytest.mark.parametrize("key", ["system", "template", "license"])
def test_a_text_in_a_file_is_taken_to_the_byte(tmp_path: Path, key: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode())
    value: Any = {"file": str(path)}
    text = yaml.safe_dump({"models": {"m": {"base": "b", "ollama": {key: [value] if key == "license" else value}}}})
    found = getattr(read(text).models["m"], key)
    assert (found[0] if key == "license" else found) == TEXT


def test_a_file_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "system.txt").write_bytes(b"S")
    assert read("models: {m: {base: b, ollama: {system: {file: ~/system.txt}}}}").models["m"].system == "S"


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("system: {file: FILE}", "models.m.ollama.system.file"),
        ("template: {file: FILE}", "models.m.ollama.template.file"),
        ("license: [MIT, {file: FILE}]", "models.m.ollama.license.file"),
    ],
)
@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, written: str, key: str, content: bytes | None) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OllamakeError) as caught:
        read(f"models: {{m: {{base: b, ollama: {{{written.replace('FILE', str(path))}}}}}}}")
    assert str(caught.value).startswith(f"{key}: {path} cannot be read as UTF-8 text (")


def test_a_text_takes_the_place_of_a_file_in_the_defaults_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"A")
    (tmp_path / "b").write_bytes(b"B")
    models = read(f"""
defaults: {{base: b, ollama: {{system: {{file: {tmp_path}/a}}, template: text}}}}
models:
  one: {{}}
  two: {{ollama: {{system: said, template: {{file: {tmp_path}/b}}}}}}
  three: {{ollama: {{system: {{file: {tmp_path}/b}}}}}}
  four: {{ollama: {{system: null}}}}
""").models
    assert [model.system for model in models.values()] == ["A", "said", "B", None]
    assert [model.template for model in models.values()] == ["text", "B", "text", "text"]


def test_several_adapters() -> None:
    adapters = read("models: {m: {base: b, adapters: [{path: a/}, {path: c, weight: -0.5}]}}").models["m"].adapters
    assert [(one.path, one.weight) for one in adapters] == [("a", 1.0), ("c", -0.5)]


@pytest.mark.parametrize("spelling", ["b", "b/", "./b", "x/../b//"])
def test_one_spelling_of_a_folder(spelling: str) -> None:
    assert read(f"models: {{m: {{base: '{spelling}', adapter: '{spelling}'}}}}").models["m"].base == "b"


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert read("models: {m: {base: ~/b}}").models["m"].base == "/somewhere/b"


def test_defaults_reach_every_model_that_does_not_say_it_itself() -> None:
    configuration = read("""
defaults: {base: shared, quantizations: [Q8_0], ollama: {system: S, parameters: {top_k: 5, temperature: 0.5}}}
models:
  one: {}
  two: {quantizations: [Q6_K], ollama: {parameters: {temperature: 0}}}
""")
    one, two = configuration.models["one"], configuration.models["two"]
    assert (one.base, two.base, one.quantizations, two.quantizations) == ("shared", "shared", ("Q8_0",), ("Q6_K",))
    assert (one.system, two.system) == ("S", "S")
    assert two.parameters == {"top_k": 5, "temperature": 0}


def test_own_models_take_the_place_of_the_shipped_and_variations_inherit() -> None:
    shipped = {"demo": {"base": "d", "adapter": "x", "ollama": {"system": "S", "name": "n"}}}
    assert overlay_models(shipped, {"mine": {"base": "b"}}) == {"mine": {"base": "b"}}
    assert overlay_models(shipped, {"demo": {"base": "b"}}) == {"demo": {"base": "b"}}
    varied = overlay_models(shipped, {"demo": {"ollama": {"system": "T"}}})
    assert varied == {"demo": {"base": "d", "adapter": "x", "ollama": {"system": "T", "name": "n"}}}


FAULTS = {
    "models: {m: {base: b, quantisations: [Q8_0]}}": ["models.m.quantisations: unknown key", "'quantizations'"],
    "models: {m: {base: b}}\ntols: {}": ["tols: unknown key", "'tools'"],
    "models: {m: {base: b, ollama: {sytem: x}}}": ["models.m.ollama.sytem: unknown key", "'system'"],
    "defaults: {bas: b}\nmodels: {m: {base: b}}": ["defaults.bas: unknown key", "'base'"],
    "models: {m: {base: b, quantizations: [Q4KM]}}": ["models.m.quantizations[0]: 'Q4KM'", "Q4_K_M"],
    "models: {m: {base: b, quantizations: [q4_k_m]}}": ["'q4_k_m' is not a type", "Did you mean Q4_K_M"],
    "models: {m: {base: b, quantizations: [int4]}}": ["'int4' is not a type"],
    "models: {m: {base: b, quantizations: []}}": ["models.m.quantizations: is empty"],
    "models: {m: {base: b, quantizations: [Q8_0, Q8_0]}}": ["models.m.quantizations", "twice"],
    "models: {m: {base: b, quantizations: Q8_0}}": ["models.m.quantizations: expected auto, or a list", "found 'Q8_0'"],
    "models: {m: {base: b, quantizations: 3}}": ["models.m.quantizations: expected array or string; found 3"],
    "models: {m: {base: b, quantizations: [auto]}}": ["models.m.quantizations[0]: 'auto' is not a type"],
    "models: {m: {base: b}}\nplan: {context: 100}": ["plan.context: expected at least 256; found 100"],
    "models: {m: {base: b}}\nplan: {kv_cache: q5_1}": ["plan.kv_cache: expected one of f16, q8_0, q4_0"],
    "models: {m: {base: b}}\nplan: {margin_gib: -1}": ["plan.margin_gib: expected at least 0; found -1"],
    "models: {m: {base: b}}\nplan: {parallel: 0}": ["plan.parallel: expected at least 1; found 0"],
    "models: {m: {base: b}}\nplan: {alternatives: [Qwen]}": ["plan.alternatives: 'Qwen'", "org/name"],
    "models: {m: {base: b}}\nplan: {alternatives: [../up]}": ["plan.alternatives: '../up'", "org/name"],
    "models: {m: {base: b}}\nhardware: {gpus: [{name: A}]}": ["hardware.gpus[0]: missing key(s): memory_gib"],
    "models: {m: {base: b}}\nhardware: {gpus: [{memory_gib: -3}]}": [
        "hardware.gpus[0].memory_gib: expected more than 0"
    ],
    "models: {m: {base: b}}\nhardware: {gpus: [{memory_gib: 36864}]}": [
        "hardware.gpus[0].memory_gib",
        "did you mean 36?",
    ],
    "models: {m: {base: b}}\nhardware: {ram_gib: 0}": ["hardware.ram_gib: expected more than 0; found 0"],
    "models: {m: {base: b}}\nhardware: {disk_gib: -1}": ["hardware.disk_gib: expected more than 0; found -1"],
    "models: {m: {base: b, ollama: {parameters: {num_ctx: all}}}}": ["num_ctx: expected a whole number"],
    "models: {m: {base: b, quantizations: [IQ2_XXS]}}": ["importance matrix", "Q2_0"],
    "models: {m: {base: 7}}": ["models.m.base: expected string; found 7"],
    "models: {m: {base: ''}}": ["models.m.base: is an empty text"],
    "models: {m: {adapter: a}}": ["models.m.base: missing"],
    "models: {m: {base: b, adapter: a, adapters: [{path: c}]}}": ["models.m: has both adapter and adapters"],
    "models: {m: {base: b, adapters: [{path: a}, {path: ./a/, weight: 2}]}}": [
        "models.m.adapters: a stands there twice"
    ],
    "models: {m: {base: b, adapters: []}}": ["models.m.adapters: is empty"],
    "models: {m: {base: b, adapters: [{weight: 1}]}}": ["models.m.adapters[0]: missing key(s): path"],
    "models: {m: {base: b, adapters: [{path: a, weight: .nan}]}}": [
        "models.m.adapters[0].weight: expected a finite number"
    ],
    "models: {m: {base: b, adapters: [{path: a, weight: 0}]}}": ["the weight of a is 0.0", "other than zero"],
    "models: {m: {base: b, adapters: [{path: a, wieght: 1}]}}": [
        "models.m.adapters[0].wieght: unknown key",
        "'weight'",
    ],
    "models: {1: {base: b}}": ["models: expected string; found 1"],
    "models: {}": ["models: is empty"],
    "models: [m]": ["models: expected keys with values"],
    "tools: {threads: 2}": ["missing key(s): models"],
    "models: {m: {base: b}}\nmerge: {dtype: int8}": ["merge.dtype: expected one of auto, float16", "'int8'"],
    "models: {m: {base: b}}\ntools: {threads: 0}": ["tools.threads"],
    "models: {m: {base: b}}\nollama: {target: cloud}": ["ollama.target: expected one of auto, server, store"],
    "models: {m: {base: b}}\nkeep: {merged: 1}": ["keep.merged: expected boolean; found 1"],
    "models: {m: {base: b, ollama: {parameters: {temprature: 1}}}}": ["parameters.temprature", "temperature"],
    "models: {m: {base: b, ollama: {parameters: {temperature: hot}}}}": ["temperature: expected a number; found 'hot'"],
    "models: {m: {base: b, ollama: {name: 'a b'}}}": ["models.m.ollama.name: 'a b:q4_k_m'"],
    "models: {m: {base: b}}\nollama: {store: ''}": ["ollama.store: is an empty text"],
    "models: {m: {base: b}}\nollama: {store: null}": ["ollama.store: expected string; found None"],
    "models: {m: {base: b}}\nollama: {timeout: 0}": ["ollama.timeout: expected more than 0; found 0"],
    "models: {m: {base: b}}\nollama: {timeout: long}": ["ollama.timeout: expected number; found 'long'"],
    "models: {m: {base: b}}\nollama: {time_out: 5}": ["ollama.time_out: unknown key", "'timeout'"],
    "models: {m: {base: b, ollama: {system: {fiel: x}}}}": [
        "models.m.ollama.system.fiel: unknown key",
        "'file'",
        "models.m.ollama.system: missing key(s): file",
    ],
    "models: {m: {base: b, ollama: {system: {file: ''}}}}": ["models.m.ollama.system.file: is an empty text"],
    "models: {m: {base: b, ollama: {system: 5}}}": [
        "models.m.ollama.system: expected string or keys with values or null; found 5"
    ],
    "models: {m: {base: b, ollama: {template: [a]}}}": [
        "models.m.ollama.template: expected string or keys with values"
    ],
    "models: {m: {base: b, ollama: {template_differs: ignore}}}": [
        "models.m.ollama.template_differs: expected one of stop, warn; found 'ignore'"
    ],
    "models: {m: {base: b, ollama: {license: MIT}}}": ["models.m.ollama.license: expected array or null; found 'MIT'"],
    "models: {m: {base: b, ollama: {license: []}}}": ["models.m.ollama.license: is empty"],
    "models: {m: {base: b, ollama: {license: [MIT, 5]}}}": ["models.m.ollama.license[1]: expected string or keys"],
    "models: {m: {base: b, answers: {question: q}}}": ["models.m.answers.question: unknown key", "'questions'"],
    "models: {m: {base: b, answers: {questions: ''}}}": ["models.m.answers.questions: is an empty text"],
    "models: {m: {base: b, answers: {questions: [q]}}}": ["models.m.answers.questions: expected string or null"],
    "models: {m: {base: b, answers: {min_score: 80}}}": ["models.m.answers.min_score: expected at most 1; found 80"],
    "models: {m: {base: b, answers: {min_score: -1}}}": ["models.m.answers.min_score: expected at least 0; found -1"],
    "models: {m: {base: b, answers: {max_tokens: 0}}}": ["models.m.answers.max_tokens: expected at least 1; found 0"],
    "models: {m: {base: b, answers: {compare: base}}}": ["models.m.answers.compare: expected array; found 'base'"],
    "models: {m: {base: b, answers: {compare: [bases]}}}": [
        "models.m.answers.compare[0]: expected one of base, unquantized; found 'bases'"
    ],
    "models: {m: {base: b, answers: {compare: [base, base]}}}": ["models.m.answers.compare", "twice"],
    "models: {a: {base: b, ollama: {name: x}}, c: {base: b, ollama: {name: X}}}": [
        "would both be registered as 'x:q4_k_m'"
    ],
    **{
        f"models: {{'{name}': {{base: b}}}}": ["cannot be a model's name", "lower-case"]
        for name in ("../x", "a b", "Upper", "日本", ".hidden", "-x", "a/b", "", "x" * 81)
    },
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_faults(text: str) -> None:
    with pytest.raises(OllamakeError) as caught:
        read(text)
    for words in FAULTS[text]:
        assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(OllamakeError) as caught:
        read("models: {m: {base: 1, adaptor: x}}\nmerge: {dtype: x}")
    assert len(str(caught.value).splitlines()) == 4


def test_nearest_whatever_the_case() -> None:
    assert nearest("TEMPERATUR", ["temperature", "top_p"]) == ["temperature"]
    assert nearest("zzz", ["temperature"]) == []


def test_what_the_plan_decides() -> None:
    """The length of the context unless it is given or left to Ollama; the quantization where it is `auto`."""
    given = read(
        """
models:
  plain: {base: b}
  chosen: {base: b, quantizations: auto}
  auto: {base: b, ollama: {parameters: {num_ctx: auto, top_k: 5}}}
  given: {base: b, ollama: {parameters: {num_ctx: 4096}}}
  ollamas: {base: b, ollama: {parameters: {num_ctx: null}}}
"""
    ).models
    assert {name: model.plans_num_ctx for name, model in given.items()} == {
        "plain": True,
        "chosen": True,
        "auto": True,
        "given": False,
        "ollamas": False,
    }
    assert [given[name].parameters for name in ("auto", "given", "ollamas")] == [{"top_k": 5}, {"num_ctx": 4096}, {}]
    assert (given["plain"].quantizations, given["plain"].is_automatic) == (("Q4_K_M",), False)
    assert (given["chosen"].quantizations, given["chosen"].is_automatic) == ((), True)
    assert given["chosen"].registered_names["Q6_K"] == "chosen:q6_k"
    assert "IQ2_XXS" not in given["chosen"].registered_names


def test_a_fixed_tag_suits_a_quantization_that_is_chosen() -> None:
    model = read("models: {m: {base: b, quantizations: auto, ollama: {name: 'road:v1'}}}").models["m"]
    assert set(model.registered_names.values()) == {"road:v1"}


def test_the_name_of_a_gpu_may_be_left_out() -> None:
    hardware = read("models: {m: {base: b}}\nhardware: {gpus: [{memory_gib: 36}]}").hardware
    assert hardware == {"gpus": [{"name": "GPU", "memory_gib": 36}], "ram_gib": None, "disk_gib": None}
