"""What of a build is known by which record, beside what tests/dag/test_corruption.py looks at in a whole one."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ollamake.atomic_write import write_json
from ollamake.build_check import BuildCheck, Findings
from ollamake.file_digest import sha256_of, state_of
from ollamake.hub_content import Content


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, as the rule `verify` has it."""
    monkeypatch.chdir(tmp_path)
    return Path()


def put(path: str, content: bytes = b"content") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def damage(file: Path) -> None:
    """Write other bytes, with size and time as they were."""
    status = file.stat()
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def found(name: str = "m") -> Findings:
    findings = BuildCheck().model(Path("results", name), [])
    assert findings is not None
    return findings


def test_the_gguf_of_an_adapter() -> None:
    gguf = put("results/m/gguf/m.adapter.gguf")
    adapter = put("adapter/adapter_model.safetensors")
    record = {"file": gguf.name, "size": 7, "sha256": sha256_of(gguf), "base": "base", "adapters": [state_of(adapter)]}
    write_json(Path("results/m/gguf/m.adapter.json"), record | {"others": []})
    assert found().lines == []
    damage(gguf)
    damage(adapter)
    findings = found()
    assert [line.partition(": ")[0] for line in findings.lines] == [str(gguf), str(adapter)]
    assert (findings.rebuild, findings.adopt) == ([gguf], [adapter])


def test_files_from_the_hub() -> None:
    shard, config = put("resources/hub/o/m/t/model.safetensors"), put("resources/hub/o/m/t/config.json", b"{}")
    content = {
        shard.name: {"size": 7, "sha256": sha256_of(shard)},
        config.name: {"size": 2, "git_sha1": hashlib.sha1(b"blob 2\0{}").hexdigest()},
        "gone.json": {"size": 3, "git_sha1": "0" * 40},
    }
    texts = {"reference": "o/m", "repo": "o/m", "revision": "main", "commit": "0" * 40, "folder": str(shard.parent)}
    source = {**texts, "weights": [shard.name], "files": [config.name], "content": content, "config": {}}
    write_json(Path("results/m/sources.json"), {"format": 1, "base": source, "adapters": []})
    assert found().lines == []
    damage(shard)
    damage(config)
    findings = found()
    assert (findings.rebuild, findings.adopt) == ([config, shard], [])


def test_damaged_pins_are_told_of_themselves() -> None:
    pins = put("results/m/sources.json", b'{"base": null')
    assert found().rebuild == [pins]


def test_a_source_that_was_changed_openly_is_for_the_next_run() -> None:
    adapter = put("adapter/adapter_model.safetensors")
    write_json(Path("results/m/inputs.json"), {"read": [state_of(adapter)]})
    damage(adapter)
    assert found().adopt == [adapter]
    os.utime(adapter)
    assert found().lines == []
    adapter.unlink()
    assert found().lines == []


def test_what_was_removed_is_no_fault() -> None:
    output = {"file": "model-00001-of-00001.safetensors", "size": 7, "sha256": "0" * 64}
    write_json(Path("results/m/merge_records/model-00001-of-00001.json"), {"output": output, "base": None})
    write_json(Path("results/m/gguf/m.unquantized.json"), {"file": "m.unquantized.gguf", "size": 7, "sha256": "0" * 64})
    assert found().lines == []


def test_records_of_an_earlier_version_are_named_and_right(caplog: pytest.LogCaptureFixture) -> None:
    gguf = put("results/m/gguf/m.Q8_0.gguf")
    record = {"file": gguf.name, "size": 7, "sha256": sha256_of(gguf)}
    put("results/m/gguf/m.Q8_0.json", json.dumps(record, indent=2, sort_keys=True).encode() + b"\n")
    with caplog.at_level("INFO"):
        assert found().lines == []
    assert caplog.messages[-1].endswith(
        "not sealed, so of an earlier version or another program: results/m/gguf/m.Q8_0.json"
    )
    damage(gguf)
    assert found().rebuild == [gguf]


def test_a_file_of_several_models_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base = put("base/model.safetensors")
    for name in ("a", "b"):
        write_json(Path("results", name, "inputs.json"), {"read": [state_of(base)]})
    check, read = BuildCheck(), []
    fault = Content.fault
    monkeypatch.setattr(Content, "fault", lambda *arguments: read.append(1) or fault(*arguments))
    for name in ("a", "b"):
        check.model(Path("results", name), [])
    assert read == [1]


def test_nothing_is_there() -> None:
    assert BuildCheck().model(Path("results/none"), []) is None
