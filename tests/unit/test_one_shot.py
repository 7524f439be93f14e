"""A command line becomes a configuration: spellings, where the base is found, what is updated, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.common.configfile import load_configfile

import quantize_finetuned_for_ollama as script
from ollamake import one_shot_build
from ollamake.configuration import Model, read_configuration
from ollamake.errors import OllamakeError
from ollamake.one_shot_base import find_base
from ollamake.one_shot_configuration import built_programs, model_key
from ollamake.one_shot_file import read_file, rendered
from ollamake.one_shot_run import Turn, alone_in
from ollamake.one_shot_spelling import quantizations_of

REPOSITORY = Path(__file__).parents[2]
SCHEMA = REPOSITORY / "config/schemas/config.schema.yaml"


# Spellings --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("word", "meant", "said"),
    [
        ("Q4_K_M", "Q4_K_M", None),
        ("q4_k_m", "Q4_K_M", None),
        ("q4-k-m", "Q4_K_M", None),
        ("iq4_xs", "IQ4_XS", None),
        ("4bit", "Q4_K_M", r"4bit: taken for Q4_K_M \(4\.85 bits a weight\)"),
        ("4-bit", "Q4_K_M", "4 bits"),
        ("load_in_4bit", "Q4_K_M", "4 bits"),
        ("8bit", "Q8_0", r"8bit: taken for Q8_0 \(8\.50 bits a weight\)"),
        ("q8", "Q8_0", "8 bits"),
        ("fp4", "Q4_K_M", "a format of transformers.* taken for Q4_K_M"),
        ("f16", "F16", None),
        ("fp16", "F16", None),
        ("bf16", "BF16", None),
        ("bfloat16", "BF16", None),
        ("float32", "F32", None),
        ("auto", "auto", None),
    ],
)
def test_spellings(word: str, meant: str, said: str | None) -> None:
    types, checkpoints, sentences = quantizations_of([word])
    assert (types, checkpoints) == ((meant,), ())
    assert len(sentences) == (said is not None)
    if said is not None:
        assert re.search(said, sentences[0])


@pytest.mark.parametrize(
    ("word", "precision"),
    [("nf4", "nf4"), ("NF4", "nf4"), ("bnb-nf4", "nf4"), ("4bit-bnb", "nf4"), ("bnb_4bit", "nf4"), ("int8", "int8"),
     ("bitsandbytes-8bit", "int8"), ("LLM.int8", "int8")],
)  # fmt: skip
def test_checkpoints_of_bitsandbytes(word: str, precision: str) -> None:
    types, checkpoints, (sentence,) = quantizations_of([word])
    assert (types, checkpoints) == ((), (precision,))
    assert f"--quantization {word}: a bitsandbytes checkpoint" in sentence
    assert f"bitsandbytes/{precision}" in sentence


def test_several_spellings_of_one_type() -> None:
    types, checkpoints, said = quantizations_of(["4bit", "q4_k_m", "int8", "8bit", "Q8_0", "4bit", "bnb-int8"])
    assert (types, checkpoints) == (("Q4_K_M", "Q8_0"), ("int8",))
    assert len(said) == 4
    assert quantizations_of(["auto", "nf4"])[:2] == (("auto",), ("nf4",))


def test_checkpoints_are_added_to_those_that_are_there(work: Work) -> None:
    """What is registered in Ollama stays a type of llama.cpp."""
    work.call("--quantization", "nf4")
    assert (work.model().quantizations, work.model().bitsandbytes.types) == (("Q4_K_M",), ("nf4",))
    assert "# checkpoints for transformers and vLLM" in work.file.read_text(encoding="utf-8")
    work.call("--quantization", "int8", "Q8_0")
    assert work.model().quantizations == ("Q4_K_M", "Q8_0")
    assert work.model().bitsandbytes.types == ("nf4", "int8")
    work.call("--system", "S")
    assert work.model().bitsandbytes.types == ("nf4", "int8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Q4_K_N"], "'Q4_K_N' is not a type of llama-quantize. Did you mean Q4_K_S, Q4_K_M or Q4_K"),
        (["gptq"], "'gptq' is not a type of llama-quantize. Did you mean .*4bit, 8bit and fp16 are understood"),
        (["7bit"], "'7bit' is not a type"),
        ([""], "'' is not a type of llama-quantize. Did you mean Q4_K_M, Q5_K_M, Q6_K or Q8_0"),
        (["auto", "Q8_0"], "auto takes what the plan recommends, .* found Q8_0"),
    ],
)
def test_spellings_that_mean_nothing(words: list[str], message: str) -> None:
    with pytest.raises(OllamakeError, match=f"--quantization: {message}"):
        quantizations_of(words)


# The base ---------------------------------------------------------------------------------------------------------
def make_adapter(folder: Path, base: object = "base", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": base, **config}), encoding="utf-8"
    )
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def make_base(folder: Path, *, weights: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if weights:
        (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize("place", ["runs/道路 1/base", "runs/base", "base", "elsewhere/base"])
def test_a_base_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Below the adapter, below what is above it, or below the working directory."""
    adapter = make_adapter(tmp_path / "runs/道路 1", "base")
    base = make_base(tmp_path / place)
    monkeypatch.chdir((tmp_path / place).parent if "elsewhere" in place else "/")
    found = find_base(adapter, None)
    assert found.place == str(base)
    assert "adapter_config.json names 'base': found in" in found.said


