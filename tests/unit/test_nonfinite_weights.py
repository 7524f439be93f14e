"""NaN and infinity in the tensors of a GGUF, whatever their type, and its header and vocabulary."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize
from stand_in.tiny_gguf import VOCABULARY, write_gguf

from ollamake import nonfinite_weights
from ollamake.errors import OllamakeError
from ollamake.gguf_header import StoredTensor, read_gguf_header
from ollamake.gguf_vocabulary import Vocabulary, difference, read_vocabulary
from ollamake.nonfinite_weights import NonFiniteTensor, nonfinite_tensors

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1")


def write_tensors(path: Path, kind: str, faults: dict[str, list[float]]) -> Path:
    """Write tensors a, b, c and d of 8 x 64 elements; ``faults``: tensor -> values for the beginnings of its last rows.

    In a block type it is the scale of the row's first block that becomes that value.
    """
    quantization = GGMLQuantizationType[kind]
    writer = GGUFWriter(path, "llama")
    for number, name in enumerate("abcd"):
        values = np.random.default_rng(number).normal(size=(8, 64)).astype(np.float32)
        data = quantize(values, quantization) if kind != "F16" else values.astype(np.float16)
        for row, value in enumerate(faults.get(name, []), start=8 - len(faults.get(name, []))):
            if kind in ("F32", "F16"):
                data[row, 0] = value
            elif kind == "BF16":
                data[row].view(np.uint16)[0] = np.array([value], np.float32).view(np.uint32)[0] >> 16
            else:
                data[row].view(np.uint8)[:2] = np.array([value], np.float16).view(np.uint8)
        writer.add_tensor(name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("elements", [64, 4 << 20], ids=["block by block", "whole tensors"])
def test_they_are_found_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, elements: int) -> None:
    monkeypatch.setattr(nonfinite_weights, "_ELEMENTS", elements)
    path = write_tensors(tmp_path / "m.gguf", kind, {"b": [np.nan], "d": [np.inf, -np.inf]})
    found, unknown = nonfinite_tensors(path)
    assert unknown == []
    assert [tensor.name for tensor in found] == ["b", "d"]
    # A scale is that of 32 elements, and NaN where an infinite one is multiplied with 0.
    per_fault = 1 if kind in ("F32", "F16", "BF16") else 32
    assert found[0] == NonFiniteTensor("b", 512, per_fault, 0)
    assert found[1].nan + found[1].infinite == 2 * per_fault
    assert found[1].infinite > 0
    assert str(found[0]) == f"b ({per_fault} NaN and 0 infinite of 512)"


@pytest.mark.parametrize("kind", TYPES)
def test_finite_weights(tmp_path: Path, kind: str) -> None:
    assert nonfinite_tensors(write_tensors(tmp_path / "m.gguf", kind, {})) == ([], [])


def test_it_ends_at_the_number_wanted(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "m.gguf", "F16", {name: [np.nan] for name in "abcd"})
    assert [tensor.name for tensor in nonfinite_tensors(path)[0]] == ["a", "b", "c"]
    assert [tensor.name for tensor in nonfinite_tensors(path, most=1)[0]] == ["a"]


def test_a_type_that_is_not_known_is_said_to_be_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    path = write_tensors(tmp_path / "m.gguf", "F16", {})
    monkeypatch.setattr(nonfinite_weights, "dequantize", refuse)
    assert nonfinite_tensors(path) == ([], ["a", "b", "c", "d"])


def write_blocks(path: Path, kind: int, elements: int, blocks: np.ndarray) -> Path:
    """Write a tensor b of 4 rows, one block each, of a type that GGUFWriter need not know."""
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("a", np.ones((2, 32), np.float32))
    writer.add_tensor("b", blocks, raw_dtype=GGMLQuantizationType.Q1_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    entry = struct.pack("<IQQI", 2, 128, 4, GGMLQuantizationType.Q1_0)
    content = path.read_bytes()
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, struct.pack("<IQQI", 2, elements, 4, kind)))
    return path


@pytest.mark.parametrize(("kind", "elements", "zeros"), [(41, 128, False), (42, 64, True)], ids=["Q1_0", "Q2_0"])
def test_types_that_the_gguf_package_does_not_dequantize(tmp_path: Path, kind: int, elements: int, zeros: bool) -> None:
    """An infinite scale makes NaN of what is 0 with it: in Q2_0 a quarter of these blocks' elements, 1 of 0 to 3."""
    blocks = np.full((4, 18), 0b11_10_01_00, np.uint8)
    scales = np.array([0.5, np.nan, -np.inf, -2], np.float16)
    blocks[:, :2] = scales.view(np.uint8).reshape(4, 2)
    nan = elements + (elements // 4 if zeros else 0)
    path = write_blocks(tmp_path / "m.gguf", kind, elements, blocks)
    assert nonfinite_tensors(path) == ([NonFiniteTensor("b", 4 * elements, nan, 2 * elements - nan)], [])
    values = nonfinite_weights._values(blocks.ravel(), kind).reshape(4, elements)
    # Bits from the lowest: 00, 01, 10, 11, again and again; ggml-common.h says what they mean.
    once = [-1, 0, 1, 2] if zeros else [-1, -1, 1, -1, -1, 1, 1, 1]
    for row, scale in ((0, 0.5), (3, -2.0)):
        assert values[row].tolist() == [scale * one for one in once] * (elements // len(once))


def test_a_type_of_a_number_that_nobody_knows(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "m.gguf", 99, 128, np.zeros((4, 18), np.uint8))
    assert nonfinite_tensors(path) == ([], ["b"])
    (tensor,) = [tensor for tensor in read_gguf_header(path, ()).tensors if tensor.name == "b"]
    assert (tensor.kind, tensor.elements) == (99, 512)
    with pytest.raises(ValueError, match="b has a type with the number 99"):
        _ = tensor.size


@pytest.mark.parametrize("alignment", [None, 256])
def test_the_header_is_what_the_gguf_package_reads(tmp_path: Path, alignment: int | None) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    if alignment is not None:
        writer = GGUFWriter(path, "llama")
        writer.add_custom_alignment(alignment)
        writer.add_string("general.name", "道路")
        writer.add_array("nested", ["a", "b"])
        for name in "ab":
            writer.add_tensor(name, np.ones((3, 5), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    reader = GGUFReader(path)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    header = read_gguf_header(path, keys)
    assert header.values == {key: reader.fields[key].contents() for key in keys}
    assert header.tensors == [
        StoredTensor(one.name, int(one.tensor_type), int(one.n_elements), int(one.data_offset))
        for one in reader.tensors
    ]
    assert [tensor.size for tensor in header.tensors] == [int(one.n_bytes) for one in reader.tensors]
    assert read_gguf_header(path, ()).values == {}


@pytest.mark.parametrize("end", [0, 3, 20, 100, -1])
def test_a_header_that_is_cut(tmp_path: Path, end: int) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    reader = GGUFReader(path)
    table = reader.data_offset - 32
    path.write_bytes(path.read_bytes()[: end if end >= 0 else table + end])
    with pytest.raises(ValueError, match=r"it ends within its header|it begins with|empty file"):
        read_gguf_header(path, ())


def test_vocabulary(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(write_gguf(tmp_path / "m.gguf"))
    assert vocabulary.tokens == VOCABULARY
    assert vocabulary.types is not None
    assert vocabulary.types[-3:] == [1, 3, 3]
    assert vocabulary.adds_eos is False
    assert difference(vocabulary, vocabulary) is None
    with pytest.raises(OllamakeError, match="no vocabulary"):
        read_vocabulary(write_tensors(tmp_path / "t.gguf", "F16", {}))
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:100])
    with pytest.raises(OllamakeError, match=r"cut\.gguf cannot be read"):
        read_vocabulary(tmp_path / "cut.gguf")
    assert len(GGUFReader(tmp_path / "m.gguf").tensors) > 0


@pytest.mark.parametrize(
    ("tokens", "types", "expected"),
    [
        (["a", "b", "<x>"], [1, 1, 3], None),
        (["a", "b", "<y>"], [1, 1, 3], None),  # a fine-tune may rename a special token
        (["a", "b", "<y>"], [1, 1, 1], r"1 tokens .* first of them 2: '<x>' and '<y>'"),
        (["a", "c", "<x>"], None, r"1 tokens .* first of them 1: 'b' and 'c'"),
        (["a", "b"], [1, 1], "3 and 2 tokens"),
    ],
)
def test_vocabularies_that_cannot_be_compared(tokens: list[str], types: list[int] | None, expected: str | None) -> None:
    said = difference(Vocabulary(["a", "b", "<x>"], [1, 1, 3], False), Vocabulary(tokens, types, False))
    if expected is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(expected, said)
