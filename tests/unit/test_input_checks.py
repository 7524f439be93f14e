"""What is checked before work starts, and the disk that a build will need."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollamake import input_checks
from ollamake.errors import OllamakeError
from ollamake.input_checks import check_inputs


def spec(base: Path, adapter: Path | None, **changes: Any) -> dict[str, Any]:
    values = {
        "base": str(base),
        "adapters": [{"path": str(adapter), "weight": 1.0}] if adapter else [],
        "made_here": [],
        "dtype": "auto",
        "quantizations": ["Q4_K_M", "Q8_0"],
        "target": "store",
        "host": None,
        "compiler_needed": False,
    }
    return values | changes


def test_what_was_found(make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base()
    found = check_inputs("m", spec(base, make_adapter(base)), tmp_path / "results")
    assert found["tensors_with_update"] == 14
    assert found["disk_free_gb"] > found["disk_needed_gb"] > 0


def test_disk_counts_what_is_still_to_be_written(
    make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(input_checks, "require_free_disk", lambda _folder, needed, _what: asked.append(needed))
    base, results = make_base(), tmp_path / "results"
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    check_inputs("m", spec(base, None), results)
    assert asked[-1] > 2 * weights
    (results / "m/gguf").mkdir(parents=True)
    (results / "m/gguf/m.unquantized.gguf").write_bytes(b"")
    (results / "m/gguf/m.Q8_0.gguf").write_bytes(b"")
    check_inputs("m", spec(base, None), results)
    assert asked[-1] < asked[-2] - weights
    (results / "m/gguf/m.Q4_K_M.gguf").write_bytes(b"")
    check_inputs("m", spec(base, None), results)
    assert asked[-1] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compiler_needed": True}, "no C compiler found"),
        ({"target": "server", "host": "127.0.0.1:1"}, "no Ollama server answers"),
    ],
)
def test_the_surroundings_are_checked_before_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(OllamakeError, match=words):
        check_inputs("m", spec(tmp_path / "nowhere", None, **changes), tmp_path)


def test_what_a_rule_makes_is_not_looked_for(tmp_path: Path) -> None:
    made = str(tmp_path / "not there yet")
    assert (
        check_inputs("m", spec(tmp_path / "not there yet", None, made_here=[made]), tmp_path)["tensors_with_update"]
        is None
    )


def test_a_specification_by_hand_that_lacks_a_key() -> None:
    with pytest.raises(OllamakeError, match="--spec lacks host, target"):
        input_checks.refuse_unknown({key: None for key in spec(Path("b"), None) if key not in ("host", "target")})