def test_the_nearest_base_is_taken(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "runs/a", "base")
    make_base(tmp_path / "base")
    near = make_base(tmp_path / "runs/base")
    assert find_base(adapter, None).place == str(near)
    (near / "config.json").unlink()
    assert find_base(adapter, None).place == str(tmp_path / "base")


def test_a_base_by_an_absolute_path_or_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "base")
    assert find_base(make_adapter(tmp_path / "a", str(base)), None).place == str(base)
    monkeypatch.chdir(tmp_path)
    assert find_base(make_adapter(tmp_path / "b", "/nowhere"), "base").place == str(base)


@pytest.mark.parametrize(
    ("named", "given", "words"),
    [
        ("/nowhere/base", None, ["adapter_config.json names '/nowhere/base'", "is not here", "as --base"]),
        ("./models/base", None, ["names './models/base'", "it is not in", "/a/models/base", "as --base"]),
        (None, None, ["does not say which model", "no base_model_name_or_path", "as --base"]),
        ("base", "/nowhere", ["--base: the folder '/nowhere' does not exist"]),
    ],
)
def test_a_base_that_is_not_found(tmp_path: Path, named: object, given: str | None, words: list[str]) -> None:
    with pytest.raises(OllamakeError) as caught:
        find_base(make_adapter(tmp_path / "a", named), given)
    for word in words:
        assert word in str(caught.value)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache: Path, revision: str, *, weights: bool) -> Path:
    """Put org/model into a cache as huggingface_hub lays it out: refs name a commit, snapshots hold it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    reference = cache / "models--org--model/refs" / revision
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)
    return make_base(cache / "models--org--model/snapshots" / commit, weights=weights)


def test_a_base_in_the_hugging_face_cache(tmp_path: Path, hub_cache: Path) -> None:
    snapshot = cached(hub_cache, "main", weights=True)
    found = find_base(make_adapter(tmp_path / "a", "org/model"), None)
    assert found.place == str(snapshot)
    assert "found in the Hugging Face cache" in found.said
    assert find_base(tmp_path / "a", "org/model").place == str(snapshot)
    assert find_base(make_adapter(tmp_path / "b", "org/model", revision="v2"), None).place == "org/model@v2"


def test_a_base_on_the_hub(tmp_path: Path, hub_cache: Path) -> None:
    cached(hub_cache, "main", weights=False)
    found = find_base(make_adapter(tmp_path / "a", "org/model"), None)
    assert found.place == "org/model"
    for words in ("names 'org/model'", "what is missing is fetched from the hub", "--base"):
        assert words in found.said
    found = find_base(make_adapter(tmp_path / "b", "org/model", revision="v2"), None)
    assert found.place == "org/model@v2"
    assert find_base(tmp_path / "b", "org/other@v3").place == "org/other@v3"


# The configuration ------------------------------------------------------------------------------------------------
class Work:
    """A working directory with a base and an adapter, and what the script has done in it, but for Snakemake."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.base = make_base(folder / "base")
        self.adapter = make_adapter(folder / "runs/road-design")
        self.runs: list[tuple[list[str], Path]] = []
        self.code = 0
        monkeypatch.setattr(one_shot_build, "run_snakemake", self._run)
        monkeypatch.setattr(one_shot_build, "run_dry", self._run)
        monkeypatch.setattr(one_shot_build, "built_programs", lambda _folder: {})

    def _run(self, arguments: list[str], folder: Path, turn: Turn | None = None) -> int:
        self.runs.append((arguments, folder))
        self.configured = load_configfile(arguments[-1])
        return self.code

    @property
    def file(self) -> Path:
        return self.folder / "out/config.yaml"

    def call(self, *arguments: str, lora: Path | None = None) -> None:
        """Call the script; it must end well."""
        with pytest.raises(SystemExit) as ended:
            script.main(
                ["--lora-path", str(lora or self.adapter), "--output-dir", str(self.folder / "out"), *arguments]
            )
        assert ended.value.code == self.code

    def refused(self, *arguments: str, lora: Path | None = None) -> str:
        """Call the script, which must refuse and neither change the configuration nor run; return what it says."""
        before = self.file.read_bytes() if self.file.exists() else None
        runs = len(self.runs)
        with pytest.raises(OllamakeError) as caught:
            script.main(
                ["--lora-path", str(lora or self.adapter), "--output-dir", str(self.folder / "out"), *arguments]
            )
        assert (self.file.read_bytes() if self.file.exists() else None) == before
        assert len(self.runs) == runs
        return str(caught.value)

    def model(self, name: str = "road-design") -> Model:
        """Return a model as the workflow reads it from the file."""
        return read_configuration(load_configfile(str(self.file)), SCHEMA).models[name]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(tmp_path / "作業 1", monkeypatch)


