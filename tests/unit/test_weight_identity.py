"""Touched weights keep their identity, changed ones do not, whatever direction their time moved in."""

import json
import os
from pathlib import Path

import pytest

from ollamake import weight_identity
from ollamake.file_digest import sha256_of
from ollamake.weight_identity import header_digest, identity_of, seen_files


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 100)
    return path


def record_of(path: Path, identity: str) -> Path:
    status = path.stat()
    entry = {
        "path": str(path),
        "identity": identity,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": sha256_of(path),
    }
    record = path.with_suffix(".json")
    record.write_text(json.dumps({"base": entry, "adapters": [], "others": []}))
    return record


def move_time(path: Path, seconds: int) -> None:
    now = path.stat().st_mtime_ns + seconds * 10**9
    os.utime(path, ns=(now, now))


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_touched_keeps_identity(weights: Path, seconds: int) -> None:
    identity = identity_of(weights, {})
    seen = seen_files([record_of(weights, identity)])
    assert identity_of(weights, seen) == identity
    move_time(weights, seconds)
    assert identity_of(weights, {}) != identity
    assert identity_of(weights, seen) == identity


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_replaced_changes_identity_even_when_older(weights: Path, seconds: int) -> None:
    identity = identity_of(weights, {})
    seen = seen_files([record_of(weights, identity)])
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    move_time(weights, seconds)
    assert identity_of(weights, seen) != identity


def test_identity_of_a_merge_after_a_touch_stays_that_of_the_first_sight(weights: Path) -> None:
    first = identity_of(weights, {})
    move_time(weights, 5)
    # The merge ran again for another reason: its record has the new time but the identity it was planned with.
    seen = seen_files([record_of(weights, first)])
    assert identity_of(weights, seen) == first


def test_large_touched_file_counts_as_changed(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = identity_of(weights, {})
    seen = seen_files([record_of(weights, identity)])
    monkeypatch.setattr(weight_identity, "HASHED_AT_MOST", 10)
    move_time(weights, 5)
    assert identity_of(weights, seen) != identity


def test_unreadable_records_count_as_absent(tmp_path: Path) -> None:
    for name, text in {"a": "{", "b": "[]", "c": '{"base": 1, "adapters": {}}', "d": '{"base": null}'}.items():
        (tmp_path / name).write_text(text)
    assert seen_files(tmp_path / name for name in ("a", "b", "c", "d", "not there")) == {}


def test_header_digest_ignores_data_and_survives_anything(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    other.write_bytes(len(header).to_bytes(8, "little") + header + b"5678")
    assert header_digest(one) == header_digest(other)
    for content in (b"", b"abc", b"\xff" * 8, b"\xff" * 100):
        path = tmp_path / f"bad{len(content)}"
        path.write_bytes(content)
        assert len(header_digest(path)) == 64
