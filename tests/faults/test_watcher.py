"""The watcher sees what is not whole under a final name; without that the other tests would prove nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import save
from watcher import Watcher
from whole_files import fault_of, is_final

from ollamake.atomic_write import write_bytes, write_json, write_link, write_text


def gguf(folder: Path) -> bytes:
    file = folder / "made.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_tensor("weight", np.ones((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.read_bytes()


WHOLE: dict[str, Callable[[Path], bytes]] = {
    "a.gguf": gguf,
    "a.safetensors": lambda _: save({"weight": np.ones((64, 64), np.float32)}),
    "a.json": lambda _: b'{"a": [1, 2]}\n',
    "a.html": lambda _: b"<html><body>text</body></html>\n",
    "a.svg": lambda _: b"<svg><g/></svg>\n",
    "a.md": lambda _: b"# Title\n",
    "vllm.yaml": lambda _: b"model: a\nport: 8000\n",
    "sha256-" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": lambda _: b"",
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole_and_what_is_cut_short(name: str, tmp_path: Path) -> None:
    content = WHOLE[name](tmp_path)
    file = tmp_path / name
    file.write_bytes(content)
    assert fault_of(file) is None
    file.write_bytes(content[: len(content) // 2] if content else b"more")
    assert fault_of(file) is not None
    if content:
        file.write_bytes(b"")
        assert fault_of(file) == "empty"


@pytest.mark.parametrize(
    ("name", "final"),
    [
        (".a.json.host.17.tmp", False),
        ("blobs/sha256-17123", False),
        ("a.json.tmp", True),
        (f"blobs/sha256-{'0' * 64}", True),
    ],
)
def test_which_names_are_final(name: str, final: bool) -> None:
    assert is_final(Path("results") / name) is final


def test_how_files_are_written_here_is_no_fault(tmp_path: Path) -> None:
    with Watcher(tmp_path / "results") as watcher:
        write_json(tmp_path / "results/new/a.json", {"a": 1})
        write_json(tmp_path / "results/new/a.json", {"a": 2})
        write_text(tmp_path / "results/new/b.md", "# Title\n")
        write_bytes(tmp_path / "results/new/deeper/one.released", b"")
        write_link(tmp_path / "results/new/link.json", tmp_path / "results/new/a.json")
        assert seen(watcher, 5)
    assert watcher.faults == []


def test_a_file_written_under_its_final_name(tmp_path: Path) -> None:
    with Watcher(tmp_path) as watcher:
        (tmp_path / "a.json").write_text("{}", encoding="utf-8")
        assert seen(watcher, 1)
    assert f"{tmp_path}/a.json: written under its final name" in watcher.take_faults()
    assert watcher.faults == []


def test_half_a_file_renamed(tmp_path: Path) -> None:
    with Watcher(tmp_path) as watcher:
        (tmp_path / ".a.json.tmp").write_text('{"a": ', encoding="utf-8")
        (tmp_path / ".a.json.tmp").rename(tmp_path / "a.json")
        assert seen(watcher, 1)
    (fault,) = watcher.take_faults()
    assert fault.startswith(f"{tmp_path}/a.json: renamed, and not whole: JSONDecodeError")


def test_half_a_file_in_a_folder_that_comes_with_it(tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside/a.json").write_text('{"a": ', encoding="utf-8")
    with Watcher(tmp_path / "results") as watcher:
        (tmp_path / "aside").rename(tmp_path / "results/there")
        assert seen(watcher, 1)
    (fault,) = watcher.take_faults()
    assert "there before its folder was watched, and not whole" in fault


def seen(watcher: Watcher, count: int) -> bool:
    deadline = time.monotonic() + 10
    while watcher.seen < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return watcher.seen >= count
