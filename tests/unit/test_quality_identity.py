"""What was measured differently is not compared."""

import json
from pathlib import Path
from typing import Any

import pytest

import gather_quality
from ollamake.errors import OllamakeError
from ollamake.quality_identity import gathered


def record(measured: str, **changes: Any) -> dict[str, Any]:
    shared = {"reference_sha256": "r", "text_sha256": "t", "context": 512, "chunks": 100}
    return shared | {"measured": measured, "gguf_sha256": f"of {measured}"} | changes


def test_what_is_shared_and_what_was_measured(tmp_path: Path) -> None:
    files = []
    for name in ("base", "Q4_K_M"):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(record(name)), encoding="utf-8")
    gather_quality.main(["--measured", *map(str, files), "--output", str(tmp_path / "measured.json")])
    assert json.loads((tmp_path / "measured.json").read_text(encoding="utf-8")) == {
        "reference_sha256": "r",
        "text_sha256": "t",
        "context": 512,
        "chunks": 100,
        "measured": {"base": "of base", "Q4_K_M": "of Q4_K_M"},
    }


@pytest.mark.parametrize("key", ["reference_sha256", "text_sha256", "context", "chunks"])
def test_measured_differently(key: str) -> None:
    records = {"a.json": record("Q4_K_M"), "b.json": record("Q8_0", **{key: "other"})}
    with pytest.raises(OllamakeError, match=rf"^b\.json was measured with another .* than a\.json \({key} other, not "):
        gathered(records)
