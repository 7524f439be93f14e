"""The peak of a build's disk, by the figures of a 32B model and by files that are really written and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollamake.disk_peak import TOOLS_BYTES, DiskPeak, disk_peak
from ollamake.job_needs import quantized_bytes, shard_bytes, unquantized_bytes

PARAMETERS = 32_763_876_352


def plan_of(elements: int, shards: int) -> dict[str, Any]:
    columns = elements // shards
    return {
        "shards": [
            {
                "file": f"model-{number:05d}-of-{shards:05d}.safetensors",
                "tensors": [{"name": f"t{number}", "shape": [1, columns], "stored": "F16", "edits": []}],
            }
            for number in range(1, shards + 1)
        ]
    }


BIG = plan_of(PARAMETERS, 17)


def peak_of(
    folder: Path, *kinds: str, plan: dict[str, Any] = BIG, registration: str = "shared", **how: bool
) -> DiskPeak:
    keep = {"keep_merged": False, "keep_unquantized": False} | how
    return disk_peak(plan, "m", folder, kinds, registration, **keep)


def test_a_32b_with_temporary_files_has_its_peak_at_the_conversion(tmp_path: Path) -> None:
    found = peak_of(tmp_path, "Q4_K_M")
    assert found.step == "converting to GGUF"
    assert found.needed / 1e9 == pytest.approx(131.1, abs=0.1)
    assert found.stays / 1e9 == pytest.approx(19.9, abs=0.1)


def test_a_32b_that_keeps_everything(tmp_path: Path) -> None:
    found = peak_of(tmp_path, "Q4_K_M", "Q8_0", keep_merged=True, keep_unquantized=True)
    assert found.step == "quantizing to Q8_0"
    assert found.needed == found.stays
    assert found.needed / 1e9 == pytest.approx(2 * 65.53 + 19.85 + 34.82, rel=0.002)


def test_many_quantizations_beside_the_unquantized_file(tmp_path: Path) -> None:
    found = peak_of(tmp_path, "Q8_0", "Q6_K", "Q5_K_M")
    assert found.step == "quantizing to Q5_K_M"
    assert found.needed / 1e9 == pytest.approx(65.53 + 34.82 + 26.88 + 23.25, rel=0.002)


@pytest.mark.parametrize("keep_merged", [True, False])
@pytest.mark.parametrize("keep_unquantized", [True, False])
@pytest.mark.parametrize("kinds", [("Q4_K_M",), ("Q8_0", "Q6_K", "F16")])
def test_the_peak_is_that_of_files_on_a_disk(
    tmp_path: Path, kinds: tuple[str, ...], keep_merged: bool, keep_unquantized: bool
) -> None:
    plan = plan_of(4_000_000, 4)
    seen = []

    def look() -> None:
        seen.append(sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))

    def write(path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
        look()

    expected = peak_of(tmp_path, *kinds, plan=plan, keep_merged=keep_merged, keep_unquantized=keep_unquantized)
    for shard in plan["shards"]:
        write(tmp_path / "merged" / shard["file"], shard_bytes(shard["tensors"]))
    write(tmp_path / "gguf/m.unquantized.gguf", unquantized_bytes(plan))
    for file in [] if keep_merged else list((tmp_path / "merged").iterdir()):
        file.unlink()
    for kind in kinds:
        write(tmp_path / f"gguf/m.{kind}.gguf", quantized_bytes(plan, kind))
    if not keep_unquantized:
        (tmp_path / "gguf/m.unquantized.gguf").unlink()
    look()
    assert (expected.needed, expected.stays) == (max(seen), seen[-1])


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    everything = peak_of(tmp_path, "Q4_K_M", "Q8_0")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / BIG["shards"][0]["file"]).touch()
    shard = shard_bytes(BIG["shards"][0]["tensors"])
    resumed = peak_of(tmp_path, "Q4_K_M", "Q8_0")
    assert resumed.needed == everything.needed - shard
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf/m.unquantized.gguf").touch()
    quantizations = peak_of(tmp_path, "Q4_K_M", "Q8_0")
    assert quantizations.needed == quantized_bytes(BIG, "Q4_K_M") + quantized_bytes(BIG, "Q8_0") == quantizations.stays
    (tmp_path / "gguf/m.Q4_K_M.gguf").touch()
    assert peak_of(tmp_path, "Q4_K_M", "Q8_0").needed == quantized_bytes(BIG, "Q8_0")
    (tmp_path / "gguf/m.Q8_0.gguf").touch()
    assert peak_of(tmp_path, "Q4_K_M", "Q8_0") == DiskPeak(0, "nothing is written", 0, 0)
    # Without the unquantized file the quantized ones are enough.
    (tmp_path / "gguf/m.unquantized.gguf").unlink()
    assert peak_of(tmp_path, "Q4_K_M", "Q8_0").needed == 0


def test_registering(tmp_path: Path) -> None:
    size = quantized_bytes(BIG, "Q8_0")
    assert peak_of(tmp_path, "Q8_0", registration="elsewhere") == peak_of(tmp_path, "Q8_0")
    copied = peak_of(tmp_path, "Q8_0", registration="copy")
    assert (copied.needed, copied.stays, copied.in_store) == (peak_of(tmp_path, "Q8_0").needed, size, size)
    served = peak_of(tmp_path, "Q8_0", registration="server")
    assert served.step == "registering Q8_0 on the server"
    assert served.needed == unquantized_bytes(BIG) + 4 * size
    assert served.stays == 2 * size


def test_a_registered_model_is_not_registered_again(tmp_path: Path) -> None:
    for folder, file in (("gguf", "m.Q8_0.gguf"), ("ollama/Q8_0", "registered.json")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / file).touch()
    assert peak_of(tmp_path, "Q8_0", registration="server").needed == 0
    (tmp_path / "gguf/m.Q8_0.gguf").unlink()
    assert peak_of(tmp_path, "Q8_0", registration="server").step == "registering Q8_0 on the server"


def test_building_the_programs_counts(tmp_path: Path) -> None:
    how = {"keep_merged": True, "keep_unquantized": True}
    with_tools = disk_peak(BIG, "m", tmp_path, ["Q8_0"], "shared", builds_tools=True, **how)
    without = disk_peak(BIG, "m", tmp_path, ["Q8_0"], "shared", **how)
    assert with_tools.needed - without.needed == TOOLS_BYTES
