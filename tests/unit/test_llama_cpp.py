"""Finding, fetching and running llama.cpp's parts, without building it."""

import io
import json
import os
import re
import stat
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

import fetch_llama_cpp
from ollamake import llama_cpp_source
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.free_disk import free_bytes, require_free_disk
from ollamake.gguf_conversion import convert, outtype_for, require_own_head
from ollamake.gguf_quantization import quantize, type_argument
from ollamake.gguf_record import estimated_size, gguf_record
from ollamake.llama_cpp_patch import PATCH
from ollamake.llama_cpp_programs import find_converter, find_program, program_identity
from ollamake.llama_cpp_source import (
    VERSION,
    compile_program,
    compiled_since_start,
    fetch_sdist,
    remove_build_of_another_place,
    require_compiler,
    unpack,
)


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("below", ["", "bin", "build/bin"])
def test_programs_in_a_named_folder(tmp_path: Path, below: str) -> None:
    path = program(tmp_path / below / "llama-quantize")
    assert find_program("llama-quantize", str(tmp_path)) == path


def test_programs_on_path_or_to_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("llama-quantize", None) is None
    path = program(tmp_path / "llama-quantize")
    assert find_program("llama-quantize", None) == path


def test_a_named_folder_without_the_program_is_refused_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program(tmp_path / "path/llama-quantize").parent))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/llama-quantize").write_text("not executable")
    with pytest.raises(OllamakeError, match=r"tools\.llama_cpp: llama-quantize is not in .*empty"):
        find_program("llama-quantize", str(tmp_path / "empty"))


def test_converter_of_a_source_tree(tmp_path: Path) -> None:
    (tmp_path / "gguf-py").mkdir()
    (tmp_path / "convert_hf_to_gguf.py").write_text("")
    (tmp_path / "build/bin").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "build", tmp_path / "build/bin"):
        assert find_converter(str(folder)) == tmp_path / "convert_hf_to_gguf.py"
    assert find_converter(None) is None
    assert find_converter(str(tmp_path / "build/bin/deeper")) is None


def test_identity_changes_with_the_program(tmp_path: Path) -> None:
    path = program(tmp_path / "llama-quantize")
    before = program_identity(path)
    assert program_identity(path) == before
    os.utime(path, ns=(1, 1))
    assert program_identity(path) != before


def sdist(folder: Path, names: dict[str, bytes]) -> Path:
    path = folder / "sdist.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in names.items():
            member = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_unpack_takes_only_the_tree(tmp_path: Path) -> None:
    names = {
        "vendor/llama.cpp/CMakeLists.txt": b"x",
        "vendor/llama.cpp/src/a.cpp": b"y",
        "vendor/llama.cpp/models/big.gguf": b"z",
        "setup.py": b"no",
    }
    assert unpack(sdist(tmp_path, names), tmp_path / "tree") == 2
    files = sorted(
        str(file.relative_to(tmp_path / "tree")) for file in (tmp_path / "tree").rglob("*") if file.is_file()
    )
    assert files == ["CMakeLists.txt", "src/a.cpp"]


def test_unpack_does_not_leave_its_folder(tmp_path: Path) -> None:
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(sdist(tmp_path, {"vendor/llama.cpp/../../../../../outside": b"x"}), tmp_path / "tree")