def test_arguments_become_a_configuration(work: Work) -> None:
    work.call(
        *("--quantization", "q4_k_m", "8bit", "--quantization", "f16", "--name", "me/Road", "--system", "道路設計。"),
        *("--ollama-host", "gpu:11434"),
    )
    configuration = read_configuration(load_configfile(str(work.file)), SCHEMA)
    model = configuration.models["road"]
    assert (model.base, model.adapters[0].path) == (str(work.base), str(work.adapter))
    assert model.quantizations == ("Q4_K_M", "Q8_0", "F16")
    assert model.registered_names["Q8_0"] == "me/road:q8_0"
    assert model.system == "道路設計。"
    assert (configuration.target, configuration.host) == ("server", "gpu:11434")


def test_the_least_is_enough(work: Work) -> None:
    work.call()
    assert yaml.safe_load(work.file.read_text(encoding="utf-8")) == {
        "models": {
            "road-design": {"base": str(work.base), "adapter": str(work.adapter), "quantizations": ["Q4_K_M"]},
        }
    }


def test_what_snakemake_is_called_with(work: Work) -> None:
    work.call("--cores", "3")
    work.call("--plan")
    arguments, folder = work.runs[0]
    assert folder == work.folder / "out"
    snakefile, profile = str(REPOSITORY / "Snakefile"), str(REPOSITORY / "profiles/default")
    assert arguments == [
        *("--snakefile", snakefile, "--directory", str(folder), "--workflow-profile", profile),
        *("--cores", "3", "all", "--configfile", str(work.file)),
    ]
    assert work.runs[1][0][-5:] == ["--cores", "all", "plan", "--configfile", str(work.file)]


