"""Headers of strangers' files are read or refused, soon and in bounded memory; what their own libraries refuse, is refused."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import fuzzed_readers
import pytest
from gguf import GGUFReader, GGUFValueType
from safetensors import SafetensorError, safe_open

from ollamake.errors import OllamakeError
from ollamake.gguf_header import read_gguf_header
from ollamake.gguf_record import gguf_record
from ollamake.importance_file import read_importance
from ollamake.safetensors_header import read_header


@pytest.mark.parametrize("reader", fuzzed_readers.READERS)
def test_a_few_hundred_files(reader: str) -> None:
    """The same ones each time; tests/faults/test_fuzz.py goes on for ten minutes, with others."""
    outcomes = fuzzed_readers.fuzz(reader, 60 if reader in ("adapter", "base") else 300)
    assert outcomes.total() >= 60
    assert any(outcome.startswith("refused") for outcome in outcomes)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


SAFETENSORS: dict[str, tuple[object, int, bool]] = {
    # What stands in the header, bytes of data, and whether the library takes it, which is no reason to.
    "100 GB of header": (100 * 10**9, 0, False),
    "longer than the file": (1000, 0, False),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, False),
    "gap": ({"a": entry(), "b": entry(offsets=[12, 20])}, 20, False),
    "shape that overflows": ({"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}, 0, False),
    "shape that overflows to its size": ({"a": entry("U8", [2**32, 2**32], [0, 0])}, 0, False),
    "size beyond any": ({"a": entry("U8", [2**64], [0, 2**64])}, 0, False),
    "half a byte": ({"a": entry("F4", [3], [0, 1])}, 1, False),
    "a name for a dtype list": ({"a": entry([])}, 8, False),
    "shape, an object": ({"a": entry(shape={}, offsets=[0, 4])}, 4, False),
    "shape, a text": ({"a": entry(shape="", offsets=[0, 4])}, 4, False),
    "shape of fractions": ({"a": entry(shape=[2.0])}, 8, False),
    "shape of yes": ({"a": entry(shape=[True], offsets=[0, 4])}, 4, False),
    "offsets, an object": ({"a": entry(offsets={"0": 0, "8": 8})}, 8, False),
    "metadata, a list": ({"__metadata__": [], "a": entry()}, 8, False),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": entry()}, 8, False),
    "white space before": (b'\n{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1, True),
    "not UTF-8": (b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1, False),
    "half a character": (b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1, False),
    "NaN": (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', 1, False),
    "endless number": (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', 1, False),
    "no bottom": (b"[" * 100_000, 0, False),
    "no bottom in an entry": (b'{"a":' * 100_000, 0, False),
    "no object": ([], 0, False),
    "an entry of one": ({"a": [1]}, 0, False),
    "two keys alike": (b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", 8, True),
    "a hundred dimensions": ({"a": entry(shape=[1] * 100, offsets=[0, 4])}, 4, True),
    "a name of a book": ({"a" * 5000: entry()}, 8, True),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors(tmp_path: Path, case: str) -> None:
    header, size, library_takes = SAFETENSORS[case]
    path = tmp_path / "model.safetensors"
    if isinstance(header, int):
        path.write_bytes(header.to_bytes(8, "little") + b"{}")
    else:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(OllamakeError, match=r"model\.safetensors is truncated or damaged") as found:
        read_header(path)
    assert len(str(found.value)) < 1000
    assert str(found.value).isprintable()
    if not library_takes:
        with pytest.raises((SafetensorError, OSError)):
            safe_open(path, "numpy").__enter__()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return fuzzed_readers._text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return fuzzed_readers._text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(tensors: bytes = b"", pairs: bytes = b"", counts: tuple[int, int] = (0, 0), data: int = 64) -> bytes:
    content = b"GGUF" + struct.pack("<IQQ", 3, *counts) + pairs + tensors
    return content + bytes(-len(content) % 32 + data)


V = GGUFValueType
GGUFS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty file"),
    "another format": (b"PK\3\4" + bytes(60), "begins with"),
    "the other end first": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version"),
    "2^63 pairs": (gguf(counts=(0, 2**63)), "Unknown|ends within|twice|not a valid"),
    "2^63 tensors": (gguf(counts=(2**63, 0)), "ends within|twice|has 0 dimensions"),
    "text of 2^63": (gguf(pairs=struct.pack("<Q", 2**63), counts=(0, 1)), "ends within"),
    "list of 2^63 numbers": (gguf(pairs=pair("a", V.ARRAY, array(V.UINT8, 2**63)), counts=(0, 1)), "ends within"),
    "list of 2^61 doubles": (gguf(pairs=pair("a", V.ARRAY, array(V.FLOAT64, 2**61)), counts=(0, 1)), "ends within"),
    "list of 2^63 texts": (gguf(pairs=pair("a", V.ARRAY, array(V.STRING, 2**63)), counts=(0, 1)), "ends within"),
    "lists without bottom": (gguf(pairs=pair("a", V.ARRAY, array(V.ARRAY, 1) * 100_000), counts=(0, 1)), "list of lists"),
    "no such type": (gguf(pairs=pair("a", 99, b""), counts=(0, 1)), "99 is not a valid"),
    "alignment 0": (gguf(pairs=pair("general.alignment", V.UINT32, bytes(4)), counts=(0, 1)), "alignment is 0"),
    "alignment 33": (gguf(pairs=pair("general.alignment", V.UINT32, b"\x21\0\0\0"), counts=(0, 1)), "alignment is 33"),
    "alignment, a text": (gguf(pairs=pair("general.alignment", V.STRING, fuzzed_readers._text("a")), counts=(0, 1)), "is a"),
    "alignment, a list": (gguf(pairs=pair("general.alignment", V.ARRAY, array(V.UINT8, 1, b"\1")), counts=(0, 1)), "is .1."),
    "a key twice": (gguf(pairs=pair("a", V.UINT8, b"\1") * 2, counts=(0, 2)), "key 'a' stands there twice"),
    "a tensor twice": (gguf(tensor("a", [4]) + tensor("a", [4], offset=32), counts=(2, 0)), "tensor 'a' stands there twice"),
    "tensors that overlap": (gguf(tensor("a", [16]) + tensor("b", [16], offset=32), counts=(2, 0), data=96), "another tensor"),
    "a tensor outside": (gguf(tensor("a", [16], offset=2**40), counts=(1, 0)), "it ends after"),
    "a tensor beyond 2^64": (gguf(tensor("a", [16], offset=2**64 - 1), counts=(1, 0)), "it ends after"),
    "a tensor too large": (gguf(tensor("a", [2**20]), counts=(1, 0)), "it ends after"),
    "sizes that overflow": (gguf(tensor("a", [2**32, 2**32, 0]), counts=(1, 0)), "cannot be a tensor"),
    "rows of half a block": (gguf(tensor("a", [33], 8), counts=(1, 0)), "cannot be a tensor"),
    "nothing, of many rows": (gguf(tensor("a", [0, 2**62]), counts=(1, 0)), "cannot be a tensor"),
    "no dimension": (gguf(tensor("a", [], 30), counts=(1, 0)), "has 0 dimensions"),  # found by the ten minutes
    "five dimensions": (gguf(tensor("a", [1] * 5), counts=(1, 0)), "has 5 dimensions"),
    "2^32 dimensions": (gguf(fuzzed_readers._text("a") + b"\xff" * 4 + b"\xff" * 8000, counts=(1, 0)), "has 4294967295 dim"),
    "a name that is no text": (gguf(struct.pack("<Q", 1) + b"\xff" + tensor("", [4])[8:], counts=(1, 0)), "codec can't decode"),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUFS)
def test_gguf(tmp_path: Path, case: str) -> None:
    content, said = GGUFS[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as found:
        read_gguf_header(path, ("general.architecture",))
    assert len(str(found.value)) < 1000
    with pytest.raises(OllamakeError, match=r"model\.gguf is not a whole GGUF"):
        gguf_record(path, "m", "F16")
    with pytest.raises(OllamakeError, match=r"model\.gguf: expected an importance matrix"):
        read_importance(path)


def test_a_gguf_of_the_package_is_read_as_it_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(fuzzed_readers.small_gguf())
    assert len(read_gguf_header(path, ()).tensors) == len(GGUFReader(path).tensors) == 2


BOUNDED = """
import resource, sys
from pathlib import Path
from ollamake.errors import OllamakeError
from ollamake.gguf_header import read_gguf_header
from ollamake.safetensors_header import read_header
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 600 * 2**20,) * 2)
for path in map(Path, sys.argv[1:]):
    try:
        read_gguf_header(path, ("a",)) if path.suffix == ".gguf" else read_header(path)
    except (OllamakeError, ValueError) as error:
        print(path.name, str(error)[:100])
"""


def test_large_files_are_refused_in_little_memory(tmp_path: Path) -> None:
    """Holes of many GB, of which a count or a length speaks as if they were there."""
    heads = {
        "numbers.gguf": gguf(pairs=pair("b", V.ARRAY, array(V.UINT8, 40 * 2**30)), counts=(0, 1)),
        "asked.gguf": gguf(pairs=pair("a", V.ARRAY, array(V.UINT8, 40 * 2**30)), counts=(0, 1)),
        "text.gguf": gguf(pairs=struct.pack("<Q", 40 * 2**30), counts=(0, 1)),
        "header.safetensors": (40 * 2**30).to_bytes(8, "little") + b"{",
    }
    for name, head in heads.items():
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(50 * 2**30)
    command = [sys.executable, "-c", BOUNDED, *(str(tmp_path / name) for name in heads)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split()[0] for line in said] == list(heads)
    assert all("its header has no end" in line for line in said[:3])
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
