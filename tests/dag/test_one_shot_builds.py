"""The command without YAML builds with the real Snakemake: once, only what changed, on after a kill, and with its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dag_build import save_small_adapter, save_small_base
from snakemake_runs import LLAMA_CPP, REPOSITORY, planned_jobs

SCRIPT = REPOSITORY / "scripts/quantize_finetuned_for_ollama.py"

# Stands in front of llama-quantize: waits while there is a file `hold` beside it, if it is to quantize.
WAITING = """#!/bin/sh
case " $* " in *" --max-buffer-size "*) if [ -e "{hold}" ]; then echo $$ > "{hold}.pid"; exec sleep 600; fi;; esac
exec "{program}" "$@"
"""


class OneShot:
    """A working directory with blanks and Japanese in its name, in which the script is called."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "OLLAMA_HOST")}
        self.environment["PATH"] = path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        places = ["--lora-path", "学習 1/道路 設計", "--output-dir", "出力 1"]
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *places, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell's background jobs ignore SIGINT, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run the script and return what it and Snakemake printed."""
        process = self.start(*arguments)
        output, _ = process.communicate()
        assert process.returncode == code, output
        assert "Traceback" not in output
        return output

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return rule -> number of jobs of a dry run, without `all` and the pages."""
        jobs = planned_jobs(self.run("--dry-run", *arguments))
        return {rule: count for rule, count in jobs.items() if rule not in ("all", "write_overview", "write_page")}

    @property
    def output(self) -> Path:
        return self.folder / "出力 1"

    def files(self) -> dict[str, tuple[int, int]]:
        """Return what is in the output folder, but for Snakemake's notes: path -> (size, time)."""
        return {
            str(file.relative_to(self.output)): (file.stat().st_size, file.stat().st_mtime_ns)
            for file in self.output.rglob("*")
            if file.is_file() and ".snakemake" not in file.parts and "resources" not in file.parts
        }

    def system(self, kind: str) -> str:
        """Return the system prompt of what is registered, from the store's manifest and blob."""
        store = self.output / "results/ollama-store"
        manifest = store / "manifests/registry.ollama.ai/library/base-finetuned" / kind.lower()
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        (digest,) = (layer["digest"] for layer in layers if layer["mediaType"] == "application/vnd.ollama.image.system")
        return (store / "blobs" / digest.replace(":", "-")).read_bytes().decode("utf-8")