def test_what_lies_beneath_the_output_is_relative_to_it(work: Work) -> None:
    """So the folder can be moved."""
    adapter = make_adapter(work.folder / "out/lora/checkpoint-7", "base")
    make_base(work.folder / "out/base")
    work.call(lora=adapter)
    model = work.model("base-finetuned")
    assert (model.base, model.adapters[0].path) == ("base", "lora/checkpoint-7")
    before = work.file.read_bytes()
    work.call(lora=adapter)
    assert work.file.read_bytes() == before


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ("road-design", "road-design"),
        ("Road Design (v2)", "road-design-v2"),
        ("road/checkpoint-500", "road"),
        ("road/final/adapter", "road"),
        ("道路/checkpoint-5", "runs-1"),
        ("設計/道路 2/lora", "base-finetuned"),
    ],
)
def test_names_by_the_adapters_folder(work: Work, adapter: str, name: str) -> None:
    work.call(lora=make_adapter(work.folder / "runs 1" / adapter))
    assert list(work.configured["models"]) == [name]


@pytest.mark.parametrize(
    "system",
    [
        "一行",
        " blanks around ",
        "line\nline\n",
        "\n\nleading",
        "- a: [b, 'c'] # d",
        "a\n  indented\nb ",
        "  indented first\nb\n",
        "tab\tand\r\nCRLF",
        "\u3000\u2028\u0085",
        "😀 {quant} %s",
        "全角\u3000空白\n二行目",
        "null",
        "# Unchanged since it was written: sha256 x\nmodels:\n",
        "a\n\n\n",
        "...",
        "\ufeffx",
    ],
)
def test_system_prompts_are_kept_to_the_character(work: Work, system: str) -> None:
    work.call("--system", system)
    assert work.model().system == system
    assert read_file(work.file).unedited
    before = work.file.read_bytes()
    work.call("--system", system)
    work.call()
    assert work.file.read_bytes() == before


def test_what_is_not_said_stays_and_quantizations_are_added(work: Work) -> None:
    work.call("--quantization", "Q8_0", "--system", "A", "--target", "store")
    work.call("--quantization", "4bit")
    work.call("--system", "B")
    model = work.model()
    assert (model.quantizations, model.system) == (("Q8_0", "Q4_K_M"), "B")
    assert work.configured["ollama"] == {"target": "store"}
    work.call("--name", "other", "--ollama-host", "gpu")
    assert set(work.model().registered_names.values()) == {"other:q8_0", "other:q4_k_m"}
    assert work.configured["ollama"] == {"target": "server", "host": "gpu"}
    work.call("--system", "", "--quantization", "auto")
    assert (work.model().system, work.model().is_automatic) == (None, True)
    work.call()
    assert work.model().is_automatic
    work.call("--quantization", "Q6_K")
    assert work.model().quantizations == ("Q6_K",)
    assert read_file(work.file).unedited


