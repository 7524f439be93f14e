"""Finding, fetching and running llama.cpp's parts, without building it."""

import io
import json
import os
import re
import socket
import stat
import subprocess
import tarfile
from contextlib import suppress
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
from ollamake.licenses import license_texts
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


ROOT = f"llama_cpp_python-{VERSION}/vendor/llama.cpp"


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """Return a member as a hostile archive may have it."""
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode = kind, target, 0o6777
    return found


HOSTILE = {
    "absolute path": [member(f"{ROOT}//outside")],
    "path upwards": [member(f"{ROOT}/../../../outside")],
    "link out, and a file through it": [
        member(f"{ROOT}/out", tarfile.SYMTYPE, "../.."),
        member(f"{ROOT}/out/outside"),
    ],
    "hard link out": [member(f"{ROOT}/outside", tarfile.LNKTYPE, "/etc/passwd")],
    "device": [member(f"{ROOT}/outside", tarfile.CHRTYPE)],
    "pipe": [member(f"{ROOT}/outside", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sdist.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for one in HOSTILE[kind]:
            archive.addfile(one)
    (tmp_path / "a/b").mkdir(parents=True)
    # Refused in one message, or what is harmless of it taken; nothing else happens.
    with suppress(OllamakeError):
        unpack(path, tmp_path / "a/b/tree")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "sdist.tar.gz"]
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b"]
    for file in (tmp_path / "a/b/tree").rglob("*"):
        assert not file.is_symlink()
        assert file.is_dir() or (file.is_file() and file.stat().st_mode & 0o7022 == 0 and file.stat().st_nlink == 1)


@pytest.mark.parametrize("kind", ["absolute path", "path upwards"])
def test_a_path_out_of_the_folder_is_refused_or_put_into_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sdist.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(HOSTILE[kind][0])
    if kind == "path upwards":
        with pytest.raises(OllamakeError, match=r"sdist\.tar\.gz cannot be unpacked: .*outside the destination"):
            unpack(path, tmp_path / "tree")
    else:
        assert unpack(path, tmp_path / "tree") == 1
        assert (tmp_path / "tree/outside").is_file()


def test_an_archive_that_grows_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_source, "_LARGEST_TREE", 1000)
    archive = sdist(tmp_path, {f"vendor/llama.cpp/{number}": bytes(400) for number in range(5)})
    with pytest.raises(OllamakeError, match="unpacks to more than 1000 bytes"):
        unpack(archive, tmp_path / "tree")
    assert len(list((tmp_path / "tree").iterdir())) == 2


def test_an_archive_that_was_cut_short_ends_in_one_message(tmp_path: Path) -> None:
    archive = sdist(tmp_path, {"vendor/llama.cpp/a": os.urandom(100_000)})
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(OllamakeError, match=r"sdist\.tar\.gz cannot be unpacked"):
        unpack(archive, tmp_path / "tree")


def patched(folder: Path) -> Path:
    """Return an archive with the files that are changed after they are unpacked."""
    names: dict[str, bytes] = {}
    for one in PATCH:
        name = f"vendor/llama.cpp/{one.file}"
        names[name] = names.get(name, b"") + one.old.encode()
    return sdist(folder, names)


def test_a_file_that_the_user_brought_is_taken_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = patched(tmp_path)
    monkeypatch.setattr(llama_cpp_source, "SDIST_SHA256", sha256_of(archive))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it asked the network"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it ran a program"))
    fetch_llama_cpp.main(["--output-dir", str(tmp_path / "out"), "--sdist", str(archive)])
    assert (tmp_path / "out/source.json").is_file()
    assert {one.file for one in PATCH} == {
        file.relative_to(tmp_path / "out/source").as_posix()
        for file in (tmp_path / "out/source").rglob("*")
        if file.is_file()
    }


def test_a_file_of_another_sha256_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    archive = patched(tmp_path)
    with pytest.raises(OllamakeError, match=r"is not the file that was pinned: sha256 .*tools\.llama_cpp_sdist names"):
        fetch_llama_cpp.main(["--output-dir", str(tmp_path / "out"), "--sdist", str(archive)])
    with pytest.raises(OllamakeError, match=r"tools\.llama_cpp_sdist names another file: .*none\.tar\.gz is not there"):
        fetch_llama_cpp.main(["--output-dir", str(tmp_path / "out"), "--sdist", str(tmp_path / "none.tar.gz")])
    assert [file.name for file in (tmp_path / "out").iterdir()] == []


def test_pip_checks_the_sha256_before_it_runs_anything_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip runs the build backend of a source distribution to download it: a false one must not get that far."""
    found = tmp_path / "found"
    found.mkdir()
    name = f"llama_cpp_python-{VERSION}"
    ran = tmp_path / "ran"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"open({str(ran)!r}, 'w').close()\n",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {VERSION}\n",
    }
    with tarfile.open(found / f"{name}.tar.gz", "w:gz") as archive:
        for file, text in files.items():
            one = tarfile.TarInfo(f"{name}/{file}")
            one.size = len(text)
            archive.addfile(one, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found))
    monkeypatch.setattr(llama_cpp_source, "find_spec", lambda _: True)
    (tmp_path / "to").mkdir()
    with pytest.raises(OllamakeError, match=r"could not download[\s\S]*DO NOT MATCH THE HASHES"):
        fetch_sdist(tmp_path / "to")
    assert not ran.exists()


def test_the_build_backend_that_pip_needs_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_source, "find_spec", lambda _: None)
    with pytest.raises(OllamakeError, match=r"scikit_build_core .*pip install -r requirements\.txt"):
        fetch_sdist(tmp_path)


def test_licences_lie_beside_the_programs(tmp_path: Path) -> None:
    texts = {"LICENSE": "MIT of llama.cpp", "licenses/LICENSE-jsonhpp": "MIT of json", "vendor/b/LICENSE": "MIT of b"}
    others = {"vendor/stb/stb.h": "/* public domain */", "cmake/license.cmake": "no licence"}
    for name, text in (texts | others).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    written = license_texts(tmp_path)
    assert written.startswith("LICENSE\n=======\n\nMIT of llama.cpp\n")
    assert [written.index(text) for text in texts.values()] == sorted(written.index(text) for text in texts.values())
    assert "no licence" not in written
    assert "vendor/stb\n==========\n\nStands in its files: stb.h.\n" in written


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
    with pytest.raises(OllamakeError, match=r"(?s)no matching distribution.*tools.llama_cpp_sdist"):
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


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("OSError(28, 'No space left on device')", "no room on the disk for .*out.gguf"),
        ("PermissionError(13, 'Permission denied', 'x')", "out.gguf cannot be opened or written"),
    ],
)
def test_what_the_machine_does_not_give_to_the_converter_is_said_once(tmp_path: Path, kind: str, said: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text(f"raise {kind}")
    with pytest.raises(OllamakeError, match=said) as refused:
        convert(converter, tmp_path, "f16", "m", tmp_path / "out.gguf")
    assert "Traceback" not in str(refused.value)
    assert "exit code" not in str(refused.value)


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