@pytest.fixture(scope="module")
def finished(llama_cpp: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> OneShot:
    """A finished build in two steps, of which each is checked here; the programs are on PATH."""
    folder = tmp_path_factory.mktemp("one shot") / "作業 1"
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for program in ("llama-quantize", "llama-tokenize", "llama-fit-params"):
        shutil.copy2(llama_cpp(program), programs)
    real = programs / "llama-quantize.real"
    (programs / "llama-quantize").rename(real)
    (programs / "llama-quantize").write_text(WAITING.format(program=real, hold=programs / "hold"))
    (programs / "llama-quantize").chmod(0o755)
    save_small_base(folder / "base")
    save_small_adapter(folder / "base", folder / "学習 1/道路 設計")
    # The source as the workflow would fetch it, whose converter is used: newer than the code that fetches it.
    tree = folder / "出力 1/resources/llama.cpp" / LLAMA_CPP.name
    shutil.copytree(LLAMA_CPP / "source", tree / "source", symlinks=True, copy_function=shutil.copy)
    shutil.copy(LLAMA_CPP / "source.json", tree)
    return OneShot(folder, os.pathsep.join([str(programs), os.environ["PATH"]]))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_way_of_a_model(finished: OneShot) -> None:
    """In the order in which a user goes: each step begins with what the ones before left."""
    work = finished
    first = ("--quantization", "q4_k_m", "--target", "store", "--system", "道路設計の\u3000専門家。\n簡潔に。")
    jobs = planned_jobs(work.run("--dry-run", *first))
    assert jobs["merge_shard"] == 3
    assert jobs["quantize"] == jobs["register"] == 1
    assert not (work.output / "config.yaml").exists()
    assert not (work.output / "results").exists()

    # Interrupted in quantizing: Snakemake and its jobs end, and nothing half-made is left.
    hold = work.folder / "bin/hold"
    hold.touch()
    process = work.start(*first)
    pid_file = hold.with_name("hold.pid")
    wait_for(lambda: pid_file.exists() and bool(pid_file.read_text().strip()), process)
    job = Path("/proc") / pid_file.read_text().strip()
    assert job.exists()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert not job.exists()
    assert "Traceback" not in output
    assert not list(work.output.glob("results/*/gguf/*Q4_K_M*"))

    # Killed there, all of it: the next call goes on without anybody unlocking a folder.
    pid_file.unlink()
    process = work.start(*first)
    wait_for(lambda: pid_file.exists() and bool(pid_file.read_text().strip()), process)
    job = Path("/proc") / pid_file.read_text().strip()
    group = os.getpgid(int(job.name))
    assert group != os.getpgid(process.pid)
    process.kill()
    process.wait()
    assert "a build is at work in" in work.run(*first, code=1)
    os.killpg(group, signal.SIGKILL)
    hold.unlink()
    while any((Path("/proc") / pid).exists() for pid in (job.name, str(group))):
        time.sleep(0.05)
    output = work.run(*first)
    assert "An earlier run was killed here; finished files are kept" in output
    assert "merge_shard" not in planned_jobs(output)
    assert planned_jobs(output)["quantize"] == 1
    assert "base-finetuned is ready. Chat with it:" in output
    assert f"Everything is in {work.output}" in output
    assert work.system("Q4_K_M") == "道路設計の\u3000専門家。\n簡潔に。"

    # The same again does nothing.
    before = work.files()
    assert "Nothing to be done" in work.run(*first)
    assert "Nothing to be done" in work.run()
    assert work.files() == before

    # Another prompt is registered anew; a dry run only says so.
    assert work.planned("--system", "別の専門家。") == {"write_modelfile": 1, "register": 1}
    more = {"check_inputs": 1, "quantize": 1, "write_modelfile": 1, "register": 1}
    assert work.planned("--quantization", "8bit") == more
    quantized = {"plan_bitsandbytes": 1, "quantize_bitsandbytes": 3, "write_bitsandbytes_files": 1}
    assert work.planned("--quantization", "int8") == {"check_inputs": 1, **quantized}
    assert work.planned("--name", "road") == {"write_modelfile": 1, "register": 1}
    assert work.files() == before
    output = work.run("--system", "別の専門家。")
    assert "config.yaml (updated)" in output
    assert {"quantize", "merge_shard"}.isdisjoint(planned_jobs(output))
    assert work.system("Q4_K_M") == "別の専門家。"

    # One more quantization is added.
    output = work.run("--quantization", "8bit")
    assert "8bit: taken for Q8_0" in output
    jobs = planned_jobs(output)
    assert jobs["quantize"] == jobs["register"] == 1
    assert "merge_shard" not in jobs
    assert work.system("Q8_0") == work.system("Q4_K_M") == "別の専門家。"
    assert work.planned() == {}

    # The configuration can be kept: Snakemake alone finds nothing to do, by the command that stands in it.
    lines = (work.output / "config.yaml").read_text(encoding="utf-8").splitlines()
    (command,) = (line.removeprefix("#     ") for line in lines if line.startswith("#     snakemake"))
    done = subprocess.run(
        [sys.executable, "-m", *command.replace("'", "").split()],
        cwd=work.output, env=work.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert "Nothing to be done" in done.stdout

    # A build that fails ends in Snakemake's message and exit code.
    output = work.run("--ollama-host", "http://127.0.0.1:1", code=1)
    assert "no Ollama server answers at http://127.0.0.1:1" in output
    assert "Everything is in" not in output


def test_what_fits_is_planned(finished: OneShot) -> None:
    output = finished.run("--plan", "--target", "store")
    assert "Q4_K_M" in output
    assert "Recommended" in output