def test_the_same_again_writes_nothing(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ollamake"):
        work.call("--quantization", "nf4", "--system", "S")
        assert "config.yaml (written)" in caplog.text
        os.utime(work.file, ns=(1, 1))
        work.call("--quantization", "nf4", "--system", "S")
    assert "config.yaml (as it is)" in caplog.text
    assert caplog.text.count("nf4: a bitsandbytes checkpoint") == 2
    assert work.file.stat().st_mtime_ns == 1
    assert len(work.runs) == 2


def test_a_retrained_adapter_of_the_same_run(work: Work) -> None:
    first, second = (make_adapter(work.folder / f"runs/long/checkpoint-{n}") for n in (500, 1000))
    work.call("--system", "S", lora=first)
    work.call(lora=second)
    model = work.model("long")
    assert (model.adapters[0].path, model.system) == (str(second), "S")


def test_an_adapter_of_another_model(work: Work) -> None:
    work.call("--name", "road")
    other = make_adapter(work.folder / "runs/bridges")
    message = work.refused(lora=other)
    for words in ("config.yaml is about another model (road, of the adapter", str(other), "--name road"):
        assert words in message
    work.refused("--name", "bridges", lora=other)
    work.call("--name", "road", lora=other)
    assert work.model("road").adapters[0].path == str(other)


def edit(work: Work, old: str, new: str) -> bytes:
    text = work.file.read_text(encoding="utf-8")
    assert old in text
    work.file.write_text(text.replace(old, new), encoding="utf-8")
    return work.file.read_bytes()


def test_an_edited_configuration_is_never_changed(work: Work) -> None:
    work.call("--system", "A", "--quantization", "Q8_0")
    edited = edit(work, "system: A # the system prompt", "system: mine")
    work.call()
    work.call("--quantization", "8bit", "--system", "mine")
    assert work.file.read_bytes() == edited
    assert work.configured["models"]["road-design"]["ollama"] == {"system": "mine"}
    message = work.refused("--system", "A", "--quantization", "Q6_K", "--target", "store")
    assert f"{work.file} was edited" in message
    for words in (
        "models.road-design.ollama.system: 'mine' there, 'A' by the arguments",
        "models.road-design.quantizations: [Q8_0] there, [Q8_0, Q6_K] by the arguments",
        "ollama.target: nothing there, 'store' by the arguments",
        "Change it there",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# the system prompt", "# mine"),
        ("# It is yours", "# It is mine"),
        ("quantizations: [", "quantizations:  ["),
        ("\n", "\r\n"),
    ],
)
def test_the_smallest_edit_counts(work: Work, old: str, new: str) -> None:
    work.call("--system", "A")
    edit(work, old, new)
    work.call("--system", "A")
    assert "was edited" in work.refused("--system", "B")


def test_a_configuration_is_not_changed_under_a_build(work: Work) -> None:
    work.call("--system", "A")
    with alone_in(work.file.parent):
        assert "a build is at work in" in work.refused("--system", "B")
        work.call("--dry-run", "--system", "B")
    assert work.model().system == "A"


def test_an_output_that_cannot_be_one(work: Work) -> None:
    work.file.parent.write_text("")
    assert "--output-dir" in work.refused()
    assert "is a file" in work.refused("--dry-run")
    work.file.parent.unlink()
    work.file.parent.mkdir()
    (work.file.parent / ".snakemake").write_text("")
    message = work.refused()
    assert f"--output-dir: {work.file.parent} cannot be written to" in message


def test_what_defaults_say_in_an_edited_file(work: Work) -> None:
    work.call()
    text = f"models: {{mine: {{adapter: {work.adapter}}}}}\ndefaults: {{base: /not/here, quantizations: [Q8_0]}}\n"
    work.file.write_text(text, encoding="utf-8")
    work.call()
    assert work.file.read_text(encoding="utf-8") == text
    work.file.write_text(text.replace("defaults: {", "defaults: {system: x, "), encoding="utf-8")
    assert "models.mine.ollama.system: nothing there, 'S' by the arguments" in work.refused("--system", "S")


def test_a_base_that_was_moved(work: Work) -> None:
    work.call()
    work.base.rename(work.folder / "runs/base")
    work.call()
    assert work.model().base == str(work.folder / "runs/base")
    (work.folder / "runs/base").rename(work.folder / "elsewhere")
    assert "names 'base'" in work.refused()


def test_keys_that_the_user_added_are_used(work: Work) -> None:
    work.call()
    edit(work, "    quantizations: [Q4_K_M]", "    imatrix: {text: [t.txt]}\n    quantizations: [IQ2_XS]")
    work.call("--quantization", "iq2_xs")
    assert work.configured["models"]["road-design"]["imatrix"] == {"text": ["t.txt"]}
    edit(work, f"    adapter: {work.adapter}", f"    adapters: [{{path: {work.adapter}, weight: 0.5}}]")
    work.call()
    assert "adapter" not in work.configured["models"]["road-design"]


