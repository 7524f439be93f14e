"""What a RAG application's file is told of a registered model; backup, mode, links, and everything that stops it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import write_rag_config
from ollamake import rag_update
from ollamake.configuration import read_configuration
from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.rag_check import KEYS
from ollamake.rag_file import read_rag_file, replace_rag_file
from ollamake.rag_state import undone
from ollamake.registration import Place, register

SCHEMA = Path(__file__).parents[2] / "config/schemas/config.schema.yaml"
BEFORE = "llm:\n  ollama_model: llama3  # 前\n  ollama_host: http://localhost:11434/\n"
AFTER = (
    "llm:\n  ollama_model: road:q4_k_m  # 前\n  use_finetuned: true\n  use_ollama_fallback: true\n  num_ctx: 4096\n"
    "  ollama_host: http://localhost:11434/\n"
)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The marker of a model that is registered in a store."""
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"weights" * 1000)
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    record = {"sha256": digest, "size": 7000, "architecture": "qwen2", "parameters": 1, "file_type": 1}
    request = CreateRequest("road:q4_k_m", "m.gguf", "S", parameters={"num_ctx": 4096})
    path = tmp_path / "registered.json"
    made = register(request, gguf, record, Place("store", None, str(tmp_path / "store")))
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    file = folder / "config.yaml"
    file.write_text(BEFORE, encoding="utf-8")
    return file


def update(marker: Path, file: Path, **spec: Any) -> dict[str, Any]:
    """Run the script as the workflow does and return the record."""
    output = marker.parent / "rag_config.json"
    given = json.dumps({"file": str(file), **spec})
    write_rag_config.main(["--marker", str(marker), "--spec", given, "--output", str(output)])
    record: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    assert record["spec"] == given
    return record


def on_server(marker: Path, host: str) -> dict[str, Any]:
    made = json.loads(marker.read_text(encoding="utf-8"))
    return {**made, "target": "server", "host": host}


def names(file: Path) -> list[str]:
    return sorted(one.name for one in file.parent.iterdir())


def test_written_recorded_and_not_written_twice(marker: Path, app: Path) -> None:
    record = update(marker, app)
    assert app.read_text(encoding="utf-8") == AFTER
    assert record["sha256"] == hashlib.sha256(app.read_bytes()).hexdigest()
    assert record["before"]["llm.ollama_model"] == "llama3"
    assert record["before"]["llm.num_ctx"] is None
    assert (record["written"], Path(record["backup"]).name) == (True, "config.yaml.before-ollamake")
    before = app.stat()
    record = update(marker, app)
    assert app.stat() == before
    assert (record["written"], record["backup"]) == (False, None)
    assert record["backups"] == ["config.yaml.before-ollamake"]
    assert names(app) == ["config.yaml", "config.yaml.before-ollamake"]


def test_backups_are_never_overwritten(marker: Path, app: Path) -> None:
    update(marker, app)
    app.write_text(BEFORE + "more: 1\n", encoding="utf-8")
    update(marker, app)
    app.write_text(BEFORE, encoding="utf-8")
    record = update(marker, app)
    assert Path(record["backup"]).read_text(encoding="utf-8") == BEFORE
    assert record["backups"] == ["config.yaml.before-ollamake", "config.yaml.before-ollamake.2"]
    assert (app.parent / "config.yaml.before-ollamake.2").read_text(encoding="utf-8") == BEFORE + "more: 1\n"
    (app.parent / "config.yaml.before-ollamake.old").write_text("mine", encoding="utf-8")
    app.write_text(BEFORE + "again: 1\n", encoding="utf-8")
    update(marker, app, backup=False)
    assert "config.yaml.before-ollamake.3" not in names(app)


def test_a_dry_run_shows_and_writes_nothing(marker: Path, app: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write_rag_config.main(["--marker", str(marker), "--spec", json.dumps({"file": str(app)}), "--dry-run"])
    assert "-  ollama_model: llama3  # 前\n+  ollama_model: road:q4_k_m  # 前\n+  use_finetuned: true\n" in caplog.text
    assert names(app) == ["config.yaml"]
    assert app.read_text(encoding="utf-8") == BEFORE


def test_a_dry_run_has_no_output(marker: Path, app: Path) -> None:
    for arguments in (["--dry-run", "--output", "x"], []):
        with pytest.raises(SystemExit):
            write_rag_config.main(["--marker", str(marker), "--spec", "{}", *arguments])


def test_mode_and_link_stay(marker: Path, app: Path) -> None:
    link = app.parent.parent / "link.yaml"
    link.symlink_to("app/config.yaml")
    app.chmod(0o640)
    owner = (app.stat().st_uid, app.stat().st_gid)
    record = update(marker, link)
    assert link.is_symlink()
    assert app.read_text(encoding="utf-8") == AFTER
    assert app.stat().st_mode & 0o777 == 0o640
    assert (app.stat().st_uid, app.stat().st_gid) == owner
    backup = Path(record["backup"])
    assert backup.parent == app.parent
    assert backup.stat().st_mode & 0o777 == 0o640


def test_a_byte_order_mark_stays(marker: Path, app: Path) -> None:
    app.write_bytes(b"\xef\xbb\xbf" + BEFORE.replace("\n", "\r\n").encode())
    update(marker, app)
    assert app.read_bytes() == b"\xef\xbb\xbf" + AFTER.replace("\n", "\r\n").encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "# 設定ファイルです\nllm: {}\n".encode("cp932"),
            ["line 1: expected YAML in UTF-8", "Shift_JIS", "iconv -f CP932"],
        ),
        ("a: 1\n# ここは設定\nllm: {}\n".encode("euc_jp"), ["line 2: expected YAML in UTF-8", "EUC-JP"]),
        ("# 設定\nllm: {}\n".encode("iso2022_jp"), ["ISO-2022-JP"]),
        ("llm: {}\n".encode("utf-16"), ["UTF-16"]),
        (b"PK\x03\x04rest", ["a ZIP archive"]),
    ],
)
def test_other_encodings_are_refused(marker: Path, app: Path, content: bytes, words: list[str]) -> None:
    app.write_bytes(content)
    with pytest.raises(OllamakeError) as error:
        update(marker, app)
    for word in (str(app), *words):
        assert word in str(error.value)
    assert app.read_bytes() == content
    assert names(app) == ["config.yaml"]


