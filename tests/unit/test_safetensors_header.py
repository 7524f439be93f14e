"""Headers are read as safetensors writes them; whatever else comes along is one clear refusal."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from ollamake.errors import OllamakeError
from ollamake.safetensors_header import header_bytes, read_header, tensor_bytes


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    arrays = {"b": np.zeros((2, 3), np.float32), "a": np.zeros(5, np.float16), "e": np.zeros((0, 4), np.int64)}
    path = tmp_path / "file.safetensors"
    save_file(arrays, path, metadata={"format": "pt"})
    header = read_header(path)
    assert {t.name: (t.dtype, t.shape) for t in header.tensors} == {
        "a": ("F16", (5,)),
        "b": ("F32", (2, 3)),
        "e": ("I64", (0, 4)),
    }
    with safe_open(path, "numpy") as reference:
        assert set(reference.keys()) == {t.name for t in header.tensors}


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    tensors = [("道路", "BF16", (3, 2)), ("x", "F32", ()), ("e", "F16", (0,))]
    path = tmp_path / "file.safetensors"
    path.write_bytes(header_bytes(tensors) + bytes(sum(tensor_bytes(dtype, shape) for _, dtype, shape in tensors)))
    assert [(t.name, t.dtype, t.shape) for t in read_header(path).tensors if t.size] == tensors[:2]
    with safe_open(path, "pt") as reference:
        assert reference.metadata() == {"format": "pt"}
        assert set(reference.keys()) == {"道路", "x", "e"}


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


BAD: dict[str, tuple[Any, int]] = {
    "two keys alike": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', 1),
    "hole": ({"a": entry(), "b": entry(data_offsets=[12, 20])}, 20),
    "overlap": ({"a": entry(), "b": entry(data_offsets=[4, 12])}, 12),
    "data missing": ({"a": entry()}, 4),
    "data left over": ({"a": entry()}, 9),
    "wrong size": ({"a": entry(shape=[3])}, 8),
    "negative": ({"a": entry(shape=[-2], data_offsets=[8, 0])}, 8),
    "dtype": ({"a": entry(dtype="F33")}, 8),
    "no shape": ({"a": {"dtype": "F32"}}, 8),
    "shape of texts": ({"a": entry(shape=["2"])}, 8),
    "list": ([], 0),
    "not JSON": ("{", 0),
    "deep": ("[" * 100_000, 0),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged(tmp_path: Path, case: str) -> None:
    header, size = BAD[case]
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(OllamakeError, match=r"file\.safetensors is truncated or damaged"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8, (10**12).to_bytes(8, "little") + b"{}"])
def test_no_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(OllamakeError, match="truncated or damaged"):
        read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    header=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: st.dictionaries(st.text(max_size=12), inner, max_size=3) | st.lists(inner, max_size=3),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    data=st.binary(max_size=20),
)
def test_anything_is_read_or_refused(tmp_path: Path, header: bytes, data: bytes) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    with contextlib.suppress(OllamakeError):
        read_header(path)