@pytest.mark.parametrize("text", ["a: [", "[]", "model: x\n", "models: {}\n", "models: {a: 1}\n", "\xff"])
def test_somebody_elses_file(work: Work, text: str) -> None:
    work.file.parent.mkdir()
    work.file.write_bytes(text.encode("latin-1"))
    message = work.refused()
    assert str(work.file) in message
    assert "give another --output-dir" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantization", "Q4_K_N"], "--quantization: 'Q4_K_N' is not a type"),
        (["--quantization", "IQ2_XS"], "importance matrix"),
        (["--name", "日本"], "--name: '日本' is not a name"),
        (["--name", "a:b:c d"], "is not a name that Ollama takes"),
        (["--base", "/nowhere"], "--base: the folder '/nowhere' does not exist"),
        (["--system", "\udcff"], "--system: '\\udcff' has bytes that are not UTF-8"),
    ],
)
def test_nothing_is_written_for_what_is_refused(work: Work, arguments: list[str], words: str) -> None:
    assert words in work.refused(*arguments)
    assert not work.file.parent.exists()
    work.call("--quantization", "Q8_0")
    assert words in work.refused(*arguments)
    assert work.model().quantizations == ("Q8_0",)


def test_an_adapter_that_is_none(work: Work) -> None:
    message = work.refused(lora=work.folder / "runs/rode-design")
    assert "--lora-path: the folder" in message
    assert f"Adapters nearby: {work.adapter}" in message


def test_a_base_that_is_not_here_is_fetched(work: Work, hub_cache: Path) -> None:
    """It stays the same for the build, whatever is in the cache later: another path would be another build."""
    adapter = make_adapter(work.folder / "runs/of-the-hub", "org/model")
    work.call("--plan", lora=adapter)
    work.call(lora=adapter)
    assert work.model("of-the-hub").base == "org/model"
    cached(hub_cache, "main", weights=True)
    work.call(lora=adapter)
    assert work.model("of-the-hub").base == "org/model"


def test_a_dry_run_writes_no_configuration(work: Work) -> None:
    work.call("--dry-run", "--system", "A")
    assert not work.file.parent.exists()
    assert work.configured["models"]["road-design"]["ollama"] == {"system": "A"}
    assert work.runs[0][1] != work.file.parent
    assert not work.runs[0][1].exists()
    work.call("--system", "A")
    before = work.file.read_bytes()
    work.call("--dry-run", "--system", "B")
    assert work.configured["models"]["road-design"]["ollama"] == {"system": "B"}
    assert work.runs[-1][1] == work.file.parent
    assert work.file.read_bytes() == before


