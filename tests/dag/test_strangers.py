"""A whole build of a stranger's model, with keys in the environment and in the user's files: nothing is run, and nothing told."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dag_build import Build
from snakemake_runs import snakemake_command
from stand_in.hub import TOKEN, HubStandIn, hub_stand_in
from stand_in.hub_repository import repository_of

SECRETS = {
    "HF_TOKEN": TOKEN,
    "OLLAMA_API_KEY": "Geheim-of-ollama-1",
    "OPENAI_API_KEY": "sk-Geheim-of-openai-2",
    "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "Geheim-of-bucket-3",
    "AWS_SECRET_ACCESS_KEY": "Geheim-of-aws-4",
    "HTTPS_PROXY": "http://me:Geheim-of-proxy-5@127.0.0.1:9",
}
OF_RAG = "Geheim-of-the-application-6"
RAG = f"""\
llm:
    api_key: {OF_RAG}
    ollama_model: "llama3:8b"
    fallback: {{model: x, password: {OF_RAG}}}
"""
CODE = "import pathlib\npathlib.Path({mark!r}).write_text('run')\n"


class _Touch:
    """A pickle of it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "run")


@dataclass
class Stranger:
    """A working folder, what ran there has printed, and the command lines that were seen meanwhile."""

    build: Build
    mark: Path
    printed: str = ""
    commands: set[str] = field(default_factory=set)

    def run(self, *arguments: str, **environment: str) -> int:
        """Run Snakemake with an open umask; return its exit code."""
        command = snakemake_command("--configfile", "mine.yaml", *arguments, folder=self.build.folder)
        with _seen(self.commands):
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.build.folder,
                env=os.environ | SECRETS | environment,
                umask=0,
                check=False,
            )
        self.printed += done.stdout
        return done.returncode

    def require_untold(self, *secrets: str) -> None:
        """No file, no line and no command has a secret, but the user's own file and its backup, which only the user may read."""
        own = [*self.build.folder.glob("app.yaml*")]
        for secret in (*SECRETS.values(), OF_RAG, *secrets):
            bare = secret.rpartition("://")[2].partition("@")[0].rpartition(":")[2] or secret
            assert bare not in self.printed
            assert [command for command in self.commands if bare in command] == []
            files = [path for path in self.build.folder.rglob("*") if path.is_file() and path not in own]
            assert [str(path) for path in files if bare.encode() in path.read_bytes()] == []
        assert {stat.S_IMODE(path.stat().st_mode) for path in own} == {0o600}


@contextmanager
def _seen(commands: set[str]) -> Iterator[None]:
    """Collect the command lines of all processes of this machine, many times a second."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    commands.add(path.read_text(encoding="utf-8", errors="replace"))
                except OSError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    with hub_stand_in() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def stranger(finished: Build, hub: HubStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    """A base on the hub whose files name code, and an adapter beside which lie pickles; nothing is built."""
    home = tmp_path_factory.mktemp("stranger")
    code, mark = home / "code", home / "run"
    shutil.copytree(finished.folder / "base", home / "base")
    code.mkdir()
    names = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", None],
    }
    for folder in (code, home / "base"):
        (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    for name in ("config.json", "tokenizer_config.json"):
        file = home / "base" / name
        named = {key: [f"{code}--{one}" if one else None for one in value] if isinstance(value, list) else f"{code}--{value}"
                 for key, value in names.items()}  # fmt: skip
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": named}))
    hub.models["org/small"] = repository_of(home / "base")
    hub.models["org/small"].gated = True
    config = json.loads(json.dumps(finished.config))
    config["models"]["small"] |= {
        "base": "org/small", "quantizations": ["Q8_0"], "bitsandbytes": {"types": ["nf4"]}, "serving": {},
        "rag": {"file": "app.yaml"},
    }  # fmt: skip
    build = Build(home / "work", config)
    shutil.copytree(finished.folder / "adapter", build.folder / "adapter")
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "scheduler.pt", "rng_state.pth"):
        (build.folder / "adapter" / name).write_bytes(pickle.dumps(_Touch(mark)))
    (build.folder / "app.yaml").write_text(RAG)
    (build.folder / "app.yaml").chmod(0o600)
    build.write_config()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HF_HOME", str(home / "hf")), ("HF_ENDPOINT", hub.address), ("NO_PROXY", "127.0.0.1")):
            patch.setenv(name, value)
        yield Stranger(build, mark)


def test_a_run_that_fails_tells_nothing(stranger: Stranger) -> None:
    """The key of another account may not read the base; then the base's host has a password, and the adapter is damaged."""
    other = "hf_OfAnotherAccount"
    assert stranger.run("--cores", "1", "all", HF_TOKEN=other) != 0
    assert "403" in stranger.printed or "may not" in stranger.printed or "access" in stranger.printed
    assert stranger.run("--cores", "1", "all", OLLAMA_HOST="http://me:Geheim-of-host-7@127.0.0.1:1") != 0
    assert "a key belongs in OLLAMA_API_KEY" in stranger.printed
    weights = stranger.build.folder / "adapter/adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert stranger.run("--cores", "1", "all") != 0
    weights.write_bytes(whole)
    assert "truncated or damaged" in stranger.printed
    assert "Traceback" not in stranger.printed
    stranger.require_untold(other, "Geheim-of-host-7")


def test_a_whole_build_runs_nothing_and_tells_nothing(stranger: Stranger) -> None:
    assert stranger.run("--cores", "2", "all") == 0, stranger.printed
    assert not stranger.mark.exists()
    folder = stranger.build.folder
    assert (folder / "results/small/ollama/Q8_0/registered.json").is_file()
    assert 'ollama_model: "small:q8_0"' in (folder / "app.yaml").read_text()
    assert len(list(folder.glob("app.yaml*"))) == 2
    stranger.require_untold()


def test_it_would_be_seen(tmp_path: Path) -> None:
    """A secret in a file, in what is printed, or in a command is found."""
    stranger = Stranger(Build(tmp_path, {}), tmp_path / "run")
    for name in ("app.yaml", "other"):
        (tmp_path / name).write_text(OF_RAG)
        (tmp_path / name).chmod(0o600)
    with pytest.raises(AssertionError, match="other"):
        stranger.require_untold()
    (tmp_path / "other").unlink()
    stranger.require_untold()
    with _seen(stranger.commands):
        subprocess.run(["sh", "-c", f"sleep 0.3 # {OF_RAG}"], check=True)
    with pytest.raises(AssertionError, match="sleep"):
        stranger.require_untold()