def test_a_change_by_somebody_else_is_not_lost(app: Path) -> None:
    read = read_rag_file(app)
    app.write_text(BEFORE + "mine: 1\n", encoding="utf-8")
    with pytest.raises(OllamakeError, match="was changed by somebody else"):
        replace_rag_file(read, b"llm: {}\n")
    assert app.read_text(encoding="utf-8") == BEFORE + "mine: 1\n"
    assert names(app) == ["config.yaml"]


def test_a_file_with_two_names_is_refused(marker: Path, app: Path) -> None:
    os.link(app, app.parent / "other.yaml")
    with pytest.raises(OllamakeError, match="2 names"):
        update(marker, app, backup=False)
    assert app.read_text(encoding="utf-8") == BEFORE


def test_a_model_that_is_gone_or_damaged_is_not_written(marker: Path, app: Path) -> None:
    store = Path(json.loads(marker.read_text(encoding="utf-8"))["store"])
    blob = max((store / "blobs").iterdir(), key=lambda file: file.stat().st_size)
    content = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(content[:-1] + b"x")
    with pytest.raises(
        OllamakeError, match=r"(?s)not as it was registered, so nothing has been written.*snakemake registered"
    ):
        update(marker, app)
    marker.write_text("{}", encoding="utf-8")
    with pytest.raises(OllamakeError, match="expected the marker of a registered model"):
        update(marker, app)
    assert app.read_text(encoding="utf-8") == BEFORE
    assert names(app) == ["config.yaml"]


def test_a_silent_server_is_not_written(marker: Path, app: Path) -> None:
    marker.write_text(json.dumps(on_server(marker, "http://127.0.0.1:1")), encoding="utf-8")
    with pytest.raises(OllamakeError, match=r"no Ollama server answers at .* Nothing has been written"):
        update(marker, app)
    assert app.read_text(encoding="utf-8") == BEFORE


@pytest.mark.parametrize(
    ("stands", "written"),
    [
        ("http://localhost:11434/", "http://localhost:11434/"),
        ("localhost:11434", "localhost:11434"),
        ("127.0.0.1", "127.0.0.1"),
        ("'http://0.0.0.0:11434'", "'http://0.0.0.0:11434'"),
        ("http://localhost:11435", "http://127.0.0.1:11434"),
        ("https://localhost:11434", "http://127.0.0.1:11434"),
        ("gpu", "http://127.0.0.1:11434"),
        ('"http://gpu:11434"', '"http://127.0.0.1:11434"'),
        ("~", "http://127.0.0.1:11434"),
        ("[a, b", None),
    ],
)
def test_an_address_of_the_same_server_stays(
    marker: Path, app: Path, stands: str, written: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rag_update, "marker_differences", lambda *_: [])
    marker.write_text(json.dumps(on_server(marker, "http://127.0.0.1:11434")), encoding="utf-8")
    app.write_text(f"llm:\n  ollama_host: {stands}\n", encoding="utf-8")
    if written is None:
        with pytest.raises(OllamakeError, match="no YAML"):
            update(marker, app)
        return
    update(marker, app)
    assert app.read_text(encoding="utf-8").splitlines()[1] == f"  ollama_host: {written}"


def test_without_num_ctx_and_with_keys_of_ones_own(marker: Path, app: Path) -> None:
    made = json.loads(marker.read_text(encoding="utf-8"))
    wanted = rag_update.wanted_values(made, {"file": "f", "use_ollama_fallback": False}, "")
    assert wanted["llm.use_ollama_fallback"] is False
    made["request"]["parameters"] = {}
    assert rag_update.wanted_values(made, {"file": "f", "keys": {"ollama_model": "a.b", "num_ctx": "n"}}, "") == {
        "a.b": "road:q4_k_m"
    }


