"""The files for vLLM and TGI, against what their argument parsers take (tests/serving_arguments) and compose's own terms.

The parser of vLLM 0.33.0 itself, with its ModelConfig, PEFTHelper and vllm-bnb-plugin 0.0.3, has read the four files of the
demo once, by hand: without a GPU its platform must be named to import it. All were taken, with the dtype, length and sampling
defaults that are expected here. The JSON schema of compose-spec had nothing against the compose files.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ghost_of_qwen import gpu, qwen_32b, spec
from merging import plan_of
from small_models import lora, random_model, save_adapter

import write_serving_files
from ollamake.demo_base import save_tokenizer, train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.memory_plan import memory_plan
from ollamake.model_files import write_model_files
from ollamake.serving_compose import TGI_VERSION, places_to_mount
from ollamake.serving_files import Sources
from ollamake.serving_files import write_serving_files as write
from ollamake.serving_vllm import VERSION, sampling_overrides, served_dtype, without_counterpart

RECORDED = Path(__file__).parents[1] / "serving_arguments"
SERVICE = {
    "profiles", "image", "build", "command", "environment", "working_dir", "ports", "volumes", "shm_size", "deploy",
    "healthcheck", "restart",
}  # fmt: skip
"""Keys of a service in the compose specification, of those that are written."""
SPEC: dict[str, Any] = {
    "base": "base", "adapter": "adapter", "parameters": {"temperature": 0.1}, "port": 8000, "system": False,
    "keeps_merged": True,
}  # fmt: skip


def recorded(server: str, version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{server}-{version}.json").read_text(encoding="utf-8"))
    return found["arguments"]  # type: ignore[no-any-return]


ONE = (gpu(80, "H100"),)
VLLM, TGI = recorded("vllm", VERSION), recorded("tgi", TGI_VERSION)
"""The lists are of the versions that the files are written for."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a base, an adapter, and the files beside the merged weights."""
    monkeypatch.chdir(tmp_path)
    model = random_model("qwen2", torch.bfloat16, True)
    model.generation_config.update(do_sample=True, top_p=0.8, top_k=20)
    model.save_pretrained("base")
    save_tokenizer(train_tokenizer(["road design", "道路設計"]), Path("base"))
    save_adapter(Path("base"), Path("adapter"), lora(r=12)())
    merge()
    return tmp_path


def merge(**adapter: Any) -> dict[str, Any]:
    """Write the files beside the merged weights, of another adapter if it is given; return the plan of the merge."""
    if adapter:
        save_adapter(Path("base"), Path("adapter"), lora(**adapter)())
    plan = plan_of(Path("base"), Path("adapter"))
    write_model_files(Path("base"), [Path("adapter")], plan, Path("results/m/merged/model_files.json"))
    return plan


def written(checkpoint: str = "merged", gpus: Any = ONE, name: str = "m", **changed: Any) -> dict[str, Any]:
    """Write the files of a checkpoint and return the record."""
    plan = memory_plan("m", qwen_32b(), [], spec(list(gpus)))
    merge_plan = plan_of(Path("base"), Path("adapter"))
    sources = Sources(name, checkpoint, SPEC | changed, merge_plan, Path("results/m/merged"))
    return write(sources, plan, Path(f"results/m/serve/{checkpoint}/serving.json"))


def vllm_file(checkpoint: str) -> str:
    return Path(f"results/m/serve/{checkpoint}/vllm.yaml").read_text(encoding="utf-8")