def test_the_exit_code_is_snakemakes(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    work.code = 1
    with caplog.at_level(logging.INFO, "ollamake"):
        work.call()
        assert "Everything is in" not in caplog.text
        work.code = 0
        work.call()
        work.call("--plan")
    assert "see results/road-design/overview.html" in caplog.text
    assert "see results/road-design/plan.md" in caplog.text


def test_programs_that_the_repository_has_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken where there are none on PATH, so that not every folder compiles its own."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    for folder in (tmp_path / "path", tmp_path / "built/bin"):
        assert built_programs(tmp_path / "built") == {}
        folder.mkdir(parents=True)
        for program in ("llama-quantize", "llama-tokenize"):
            (folder / program).touch(0o755)
    assert built_programs(tmp_path / "built") == {}
    (tmp_path / "built/source.json").touch()
    assert built_programs(tmp_path / "built") == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert built_programs(tmp_path / "built") == {"tools": {"llama_cpp": str(tmp_path / "built")}}


def test_a_configuration_that_yaml_would_change_is_a_defect() -> None:
    with pytest.raises(ValueError, match="YAML does not keep"):
        rendered({"models": {"m": {"base": "b", "adapter": "a", "quantizations": ["Q8_0"], "more": 1}}}, Path("S"))


@pytest.mark.parametrize(("name", "key"), [("Road", "road"), ("me/road:latest", "road"), ("host:1/me/a b", "a-b")])
def test_the_folder_of_a_name(name: str, key: str) -> None:
    assert model_key(name) == key


# Snakemake as a child ---------------------------------------------------------------------------------------------
# Stands in for Snakemake: says how it was called, starts a job and waits for signals. The real one is in tests/dag.
CHILD = """
import os, signal, subprocess, sys, time
from pathlib import Path
# A signal that comes while Python starts ends it in another way.
job = subprocess.Popen(["sleep", "60"])
heard = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: heard.append(int(number)))
Path("called.tmp").write_text(f"{os.getpid()} {job.pid}")
os.rename("called.tmp", "called")
while not heard:
    time.sleep(0.02)
print("job", job.wait(), "heard", heard, "arguments", sys.argv[1:], flush=True)
sys.exit(3)
"""


PARENT = """
import sys
from pathlib import Path
from ollamake.errors import run
from ollamake.one_shot_run import alone_in, run_snakemake
def main():
    folder = Path(sys.argv[1])
    with alone_in(folder) as turn:
        code = run_snakemake(["all"], folder, turn)
    sys.exit(code)
run(main)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Return a function that starts a process which runs the stand-in in tmp_path/out."""
    package = tmp_path / "package/snakemake"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), str(REPOSITORY / "scripts")]))
    (tmp_path / "out").mkdir()
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        (tmp_path / "out/called").unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=not_ignored,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    if (tmp_path / "out/called").exists():
        for pid in pids(tmp_path):
            kill(pid)


def not_ignored() -> None:
    """Hear signals that a shell's background jobs, or what nohup starts, ignore."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def pids(tmp_path: Path) -> list[int]:
    """Return the processes of the stand-in and of its job, which is waited for."""
    called = tmp_path / "out/called"
    wait_for(called.exists)
    return [int(pid) for pid in called.read_text().split()]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_snakemake_and_its_jobs_once(
    tmp_path: Path, child: Callable[[], subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = child()
    pids(tmp_path)
    process.send_signal(number)
    output, _ = process.communicate()
    assert f"job {-number} heard [{int(number)}] arguments ['all']" in output
    assert process.returncode == 3
    assert (tmp_path / "out/.snakemake/one_shot.lock").read_bytes() == b""


def enter(folder: Path) -> None:
    with alone_in(folder):
        pytest.fail("the lock was to be had")


def test_one_build_at_a_time_and_on_after_a_kill(tmp_path: Path, child: Callable[[], subprocess.Popen[str]]) -> None:
    first = child()
    stand_in, job = pids(tmp_path)
    with pytest.raises(OllamakeError, match=rf"a build is at work in .*out \(process {first.pid}\)"):
        enter(tmp_path / "out")
    first.kill()
    first.wait()
    # Snakemake is still at work.
    with pytest.raises(OllamakeError, match="a build is at work"):
        enter(tmp_path / "out")
    for pid in (stand_in, job):
        kill(pid)
        wait_for(lambda pid=pid: not is_running(pid))
    # What a Snakemake leaves that was killed.
    (tmp_path / "out/.snakemake/locks").mkdir()
    (tmp_path / "out/.snakemake/locks/0.output.lock").touch()
    second = child()
    pids(tmp_path)
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate()
    assert "An earlier run was killed here" in output
    assert "arguments ['all', '--unlock']" in output
    assert second.returncode == 3


def test_a_lock_of_somebody_elses_snakemake_stays(tmp_path: Path, child: Callable[[], subprocess.Popen[str]]) -> None:
    (tmp_path / "out/.snakemake/locks").mkdir(parents=True)
    (tmp_path / "out/.snakemake/locks/0.output.lock").touch()
    process = child()
    pids(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert "arguments ['all']" in process.communicate()[0]
