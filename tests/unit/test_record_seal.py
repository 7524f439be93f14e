"""The last line of a record shows each flipped bit of it, and a record without that line is read as it is."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamake.atomic_write import write_json, write_plain_json, write_sealed_text
from ollamake.damage import DamagedFile
from ollamake.errors import OllamakeError
from ollamake.record_seal import Seal, read_record, read_sealed_text, seal_of, sealed_json, sealed_text

RECORD = {"b": "道路", "a": [1.5, None], "sha256": "0" * 64, "sealed": True}
TEXTS = {
    ".md": "# Title\n\nText\n",
    ".svg": "<svg></svg>\n",
    ".html": "<p>道路</p>\n",
    ".yaml": "a: 1\n",
    "": "FROM x\n",
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for value in (RECORD, {}, {"a": {}}):
        write_json(tmp_path / "a.json", value)
        assert read_record(tmp_path / "a.json") == value
        assert seal_of((tmp_path / "a.json").read_bytes(), ".json") is Seal.WHOLE
        assert set(json.loads((tmp_path / "a.json").read_text())) == {*value, "seal"}
    write_json(tmp_path / "list.json", [1, 2])
    assert read_record(tmp_path / "list.json") == [1, 2]


def test_the_seal_is_the_sha256_of_all_before_it() -> None:
    text = sealed_json({"a": 1})
    body, seal = text.split('\n  "seal": "')
    assert body == '{\n  "a": 1,'
    assert seal == hashlib.sha256(body.encode()).hexdigest() + '"\n}\n'


def test_a_seal_that_was_copied_from_another_record_is_replaced() -> None:
    copied = json.loads(sealed_json({"a": 1}))
    assert sealed_json(copied | {"b": 2}) == sealed_json({"a": 1, "b": 2})


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    content = sealed_json(RECORD).encode()
    file = tmp_path / "a.json"
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(
            DamagedFile, match=r"a\.json is damaged: .*rm -f .*a\.json && snakemake --cores 1 .*a\.json all"
        ):
            read_record(file)


@pytest.mark.parametrize("suffix", TEXTS)
def test_every_flipped_bit_of_a_text_is_found(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"text{suffix}"
    write_sealed_text(file, TEXTS[suffix])
    assert read_sealed_text(file) == TEXTS[suffix]
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        assert seal_of(bytes(flipped), suffix) is Seal.BROKEN, (bit, bytes(flipped[-90:]))


def test_a_seal_is_a_comment() -> None:
    assert sealed_text("x\n", ".svg").endswith(" -->\n")
    assert sealed_text("x\n", ".yaml").splitlines()[-1].startswith("# ")
    assert sealed_text("x\n", "").splitlines()[-1].startswith("# ")


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text()), max_size=5))
def test_no_record_of_an_earlier_version_is_taken_for_a_damaged_one(value: dict[str, object]) -> None:
    value.pop("seal", None)
    plain = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert seal_of(plain.encode("utf-8", "surrogatepass"), ".json") is Seal.NONE
    assert seal_of(sealed_json(value).encode("utf-8", "surrogatepass"), ".json") is Seal.WHOLE


def test_records_of_earlier_versions_are_read_as_they_are(tmp_path: Path) -> None:
    for last in ("sha256", "time", "source_sha256", "type", "spec"):
        write_plain_json(tmp_path / "old.json", {"a": 1, last: random.Random(last).randbytes(32).hex()})
        assert read_record(tmp_path / "old.json")["a"] == 1


def test_what_cannot_be_read_ends_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(OllamakeError, match=r"none\.json cannot be read"):
        read_record(tmp_path / "none.json")
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DamagedFile, match="it is no JSON any more"):
            read_record(tmp_path / "a.json")
