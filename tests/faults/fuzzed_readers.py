"""Readers of strangers' files, what may be done to the files, and what a reader must do with each: take or refuse it, and soon.

    python tests/faults/fuzzed_readers.py --reader gguf --seconds 600

runs one of them that long, in a process that may use 1 GiB more than it has at its start, and says how many examples it saw.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzzed_models import adapters, bases, check_adapter, check_base
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from strange_values import NUMBERS, VALUES, changed

from ollamake.errors import OllamakeError
from ollamake.gguf_header import read_gguf_header
from ollamake.gguf_record import gguf_record
from ollamake.gguf_tokenizer import KEYS, tokenizer_facts
from ollamake.gguf_vocabulary import read_vocabulary
from ollamake.importance_file import read_importance
from ollamake.nonfinite_weights import nonfinite_tensors
from ollamake.safetensors_header import BITS, read_header

MOST_SECONDS = 5.0
"""Of computing, for a file of a few kB."""
MOST_MORE_BYTES = 1 << 30
_LONGEST_MESSAGE = 5_000
"""Characters: names of four thousand are allowed."""


@dataclass(frozen=True)
class Reader:
    """``files``: what it is given. ``check``: fails if the reader, given that in an empty folder, does what it must not."""

    files: SearchStrategy[bytes]
    check: Callable[[bytes, Path], str]
    """Returns what became of the file, which is counted."""


# safetensors.


def _framed(header: bytes, data: int, length: int | None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(data)


def _safetensors() -> SearchStrategy[bytes]:
    arrays = {"a.weight": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16), "c": np.ones((0, 4), np.int64)}
    original = save(arrays, metadata={"format": "pt"})
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*BITS, "F33", "f32"]) | VALUES,
            "shape": st.lists(st.integers(0, 4) | st.sampled_from(NUMBERS), max_size=4) | VALUES,
            "data_offsets": st.lists(st.integers(0, 64) | st.sampled_from(NUMBERS), min_size=2, max_size=2) | VALUES,
        }
    )
    good = st.lists(st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 4), max_size=3)), max_size=4).map(
        _in_order
    )
    table = st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), entry | VALUES, max_size=4) | good | VALUES
    header = table.map(lambda value: json.dumps(value).encode("utf-8"))
    header = header | st.builds(lambda one, pad: one + pad, header, st.sampled_from([b" ", b"\n", b"\0", b"x"]))
    length = st.none() | st.sampled_from(NUMBERS)
    framed = st.builds(_framed, header, st.integers(0, 300), st.none() | length)
    fitting = good.flatmap(lambda value: st.just(_framed(json.dumps(value).encode(), _end_of(value), None)))
    return st.one_of(changed(original), framed, fitting, st.binary(max_size=60))


def _in_order(tensors: list[tuple[str, list[int]]]) -> dict[str, Any]:
    table, begin = {}, 0
    for number, (dtype, shape) in enumerate(tensors):
        end = begin + int(np.prod(shape, dtype=int)) * BITS[dtype] // 8
        table[str(number)] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return table


def _end_of(table: dict[str, Any]) -> int:
    return max((entry["data_offsets"][1] for entry in table.values()), default=0)


def check_safetensors(content: bytes, folder: Path) -> str:
    """What the safetensors library refuses is refused; what both take is the same to both."""
    path = folder / "model.safetensors"
    path.write_bytes(content)
    try:
        found = {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in read_header(path).tensors}
    except OllamakeError as error:
        _require_message(error, path)
        found = None
    refused = None
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            theirs = {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        refused = str(error)
    if refused is not None:
        assert found is None, f"the safetensors library refuses it: {refused}"
        return "refused by both"
    if found is None:
        return "refused here only"
    assert found == theirs
    return "taken"


# GGUF.


@cache
def small_gguf(kind: str = "model") -> bytes:
    """Return a GGUF with metadata of every type: a "model", or an "imatrix"."""
    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder) / "x.gguf", "qwen2")
        if kind == "imatrix":
            writer.add_type("imatrix")
            writer.add_uint32("imatrix.chunk_count", 2)
            writer.add_uint32("imatrix.chunk_size", 512)
            writer.add_tensor("blk.0.ffn_up.weight.in_sum2", np.ones((1, 32), np.float32))
            writer.add_tensor("blk.0.ffn_up.weight.counts", np.ones((1, 1), np.float32))
        else:
            writer.add_uint32("qwen2.block_count", 1)
            writer.add_file_type(1)
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("qwen2")
            writer.add_token_list(["a", "b", "<|im_end|>"])
            writer.add_token_types([1, 1, 3])
            writer.add_eos_token_id(2)
            writer.add_add_bos_token(False)
            writer.add_chat_template("{{ messages }}")
            writer.add_float64("x.f64", 1.5)
            writer.add_array("x.floats", [1.0, 2.0])
            writer.add_int8("x.i8", -1)
            writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
            writer.add_tensor("output_norm.weight", np.ones(32, np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(folder) / "x.gguf").read_bytes()


def _text(value: str) -> bytes:
    data = value.encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _gguf_of(
    counts: tuple[int | None, int | None],
    pairs: list[tuple[str, bytes]],
    tensors: list[tuple[str, list[int], int, int]],
    data: int,
) -> bytes:
    said = [len(one) if count is None else count for count, one in zip(counts, (tensors, pairs), strict=True)]
    content = b"GGUF" + struct.pack("<IQQ", 3, *said)
    content += b"".join(_text(key) + value for key, value in pairs)
    for name, shape, kind, offset in tensors:
        content += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return content + bytes(-len(content) % 32) + bytes(data)


def _gguf(kind: str) -> SearchStrategy[bytes]:
    number = st.sampled_from(NUMBERS)
    small = st.integers(0, 4) | st.integers(0, 40) | number
    scalar = st.one_of(
        st.builds(lambda n: struct.pack("<IQ", GGUFValueType.UINT64, n), number),
        st.builds(lambda n: struct.pack("<II", GGUFValueType.UINT32, n & 0xFFFFFFFF), small),
        st.builds(lambda text: struct.pack("<I", GGUFValueType.STRING) + _text(text), st.text(max_size=8)),
        st.builds(lambda b: struct.pack("<IB", GGUFValueType.BOOL, b), st.integers(0, 255)),
        st.binary(max_size=16),
    )
    array = st.builds(
        lambda inner, count, body: struct.pack("<IIQ", GGUFValueType.ARRAY, inner, count) + body,
        st.integers(0, 13),
        small,
        st.binary(max_size=40)
        | st.lists(st.text(max_size=3), max_size=5).map(lambda texts: b"".join(map(_text, texts))),
    )
    key = st.sampled_from(
        [*KEYS, "general.architecture", "general.alignment", "general.file_type", "qwen2.block_count"]
    )
    pairs = st.lists(st.tuples(key | st.text(max_size=5), scalar | array), max_size=5)
    tensors = st.lists(
        st.tuples(st.sampled_from(["a", "b", "a.in_sum2"]), st.lists(small, max_size=5), st.integers(0, 45), small),
        max_size=4,
    )
    count = st.none() | st.none() | number
    built = st.builds(_gguf_of, st.tuples(count, count), pairs, tensors, st.integers(0, 600))
    return st.one_of(changed(small_gguf(kind)), built, st.binary(max_size=80).map(lambda data: b"GGUF\3\0\0\0" + data))


def check_gguf(content: bytes, folder: Path) -> str:
    """What the gguf package refuses is refused; what both take is the same to both. Its facts are facts, or refused."""
    path = folder / "model.gguf"
    path.write_bytes(content)
    for work in (lambda: gguf_record(path, "x", "F16"), lambda: read_vocabulary(path)):
        try:
            json.dumps(work(), default=str)
        except OllamakeError as error:
            _require_message(error, path)
    with contextlib.suppress(ValueError):
        nonfinite_tensors(path)
    try:
        header = read_gguf_header(path, KEYS)
    except ValueError as error:
        _require_message(error)
        return "refused"
    with contextlib.suppress(ValueError):
        tokenizer_facts(header.values)
    if any(
        tensor.kind not in GGML_QUANT_SIZES for tensor in header.tensors
    ):  # which the package refuses, llama.cpp does not
        return "taken, of a type that is new"
    with np.errstate(all="ignore"):  # what it computes offsets with
        theirs = GGUFReader(path)  # an exception of its says what should have been refused
    assert [(t.name, int(t.n_elements), int(t.data_offset)) for t in theirs.tensors] == [
        (t.name, t.elements, t.begin) for t in header.tensors
    ]
    return "taken"


def check_importance(content: bytes, folder: Path) -> str:
    """An importance matrix is read or refused."""
    path = folder / "imatrix.gguf"
    path.write_bytes(content)
    try:
        read_importance(path)
    except OllamakeError as error:
        _require_message(error, path)
        return "refused"
    return "taken"


def _require_message(error: Exception, path: Path | None = None) -> None:
    assert path is None or str(path) in str(error)
    assert len(str(error)) < _LONGEST_MESSAGE, str(error)[:500]


READERS: dict[str, Callable[[], Reader]] = {
    "safetensors": lambda: Reader(_safetensors(), check_safetensors),
    "gguf": lambda: Reader(_gguf("model"), check_gguf),
    "imatrix": lambda: Reader(_gguf("imatrix"), check_importance),
    "adapter": lambda: Reader(adapters(), check_adapter),
    "base": lambda: Reader(bases(), check_base),
}


def fuzz(name: str, examples: int, number: int | None = None) -> Counter[str]:
    """Give a reader so many files, always the same ones without a ``number``; return how often what became of them."""
    reader = READERS[name]()
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=number is None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(content=reader.files)
    def example(content: bytes) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
            began = time.process_time()
            outcomes[reader.check(content, Path(folder))] += 1
            assert time.process_time() - began < MOST_SECONDS

    (seed(number)(example) if number is not None else example)()
    return outcomes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=READERS, required=True, help="what is read")
    parser.add_argument("--seconds", type=float, default=600, help="how long")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    import transformers.core_model_loading  # noqa: F401 - a plan asks for it, and no library can be loaded half

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MOST_MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    outcomes: Counter[str] = Counter()
    end_at, number = time.monotonic() + args.seconds, args.seed
    while time.monotonic() < end_at:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of progress
            outcomes += fuzz(args.reader, 1000, number)
        number += 1
    said = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
    sys.stdout.write(f"{args.reader}: {outcomes.total():,} files in {args.seconds:.0f} s: {said}\n")


if __name__ == "__main__":
    main()