def compose(checkpoint: str) -> dict[str, Any]:
    text = Path(f"results/m/serve/{checkpoint}/compose.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def assert_taken(name: str, value: Any, arguments: Mapping[str, Any]) -> None:
    """An argument is one of the parser's, its value of the type and among the choices."""
    argument = arguments[name]
    assert isinstance(value, list) == argument.get("many", False), name
    for one in value if isinstance(value, list) else [value]:
        kinds = {"flag": bool, "int": int, "float": (int, float), "json": dict, "text": str}
        assert isinstance(one, kinds[argument["type"]]), (name, one)
        assert not isinstance(one, bool) or argument["type"] == "flag", (name, one)
        assert one in argument.get("choices", [one]), (name, one)


def of_tgi(arguments: list[str]) -> dict[str, Any]:
    """Return the arguments with the types that the launcher reads them as."""
    pairs = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    read = {"int": int, "float": float, "text": str}
    return {name: read[TGI[name]["type"]](value) for name, value in pairs.items()}


CASES = [
    (checkpoint, gpus)
    for checkpoint in ("merged", "nf4", "int8", "adapter")
    for gpus in ((), (gpu(80, "H100"),), (gpu(80, "H100"),) * 4)
]


@pytest.mark.parametrize(("checkpoint", "gpus"), CASES)
def test_every_argument_is_one_of_the_parsers(work: Path, checkpoint: str, gpus: Any) -> None:
    record = written(checkpoint, gpus)
    arguments = yaml.safe_load(vllm_file(checkpoint))
    assert arguments == record["vllm"]["arguments"]
    for name, value in arguments.items():
        assert_taken(name, value, VLLM)
    for name, value in of_tgi(record["tgi"]["arguments"]).items():
        assert_taken(name, value, TGI)


def test_the_merged_checkpoint(work: Path) -> None:
    written()
    assert yaml.safe_load(vllm_file("merged")) == {
        "model": "results/m/merged",
        "served-model-name": ["m"],
        "dtype": "float16",
        "max-model-len": 32768,
        "gpu-memory-utilization": 0.98,
        "max-num-batched-tokens": 2048,
        "max-num-seqs": 256,
        "generation-config": "auto",
        "override-generation-config": {"temperature": 0.1, "top_p": 0.8, "top_k": 20},
        "host": "127.0.0.1",
        "port": 8000,
    }


def test_the_base_with_its_adapter(work: Path) -> None:
    record = written("adapter")
    arguments = record["vllm"]["arguments"]
    assert (arguments["model"], arguments["served-model-name"]) == ("base", ["m-base"])
    assert (arguments["enable-lora"], arguments["max-lora-rank"], arguments["max-loras"]) == (True, 16, 1)
    (module,) = arguments["lora-modules"]
    assert json.loads(module) == {"name": "m", "path": "adapter", "base_model_name": "m-base"}
    assert arguments["dtype"] == "bfloat16"
    assert "chat-template" not in arguments
    assert "--lora-adapters=m=adapter" in record["tgi"]["arguments"]


def test_quantized_checkpoints(work: Path) -> None:
    for kind, dtype, how in (("nf4", "bfloat16", "bitsandbytes-nf4"), ("int8", "float16", "bitsandbytes")):
        record = written(kind, [gpu(80, "H100")] * 2)
        arguments, tgi = record["vllm"]["arguments"], of_tgi(record["tgi"]["arguments"])
        assert arguments["model"] == f"results/m/bitsandbytes/{kind}"
        assert (arguments["quantization"], arguments["load-format"], arguments["dtype"]) == (
            "bitsandbytes", "bitsandbytes", dtype,
        )  # fmt: skip
        # vLLM has no tensor parallelism for what bitsandbytes has quantized.
        assert arguments["pipeline-parallel-size"] == 2
        assert "tensor-parallel-size" not in arguments
        assert arguments.get("enforce-eager", False) is (kind == "int8")
        assert (tgi["model-id"], tgi["quantize"]) == ("results/m/merged", how)
        assert "dtype" not in tgi
        assert "vllm-bnb-plugin==" in vllm_file(kind)
        inline = compose(kind)["services"]["vllm"]["build"]["dockerfile_inline"]
        assert inline.startswith(f"FROM vllm/vllm-openai:v{VERSION}\n")


def test_gpus_are_used_together(work: Path) -> None:
    record = written("merged", [gpu(80, "H100")] * 3)
    assert record["vllm"]["arguments"]["tensor-parallel-size"] == 2
    assert of_tgi(record["tgi"]["arguments"])["num-shard"] == 2
    (devices,) = compose("merged")["services"]["vllm"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    assert "2 of 3 GPUs are used" in vllm_file("merged")


def test_what_does_not_fit_is_not_hidden(work: Path) -> None:
    record = written("merged", [gpu(24, "RTX 4090")])
    assert record["fits"] is False
    assert record["warnings"][0].startswith("served from merged: 8,192 tokens DO NOT FIT: they need 41.7 GiB more")
    for text in (vllm_file("merged"), Path("results/m/serve/merged/compose.yaml").read_text(encoding="utf-8")):
        assert "# Context: 8,192 tokens DO NOT FIT" in text
    assert written("nf4", [gpu(24, "RTX 4090")])["warnings"] == []


def test_the_same_is_written_byte_for_byte(work: Path) -> None:
    files = [Path("results/m/serve/merged") / name for name in ("vllm.yaml", "compose.yaml", "tokenizer_config.json")]
    written()
    before = [file.read_bytes() for file in files]
    written()
    assert [file.read_bytes() for file in files] == before
    written(parameters={"temperature": 0.2})
    changed = [file.read_bytes() != content for file, content in zip(files, before, strict=True)]
    assert changed == [True, False, False]


def test_an_adapter_with_a_chat_template_of_its_own(work: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\n"
    Path("adapter/chat_template.jinja").write_text(template, encoding="utf-8")
    merge()
    arguments = written("adapter")["vllm"]["arguments"]
    assert arguments["chat-template"] == "results/m/merged/chat_template.jinja"
    assert Path(arguments["chat-template"]).read_text(encoding="utf-8") == template
    mounted = [volume["target"] for volume in compose("adapter")["services"]["vllm"]["volumes"]]
    assert "/ollamake/results/m/merged/chat_template.jinja" in mounted
    # TGI reads it from tokenizer_config.json only.
    config = json.loads(Path("results/m/serve/adapter/tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == template


def test_tgi_is_given_the_chat_template_in_a_form_that_it_reads(work: Path) -> None:
    record = written()
    named = of_tgi(record["tgi"]["arguments"])["tokenizer-config-path"]
    merged = Path("results/m/merged")
    assert json.loads(Path(named).read_text(encoding="utf-8")) == json.loads(
        (merged / "tokenizer_config.json").read_text(encoding="utf-8")
    ) | {"chat_template": (merged / "chat_template.jinja").read_text(encoding="utf-8")}


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [({"use_dora": True}, "use_dora: DoRA"), ({"modules_to_save": ["embed_tokens"]}, "was trained whole")],
)
def test_an_adapter_that_vllm_refuses_gets_no_file(work: Path, adapter: dict[str, Any], reason: str) -> None:
    merge(**adapter)
    with pytest.raises(
        OllamakeError,
        match=rf"(?s)models\.m\.serving: vLLM cannot serve the adapter adapter.*{reason}.*checkpoints: \[merged\]",
    ):
        written("adapter")
    assert not Path("results/m/serve/adapter").exists()
    assert written("merged")["fits"]


def test_an_adapter_with_other_tokens_is_refused(work: Path) -> None:
    tokenizer = json.loads(Path("base/tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: number for token, number in vocabulary.items() if number < 160}
    Path("adapter/tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(OllamakeError, match="brings a tokenizer with other tokens"):
        written("adapter")


def config_with(**changed: Any) -> None:
    file = Path("results/m/merged/config.json")
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")


def test_what_tgi_would_serve_wrongly_is_left_out(work: Path) -> None:
    """Of a transformers before version 5, which it has: another rope_theta would be overlooked in silence."""
    config_with(rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"})
    record = written()
    assert record["tgi"]["arguments"] is None
    assert any("rope_parameters" in reason for reason in record["tgi"]["refused"])
    assert set(compose("merged")["services"]) == {"vllm"}
    assert "No service for TGI: it does not read rope_parameters" in Path(
        "results/m/serve/merged/compose.yaml"
    ).read_text(encoding="utf-8")
    config_with(rope_theta=1000000.0)
    assert set(compose_after_writing()["services"]) == {"vllm", "tgi"}
    tokenizer = Path("results/m/merged/tokenizer_config.json")
    tokenizer.write_text('{"tokenizer_class": "TokenizersBackend"}', encoding="utf-8")
    assert any("TokenizersBackend" in reason for reason in written()["tgi"]["refused"])
    assert any("`keep.merged: false` removes" in one for one in written("nf4", keeps_merged=False)["tgi"]["refused"])


def compose_after_writing() -> dict[str, Any]:
    written()
    return compose("merged")


def test_the_compose_file(work: Path) -> None:
    written("adapter", name="m.1")
    made = compose("adapter")
    assert made["name"] == "m-1-adapter"
    assert set(made["services"]) == {"vllm", "tgi"}
    beside = Path("results/m/serve/adapter")
    for profile, service in made["services"].items():
        assert set(service) <= SERVICE
        assert service["profiles"] == [profile]
        repository, _, tag = service["image"].rpartition(":")
        assert repository
        assert tag.removeprefix("v")[0].isdigit()
        assert service["ports"] == [{"target": 8000, "published": "8000", "host_ip": "127.0.0.1"}]
        for volume in service["volumes"]:
            assert (volume["type"], volume["read_only"]) == ("bind", True)
            # What a relative path means in the container is what it means here.
            inside = Path(volume["target"]).relative_to(service["working_dir"])
            assert (beside / volume["source"]).resolve() == inside.resolve()
        assert ":8000/health" in shlex.join(service["healthcheck"]["test"])
        assert service["environment"]["HF_HUB_OFFLINE"] == "1"
    command = made["services"]["vllm"]["command"]
    assert command[:2] == ["--config", "results/m/serve/adapter/vllm.yaml"]
    assert "--host" in command
    # Without a value a variable is handed on as it is, or not at all: an empty key would be one for TGI.
    assert made["services"]["tgi"]["environment"]["API_KEY"] is None


def test_compose_takes_no_dollar_for_a_variable(work: Path) -> None:
    Path("base").rename("base$x")
    Path("base").symlink_to("base$x")
    written("adapter", base="base$x")
    assert "--model-id=base$$x" in compose("adapter")["services"]["tgi"]["command"]
    assert yaml.safe_load(vllm_file("adapter"))["model"] == "base$x"


def test_a_cache_of_the_hub_is_mounted_with_what_its_links_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, blobs = tmp_path / "models--o--m/snapshots/abc", tmp_path / "models--o--m/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "f00").touch()
    (snapshot / "config.json").symlink_to("../../blobs/f00")
    beside = tmp_path / "results/m/serve/adapter"
    mounts = places_to_mount([str(snapshot), str(beside)], beside)
    assert mounts == {str(tmp_path / "models--o--m"): str(tmp_path / "models--o--m"), str(beside): str(beside)}
    monkeypatch.chdir(tmp_path)
    relative = places_to_mount(["models--o--m/snapshots/abc"], Path("results/m/serve/adapter"))
    assert relative == {"/ollamake/models--o--m": "../../../../models--o--m"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "w").touch()
    (snapshot / "w").symlink_to(elsewhere / "w")
    assert str(elsewhere) in places_to_mount(["models--o--m/snapshots/abc"], Path("results/m/serve/adapter"))


def test_a_folder_above_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the container ../base begins at /ollamake, as here it begins where Snakemake runs."""
    (tmp_path / "base").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert places_to_mount(["../base"], Path("results/m/serve/adapter")) == {"/base": "../../../../../base"}


@pytest.mark.parametrize(
    ("checkpoint", "config", "dtype"),
    [
        ("merged", {"dtype": "float16", "model_type": "qwen2"}, "float16"),
        ("merged", {"torch_dtype": "bfloat16", "model_type": "llama"}, "bfloat16"),
        ("merged", {"dtype": "float32", "model_type": "llama"}, "float16"),
        ("merged", {"dtype": "float16", "model_type": "gemma2"}, "bfloat16"),
        ("merged", {"dtype": "float16", "text_config": {"model_type": "gemma3_text"}}, "bfloat16"),
        ("int8", {"dtype": "float16", "model_type": "gemma2"}, "bfloat16"),
        ("nf4", {"dtype": "float16", "model_type": "qwen2"}, "bfloat16"),
        ("adapter", {"dtype": "bfloat16", "model_type": "qwen2"}, "bfloat16"),
        ("adapter", {"model_type": "qwen2"}, "auto"),
    ],
)
def test_what_it_computes_in(checkpoint: str, config: dict[str, Any], dtype: str) -> None:
    assert served_dtype(checkpoint, config)[0] == dtype


def test_sampling_defaults() -> None:
    given = {
        "temperature": 0, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": -0.1, "num_predict": 128,
    }  # fmt: skip
    assert sampling_overrides(given | {"num_ctx": 4096, "num_gpu": 3}) == {
        "temperature": 0, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": -0.1, "max_new_tokens": 128,
    }  # fmt: skip
    assert without_counterpart(given) == []
    # What vLLM refuses as a value, and what no server has as a default.
    other = {"top_p": 0.0, "num_predict": -1, "stop": ["x"], "seed": 1, "num_ctx": 1}
    assert sampling_overrides(other) == {}
    assert sorted(without_counterpart(other)) == ["num_predict", "seed", "stop", "top_p"]


def test_what_clients_must_send_is_said(work: Path) -> None:
    written(parameters={"stop": ["END"], "temperature": 0}, system=True)
    text = vllm_file("merged")
    assert "The system prompt of the configuration (ollama.system) is not in it" in text
    assert "Not taken over, so clients send it: stop." in text


def test_the_script(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("plan", memory_plan("m", qwen_32b(), [], spec([]))), ("merge_plan", merge())):
        Path(f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(SPEC | {"port": 9000})))
    arguments = ["--name", "m", "--checkpoint", "merged", "--plan", "plan.json", "--merge-plan", "merge_plan.json"]
    arguments += ["--model-files", "results/m/merged/model_files.json", "--output", "out/serving.json"]
    write_serving_files.main(arguments)
    record = json.loads(Path("out/serving.json").read_text(encoding="utf-8"))
    assert (record["vllm"]["arguments"]["port"], record["fits"]) == (9000, None)
    assert yaml.safe_load(Path("out/vllm.yaml").read_text(encoding="utf-8"))["port"] == 9000