def test_the_first_users_keys() -> None:
    assert list(KEYS.values()) == [
        *("llm.use_finetuned", "llm.use_ollama_fallback", "llm.ollama_model", "llm.ollama_host", "llm.num_ctx")
    ]
    properties = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["$defs"]["model"]["properties"]["rag"]["properties"]
    assert {name: key["default"] for name, key in properties["keys"]["properties"].items()} == KEYS


def test_what_was_undone(marker: Path, app: Path) -> None:
    spec = {"file": str(app)}
    record = marker.parent / "rag_config.json"

    def asked() -> dict[str, Any] | None:
        return undone(record, marker, spec)

    assert asked() is None
    update(marker, app, undone=asked())
    assert asked() is None
    for times in (1, 2):
        app.write_text(AFTER.replace("4096", "2048"), encoding="utf-8")
        assert asked() == {"times": times, "found": {"llm.num_ctx": "2048"}}
        update(marker, app, undone=asked())
        assert asked() == {"times": times, "found": {"llm.num_ctx": "2048"}}
    app.unlink()
    found = asked()
    assert found is not None
    assert found["times"] == 3
    assert "cannot be read" in found["found"]["error"]


def test_the_script_ends_in_one_message(marker: Path, app: Path) -> None:
    app.write_text("llm: 5\n", encoding="utf-8")
    command = [sys.executable, write_rag_config.__file__, "--marker", str(marker)]
    command += ["--spec", json.dumps({"file": str(app)}), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {app}, line 1: llm: expected keys with values, found a single value ('5')")


# The configuration ---------------------------------------------------------------------------------------------------
def read(app: Path, text: str) -> Any:
    return read_configuration(yaml.safe_load(text.replace("APP", str(app))), SCHEMA)


def test_no_rag_by_default_and_its_defaults(app: Path) -> None:
    assert read(app, "models: {m: {base: b}}").models["m"].rag is None
    rag = read(app, "models: {m: {base: b, rag: {file: APP}}}").models["m"].rag
    assert (rag.file, rag.keys, rag.use_ollama_fallback) == (str(app), KEYS, True)
    assert (rag.quantization, rag.backup) == (None, True)
    rag = (
        read(app, "models: {m: {base: b, rag: {file: APP, keys: {num_ctx: null, ollama_model: a.b}}}}").models["m"].rag
    )
    assert rag.keys == {name: key for name, key in KEYS.items() if name != "num_ctx"} | {"ollama_model": "a.b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {m: {base: b, rag: {file: nowhere.yaml}}}", ["models.m.rag.file: there is no file nowhere.yaml"]),
        ("models: {m: {base: b, rag: {}}}", ["models.m.rag: missing key(s): file"]),
        ("models: {m: {base: b, rag: {file: APP, key: {}}}}", ["models.m.rag.key: unknown key", "'keys'"]),
        ("models: {m: {base: b, rag: {file: APP, keys: {num_ctx: a..b}}}}", ["models.m.rag.keys.num_ctx", "'a..b'"]),
        (
            "models: {m: {base: b, rag: {file: APP, keys: {num_ctx: llm}}}}",
            ["models.m.rag.keys: num_ctx (llm) and use_finetuned (llm.use_finetuned) are the same place"],
        ),
        (
            "models: {m: {base: b, rag: {file: APP, quantization: Q8_0}}}",
            ["models.m.rag.quantization: Q8_0 is not built. Expected one of Q4_K_M"],
        ),
        (
            "models: {m: {base: b, rag: {file: APP}}, n: {base: b, rag: {file: APP}}}",
            [
                "models.n.rag.keys.use_finetuned and models.m.rag.keys.use_finetuned would both be written to llm.use_finetuned"
            ],
        ),
        (
            "defaults: {rag: {file: APP, keys: {ollama_model: null}}}\n"
            "models: {m: {base: b}, n: {base: b, rag: {keys: {use_finetuned: null, use_ollama_fallback: null}}}}",
            ["models.n.rag.keys.ollama_host and models.m.rag.keys.ollama_host would both be written"],
        ),
    ],
)
def test_refused_in_the_configuration(app: Path, text: str, words: list[str]) -> None:
    with pytest.raises(OllamakeError) as error:
        read(app, text)
    for word in words:
        assert word in str(error.value)


def test_two_models_in_one_file(app: Path) -> None:
    keys = "{use_finetuned: b.f, use_ollama_fallback: b.o, ollama_model: b.m, ollama_host: b.h, num_ctx: b.n}"
    read(app, f"models: {{m: {{base: b, rag: {{file: APP}}}}, n: {{base: b, rag: {{file: APP, keys: {keys}}}}}}}")
    link = app.parent / "link.yaml"
    link.symlink_to("config.yaml")
    with pytest.raises(OllamakeError, match="would both be written"):
        read(app, f"models: {{m: {{base: b, rag: {{file: APP}}}}, n: {{base: b, rag: {{file: {link}}}}}}}")


def test_parse_args(marker: Path) -> None:
    assert isinstance(write_rag_config.parse_args(["--marker", "m", "--spec", "{}", "--dry-run"]), argparse.Namespace)