def test_what_is_fetched_is_changed_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, bytes] = {}
    for one in PATCH:
        name = f"vendor/llama.cpp/{one.file}"
        names[name] = names.get(name, b"") + one.old.encode()
    archive = sdist(tmp_path, names)
    monkeypatch.setattr(fetch_llama_cpp, "fetch_sdist", lambda _: archive)
    fetch_llama_cpp.main(["--output-dir", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out/source.json").read_text())
    assert record["files"] == len(names)
    assert [(change["file"], change["new"]) for change in record["changes"]] == [(one.file, one.new) for one in PATCH]
    for one in PATCH:
        assert one.new in (tmp_path / "out/source" / one.file).read_text()


def test_another_file_than_the_pinned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def downloads(command: list[str], **_: Any) -> Any:
        (tmp_path / "x.tar.gz").write_bytes(b"something else")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(llama_cpp_source.subprocess, "run", downloads)
    with pytest.raises(OllamakeError, match="not the file that was pinned"):
        fetch_sdist(tmp_path)


def test_no_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = type("Done", (), {"returncode": 1, "stderr": "no matching distribution"})
    monkeypatch.setattr(llama_cpp_source.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OllamakeError, match=r"(?s)no matching distribution.*PIP_FIND_LINKS"):
        fetch_sdist(tmp_path)


@pytest.mark.parametrize(("present", "missing"), [("", "C"), ("cc", "C\\+\\+")])
def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: str, missing: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    if present:
        program(tmp_path / present)
    with pytest.raises(OllamakeError, match=f"no {missing} compiler found"):
        require_compiler()


def test_a_compilers_error_is_shown(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/CMakeLists.txt").write_text('message(FATAL_ERROR "the reason")')
    with pytest.raises(OllamakeError, match=r"(?s)configuring llama\.cpp failed.*the reason"):
        compile_program(tmp_path / "source", tmp_path / "build", "llama-quantize", 1)


def plan(*tensors: tuple[str, list[int]]) -> dict[str, Any]:
    return {"shards": [{"tensors": [{"stored": stored, "shape": shape} for stored, shape in tensors]}]}


@pytest.mark.parametrize(
    ("tensors", "outtype"),
    [
        ([("BF16", [2, 2]), ("F32", [2])], "bf16"),
        ([("BF16", [2, 2]), ("F16", [2, 2])], "f16"),
        ([("F16", [2, 2]), ("F32", [2, 2])], "f32"),
    ],
)
def test_outtype_loses_nothing_of_the_merge(tensors: list[tuple[str, list[int]]], outtype: str) -> None:
    assert outtype_for(plan(*tensors)) == outtype


def test_nothing_to_convert() -> None:
    with pytest.raises(OllamakeError, match="no matrix in float16"):
        outtype_for(plan(("I8", [2, 2])))


def test_a_converters_failure_is_told_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text("raise NotImplementedError('Architecture X not supported')")
    with pytest.raises(OllamakeError, match=r"cannot convert .*: Architecture X not supported"):
        convert(converter, tmp_path, "f16", "m", tmp_path / "out.gguf")
    converter.write_text("import numpy as np; np.array([1e6], np.float32).astype(np.float16)")
    with pytest.raises(OllamakeError, match=r"larger than float16 can hold.*dtype: bfloat16"):
        convert(converter, tmp_path, "f16", "m", tmp_path / "out.gguf")
    converter.write_text("raise ValueError('unforeseen')")
    with pytest.raises(OllamakeError, match=r"(?s)exit code 1.*unforeseen"):
        convert(converter, tmp_path, "f16", "m", tmp_path / "out.gguf")


def test_a_phi_3_of_any_name_is_tokenized_as_one(tmp_path: Path) -> None:
    """llama.cpp looks for the name of the family in general.name."""
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text("import sys; raise ValueError(sys.argv)")
    for kind, name, given in (
        ("phi3", "mine", "mine (phi-3)"),
        ("phi3", "my-Phi3", "my-Phi3"),
        ("qwen2", "mine", "mine"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(OllamakeError, match=re.escape(f"'--model-name', '{given}'")):
            convert(converter, tmp_path, "f16", name, tmp_path / "out.gguf")


def test_copy_for_the_type_a_file_already_has() -> None:
    assert type_argument("F16", "F16") == "COPY"
    assert type_argument("BF16", "F16") == "BF16"
    assert type_argument("Q8_0", "F16") == "Q8_0"


def test_quantize_gives_absolute_paths_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that begins with a digit would be taken for a type, were it not a path."""
    monkeypatch.chdir(tmp_path)
    echo = program(tmp_path / "llama-quantize", '#!/bin/sh\necho "$@" > args\necho "[ 1/ 1]"\ntouch "$4"\n')
    quantize(echo, Path("in.gguf"), Path("7b.gguf"), "Q4_K_M", 3)
    assert (tmp_path / "args").read_text().split()[2:] == [f"{tmp_path}/in.gguf", f"{tmp_path}/7b.gguf", "Q4_K_M", "3"]


@pytest.mark.parametrize("text", ["#!/bin/sh\necho the reason; exit 3\n", "#!/bin/sh\necho the reason\n"])
def test_a_failed_quantization_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(OllamakeError, match=r"(?s)llama-quantize failed .*the reason"):
        quantize(program(tmp_path / "llama-quantize", text), tmp_path / "in", tmp_path / "out", "Q8_0", 1)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "qwen2")
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "<|im_end|>"])
    writer.add_eos_token_id(1)
    writer.add_tensor("token_embd.weight", np.zeros((32, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_record(gguf: Path) -> None:
    record = gguf_record(gguf, "m.F16.gguf", "F16")
    assert record["sha256"] == sha256_of(gguf)
    assert (record["architecture"], record["tensors"], record["parameters"]) == ("qwen2", 1, 2048)
    assert record["size"] == gguf.stat().st_size
    assert (record["file"], record["type"], record["file_type"]) == ("m.F16.gguf", "F16", 1)
    assert record["tokenizer"] == {
        "model": "gpt2",
        "adds_bos": False,
        "bos": None,
        "eos": "<|im_end|>",
        "end_tokens": {"<|im_end|>": 1},
        "chat_template": None,
    }
    assert estimated_size({"parameters": 32_764_000_000}, "Q4_K_M") == pytest.approx(19.85e9, rel=0.01)


def test_record_of_a_gguf_that_says_neither_its_type_nor_its_tokenizer(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    record = gguf_record(tmp_path / "m.gguf", "m", "F16")
    assert (record["file_type"], record["tokenizer"]) == (None, None)


def test_a_cut_gguf_is_noticed(gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:-200])
    with pytest.raises(OllamakeError, match=r"m\.gguf"):
        gguf_record(gguf, "m", "F16")
    gguf.write_bytes(b"GGUF")
    with pytest.raises(OllamakeError, match="not a whole GGUF"):
        gguf_record(gguf, "m", "F16")


def test_free_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not/yet/there") == pytest.approx(free_bytes(tmp_path), rel=0.01)
    require_free_disk(tmp_path, 1, "a byte")
    with pytest.raises(OllamakeError, match=r"not enough disk for a model: it needs 1000000000\.00 GB, and .* has "):
        require_free_disk(tmp_path, 10**18, "a model")


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("parted", [True, False])
def test_a_head_that_the_converter_left_out(tmp_path: Path, has_head: bool, parted: bool) -> None:
    """llama.cpp ties embedding and head of some architectures by itself; a merge that parted them must not pass."""
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    for name in ["token_embd.weight"] + ["output.weight"] * has_head:
        writer.add_tensor(name, np.ones((4, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plan = {"config": {"tie_word_embeddings": False} if parted else {}}
    if parted and not has_head:
        with pytest.raises(OllamakeError, match="keeps them one for this architecture"):
            require_own_head(tmp_path / "m.gguf", plan)
    else:
        require_own_head(tmp_path / "m.gguf", plan)


def test_what_was_compiled_in_another_place_is_compiled_anew(tmp_path: Path) -> None:
    """CMake itself refuses a cache that names another source."""
    source, build = tmp_path / "source", tmp_path / "build"
    remove_build_of_another_place(source, build)
    build.mkdir()
    cache = build / "CMakeCache.txt"
    cache.write_text(f"A=1\nCMAKE_HOME_DIRECTORY:INTERNAL={source}\n", encoding="utf-8")
    remove_build_of_another_place(source, build)
    assert cache.exists()
    remove_build_of_another_place(tmp_path / "moved/source", build)
    assert not build.exists()


@pytest.mark.parametrize(
    ("ends", "same_start", "is_kept"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_what_was_being_compiled_when_the_machine_went_down_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, same_start: bool, is_kept: bool
) -> None:
    """Objects that are empty or zeros have the times of good ones."""
    build, start = tmp_path / "build", tmp_path / "boot_id"
    monkeypatch.setattr("ollamake.llama_cpp_source._START", start)
    start.write_text("first\n", encoding="ascii")
    compiling = compiled_since_start(build)
    compiling.__enter__()
    (build / "ggml.o").write_bytes(bytes(100))
    if ends:
        compiling.__exit__(None, None, None)
    if not same_start:
        start.write_text("second\n", encoding="ascii")
    with compiled_since_start(build):
        assert (build / "ggml.o").exists() is is_kept
