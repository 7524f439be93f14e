"""Eight registrations at once on one server, as from two machines: those of one do not see the lock of the other's."""

from __future__ import annotations

import json
from pathlib import Path

from registering import Server, Weights, assert_whole, differences, script


def test_eight_at_once(ollama_server: Server, weights: dict[str, Weights], tmp_path: Path) -> None:
    """Two are of one name and equal, the others of names of their own; what is refused succeeds when it is run again."""
    asked = {
        f"{number}": (weights[kind], "equal" if kind == "F32" else f"own-{number}")
        for number, kind in enumerate(("F32", "F32", "Q4_K_M", "Q4_K_M", "Q8_0", "Q8_0", "F16", "IQ4_NL"))
    }
    for host in ("a", "b"):
        (tmp_path / host).mkdir()
    for name in asked:
        (tmp_path / name).mkdir()
    running = {
        name: script(ollama_server.address, small, tmp_path / name, model, TMPDIR=str(tmp_path / "ab"[int(name) % 2]))
        for name, (small, model) in asked.items()
    }
    for name, process in running.items():
        _, said = process.communicate(timeout=300)
        marker_file = tmp_path / name / "registered.json"
        assert marker_file.exists() == (process.returncode == 0), said
        if process.returncode:
            assert "error: " in said
            assert "Traceback" not in said
    for name, (small, model) in asked.items():
        marker_file = tmp_path / name / "registered.json"
        if not marker_file.exists() or differences(json.loads(marker_file.read_text(encoding="utf-8"))):
            # What a marker says is looked at by every run; one that is no more so is registered again.
            again = script(ollama_server.address, small, tmp_path / name, model)
            _, said = again.communicate(timeout=120)
            assert again.returncode == 0, said
    for name in asked:
        assert_whole(ollama_server, json.loads((tmp_path / name / "registered.json").read_text(encoding="utf-8")))
