"""What happens to registered models behind Snakemake's back is seen by the next dry run, and mended by the next run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dag_build import Build, save_small_adapter, save_small_base
from faulty_proxy import Answer, FaultyProxy, faulty_proxy
from registering import ONE_THREAD, Kind, Server
from snakemake_runs import LLAMA_CPP, planned_jobs, run_snakemake

QUANTIZATIONS = ("Q4_K_M", "Q8_0")
ONE = {"register": 1}
on_one_version = pytest.mark.parametrize("registrar", ["the real 0.17.4"], indirect=True)
"""For what does not depend on the version of Ollama; the rest is tried with each."""

PROMPT = {"write_modelfile": 2, "register": 2}


@dataclass
class Registered:
    """A finished build, the server that has its models, and the proxy through which it was reached."""

    build: Build
    server: Server
    proxy: FaultyProxy

    def names(self) -> set[str]:
        return {str(model.model) for model in self.server.client.list().models}

    def marker(self, quantization: str) -> dict[str, Any]:
        path = self.build.folder / f"results/small/ollama/{quantization}/registered.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content


@pytest.fixture(scope="module")
def registered(
    registrar: Kind, llama_cpp: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registered]:
    for program in ("llama-quantize", "llama-tokenize"):
        llama_cpp(program)
    folder = tmp_path_factory.mktemp("drift")
    save_small_base(folder / "work/base")
    save_small_adapter(folder / "work/base", folder / "work/adapter")
    with registrar.serving(folder / "server") as server, faulty_proxy(server.address) as proxy:
        model = {
            "base": "base",
            "adapter": "adapter",
            "quantizations": list(QUANTIZATIONS),
            "ollama": {"system": "道路設計の専門家。", "parameters": {"temperature": 0.1, **ONE_THREAD}},
        }
        config = {
            "models": {"small": model},
            "ollama": {"target": "server", "host": proxy.address},
            "tools": {"llama_cpp": str(LLAMA_CPP)},
        }
        build = Build(folder / "work", config)
        build.write_config()
        build.run("--cores", "2", "all")
        yield Registered(build, server, proxy)


@pytest.fixture
def whole(registered: Registered) -> Iterator[Registered]:
    """The build with its models as they were registered, before and after the test."""
    original = json.dumps(registered.build.config)
    yield registered
    registered.build.config = json.loads(original)
    registered.build.write_config()
    # Most tests leave it so; then this is a look as well as a run.
    if planned_jobs(registered.build.run("--cores", "2", "all")):
        assert registered.build.planned() == {}


def test_a_look_at_all_models_is_one_request(whole: Registered) -> None:
    before = len(whole.proxy.requests)
    assert whole.build.planned() == {}
    assert [(method, path) for method, path, _ in whole.proxy.requests[before:]] == [("GET", "/api/tags")]


@pytest.mark.parametrize("target", ["gguf", "modelfiles"])
def test_what_needs_no_server_asks_none(whole: Registered, target: str) -> None:
    before = len(whole.proxy.requests)
    assert whole.build.planned(target) == {}
    assert len(whole.proxy.requests) == before


def test_a_deleted_model_is_registered_again(whole: Registered) -> None:
    whole.server.client.delete("small:q8_0")
    assert whole.build.planned() == ONE
    said = whole.build.run("--cores", "2", "all")
    assert f"small:q8_0 is no longer in {whole.proxy.address}: it is registered again" in said
    assert whole.names() == {"small:q4_k_m", "small:q8_0"}
    assert whole.build.planned() == {}


def test_a_replaced_model_is_registered_again(whole: Registered) -> None:
    whole.server.create({"model": "small:q8_0", "from": "small:q4_k_m", "stream": False})
    assert whole.build.planned() == ONE
    whole.build.run("--cores", "2", "all")
    assert whole.marker("Q8_0")["gguf"]["sha256"] in whole.server.shown("small:q8_0")["modelfile"]


@on_one_version
def test_a_renamed_model_is_registered_again_and_the_other_name_stays(whole: Registered) -> None:
    whole.server.client.copy("small:q4_k_m", "mine:latest")
    whole.server.client.delete("small:q4_k_m")
    assert whole.build.planned() == ONE
    whole.build.run("--cores", "2", "all")
    assert whole.names() == {"small:q4_k_m", "small:q8_0", "mine:latest"}
    whole.server.client.delete("mine:latest")


@on_one_version
def test_a_model_whose_registration_fails_stays_as_it_was(whole: Registered) -> None:
    """Snakemake removes outputs before it makes them again; a registered model is none of those."""
    whole.build.model()["ollama"]["system"] = "Answer briefly."
    whole.build.write_config()
    whole.proxy.fault("POST", "/api/create", Answer(400, "not today"), times=99)
    done = run_snakemake("--configfile", "mine.yaml", "--keep-going", "--cores", "1", "all", folder=whole.build.folder)
    whole.proxy.heal()
    assert done.returncode == 1
    assert "refuses: 400 not today" in done.stdout
    assert {whole.server.shown(name)["system"] for name in whole.names()} == {"道路設計の専門家。"}


def test_another_prompt_sends_no_weights(whole: Registered) -> None:
    whole.build.model()["ollama"]["system"] = "Answer briefly."
    assert whole.build.planned() == PROMPT
    before = len(whole.proxy.requests)
    whole.build.run("--cores", "2", "all")
    assert all(size < 100_000 for _, _, size in whole.proxy.requests[before:])
    assert not [path for method, path, _ in whole.proxy.requests[before:] if method == "POST" and "blobs" in path]
    assert {whole.server.shown(name)["system"] for name in whole.names()} == {"Answer briefly."}


@on_one_version
def test_another_name_leaves_the_old_one(whole: Registered) -> None:
    whole.build.model()["ollama"]["name"] = "road"
    assert whole.build.planned() == PROMPT
    whole.build.run("--cores", "2", "all")
    assert whole.names() == {"small:q4_k_m", "small:q8_0", "road:q4_k_m", "road:q8_0"}
    for name in ("road:q4_k_m", "road:q8_0"):
        whole.server.client.delete(name)


@on_one_version
def test_with_the_server_down_a_dry_run_says_so_and_plans_the_rest(whole: Registered) -> None:
    whole.server.kill()
    try:
        assert whole.build.planned() == {}
        said = whole.build.run("-n", "all")
        lines = [line for line in said.splitlines() if "does not list its models" in line]
        assert len(lines) == 1
        assert "whether its models are still registered is not known" in lines[0]
        whole.build.model()["ollama"]["system"] = "Answer briefly."
        assert whole.build.planned() == PROMPT
    finally:
        whole.server.end()
        whole.server.start()


@on_one_version
def test_with_the_server_down_a_run_ends_in_one_message(whole: Registered) -> None:
    marker = whole.build.folder / "results/small/ollama/Q8_0/registered.json"
    before = marker.read_bytes()
    whole.server.kill()
    try:
        done = run_snakemake("--configfile", "mine.yaml", "--cores", "1", "all", folder=whole.build.folder)
        assert done.returncode == 1
        assert f"the Ollama server at {whole.proxy.address} does not list its models" in done.stdout
        assert "Traceback" not in done.stdout
        assert marker.read_bytes() == before
    finally:
        whole.server.end()
        whole.server.start()


@on_one_version
def test_a_former_server_that_is_off_keeps_nobody_from_another(
    whole: Registered, registrar: Kind, tmp_path: Path
) -> None:
    whole.server.kill()
    try:
        with registrar.serving(tmp_path / "server") as other:
            whole.build.config["ollama"]["host"] = other.address
            assert whole.build.planned() == {"register": 2, "check_template": 1, "check_inputs": 1}
            said = whole.build.run("--cores", "2", "all")
            assert "does not list its models" not in said
            assert {str(model.model) for model in other.client.list().models} == {"small:q4_k_m", "small:q8_0"}
    finally:
        whole.server.end()
        whole.server.start()


def verify(whole: Registered) -> tuple[int, str]:
    done = run_snakemake("--configfile", "mine.yaml", "--cores", "1", "verify", folder=whole.build.folder)
    return done.returncode, done.stdout


def test_verify_names_what_differs_and_changes_nothing(whole: Registered) -> None:
    status, said = verify(whole)
    assert status == 0
    assert said.count("as registered") == 2
    whole.server.create({"model": "small:q8_0", "from": "small:q8_0", "system": "Other.", "stream": False})
    before = whole.names(), len(whole.proxy.requests)
    status, said = verify(whole)
    assert status == 1
    assert "not all is as it was built:" in said
    assert "system: asked for '道路設計の専門家。', it has 'Other.'" in said
    assert whole.names() == before[0]
    changing = {"/api/create", "/api/delete", "/api/copy", "/api/generate"}
    assert not changing & {path for _, path, _ in whole.proxy.requests[before[1] :]}
    assert whole.server.shown("small:q8_0")["system"] == "Other."


@on_one_version
def test_another_server_in_the_environment_counts(whole: Registered) -> None:
    """Without ollama.host it is OLLAMA_HOST that says where the models belong."""
    whole.build.config["ollama"].pop("host")
    whole.build.write_config()
    addresses = (whole.proxy.address, whole.server.address)
    plans = [
        planned_jobs(
            run_snakemake(
                "--configfile", "mine.yaml", "-n", "all", folder=whole.build.folder, OLLAMA_HOST=address
            ).stdout
        )
        for address in addresses
    ]
    assert plans[0] == {}
    assert plans[1] == {"register": 2, "check_template": 1, "check_inputs": 1, "write_overview": 1, "all": 1}


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.campaign)])
def test_many_models_of_five_quantizations(registrar: Kind, registered: Registered, tmp_path: Path, count: int) -> None:
    """Ten registrations, or a hundred, with eight jobs at once: none loses a blob."""
    five = ["Q4_K_M", "Q8_0", "F16", "Q5_K_M", "Q6_K"]
    build = Build(tmp_path / "many", json.loads(json.dumps(registered.build.config)))
    shutil.copytree(registered.build.folder / "base", build.folder / "base")
    # Without num_ctx by the plan: registrations are what is tried, not twenty plans.
    settings = {"parameters": {"num_ctx": None}}
    shared = {"base": "base", "quantizations": five, "ollama": settings}
    with registrar.serving(tmp_path / "server") as server:
        build.config["ollama"]["host"] = server.address
        build.config["models"] = {"m00": shared}
        build.write_config()
        build.run("--cores", "2", "gguf")
        results = build.folder / "results"
        for number in range(1, count):
            name = f"m{number:02d}"
            # Each with the files of the first: what is tried is the hundred registrations, not twenty conversions.
            shutil.copytree(results / "m00", results / name)
            for file in (results / name / "gguf").iterdir():
                file.rename(file.with_name(file.name.replace("m00", name)))
        build.config["models"] = {f"m{number:02d}": shared for number in range(count)}
        for model in list(build.config["models"])[1:]:
            build.config["models"][model] = shared | {"ollama": settings | {"system": f"You are {model}."}}
        build.write_config()
        markers = [f"results/{name}/ollama/{kind}/registered.json" for name in build.config["models"] for kind in five]
        # What was copied has no history: by the times of files alone it is up to date.
        build.run("--cores", "8", "--rerun-triggers", "mtime", "--", *markers)
        assert len(list(server.models.glob("manifests/*/*/*/*"))) == 5 * count
        assert server.broken_blobs() == []
