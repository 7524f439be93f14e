"""The peak of a build's disk, by the figures of a 32B model and by files that are really written and removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollamake.bitsandbytes_needs import checkpoint_bytes
from ollamake.disk_peak import MADE_HERE_BYTES, TOOLS_BYTES, DiskPeak, Registration, added_by_others, disk_peak
from ollamake.job_needs import METADATA_BYTES, elements, quantized_bytes, shard_bytes, unquantized_bytes

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

SHARED = Registration("shared", "store", "store")
COPY = Registration("copy", "store", "store")
SERVER = Registration("server", "server", "http://127.0.0.1:11434")
ELSEWHERE = Registration("elsewhere", "server", "http://gpu.example:11434")


def peak_of(
    folder: Path, *kinds: str, plan: dict[str, Any] = BIG, registration: Registration = SHARED, **how: bool
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


def test_types_that_are_only_measured_are_quantized_and_not_registered(tmp_path: Path) -> None:
    alone = peak_of(tmp_path, "Q4_K_M", registration=SERVER, keep_merged=True, keep_unquantized=True)
    keep = {"keep_merged": True, "keep_unquantized": True}
    found = disk_peak(BIG, "m", tmp_path, ["Q4_K_M"], SERVER, **keep, compared=["Q2_K", "Q4_K_M"])
    assert found.stays - alone.stays == quantized_bytes(BIG, "Q2_K")
    copied = disk_peak(BIG, "m", tmp_path, ["Q4_K_M"], COPY, **keep, compared=["Q2_K"])
    assert copied.in_store == quantized_bytes(BIG, "Q4_K_M")


def test_a_base_that_is_measured_is_merged_and_converted(tmp_path: Path) -> None:
    keep = {"keep_merged": False, "keep_unquantized": False}
    assert disk_peak(BIG, "m", tmp_path, [], SHARED, **keep).needed == 0
    found = disk_peak(BIG, "m", tmp_path, [], SHARED, **keep, measured_unquantized=True)
    assert found.step == "converting to GGUF"
    assert found.needed / 1e9 == pytest.approx(131.1, abs=0.1)
    assert found.stays == 0
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf/m.unquantized.json").touch()
    assert disk_peak(BIG, "m", tmp_path, [], SHARED, **keep, measured_unquantized=True).needed == 0


def test_checkpoints_of_bitsandbytes_beside_the_ggufs(tmp_path: Path) -> None:
    """Made from the merged weights while these are there; merged again for one that is new."""
    keep = {"keep_merged": False, "keep_unquantized": False}
    (tmp_path / "gguf").mkdir()
    both = disk_peak(BIG, "m", tmp_path, ["Q4_K_M"], SHARED, **keep, checkpoints=["nf4", "int8"])
    sizes = [checkpoint_bytes(BIG, precision) for precision in ("nf4", "int8")]
    assert both.needed == peak_of(tmp_path, "Q4_K_M").needed + sum(sizes)
    (tmp_path / "gguf/m.Q4_K_M.gguf").touch()
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes/nf4.json").touch()
    new = disk_peak(BIG, "m", tmp_path, ["Q4_K_M"], SHARED, **keep, checkpoints=["nf4", "int8"])
    merged = sum(shard_bytes(shard["tensors"]) for shard in BIG["shards"])
    assert (new.step, new.needed, new.stays) == ("quantizing to int8 with bitsandbytes", merged + sizes[1], sizes[1])
    other = {"name": "o", "base_bytes": 2 * 10**9, "quantizations": [], "checkpoints": ["nf4", "int8"]}
    assert added_by_others([other], tmp_path, SHARED, **keep) == (2 * 10**9, 0)


def test_what_other_models_measure_is_counted(tmp_path: Path) -> None:
    other = {"name": "o", "base_bytes": 2 * 10**9, "quantizations": []}
    keep = {"keep_merged": True, "keep_unquantized": True}
    assert added_by_others([other], tmp_path, COPY, **keep) == (0, 0)
    base = added_by_others([other | {"measured_unquantized": True}], tmp_path, COPY, **keep)
    assert base == (4 * 10**9 + METADATA_BYTES, 0)
    added, in_store = added_by_others([other | {"compared": ["Q8_0"]}], tmp_path, COPY, **keep)
    assert added == 4 * 10**9 + METADATA_BYTES + round(10**9 * 8.501 / 8) + METADATA_BYTES
    assert in_store == 0


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
    assert peak_of(tmp_path, "Q8_0", registration=ELSEWHERE) == peak_of(tmp_path, "Q8_0")
    copied = peak_of(tmp_path, "Q8_0", registration=COPY)
    assert (copied.needed, copied.stays, copied.in_store) == (peak_of(tmp_path, "Q8_0").needed, size, size)
    served = peak_of(tmp_path, "Q8_0", registration=SERVER)
    assert served.step == "registering Q8_0 on the server"
    assert served.needed == unquantized_bytes(BIG) + 4 * size
    assert served.stays == 2 * size


def test_a_registered_model_is_not_registered_again(tmp_path: Path) -> None:
    finish(tmp_path, "m", "Q8_0", {"target": "server", "host": SERVER.place})
    assert peak_of(tmp_path, "Q8_0", registration=SERVER).needed == 0
    (tmp_path / "gguf/m.Q8_0.gguf").unlink()
    assert peak_of(tmp_path, "Q8_0", registration=SERVER).step == "registering Q8_0 on the server"


def finish(folder: Path, name: str, kind: str, marker: object) -> None:
    """Make the files of a model that has been built and registered."""
    for file, content in (
        (folder / f"gguf/{name}.{kind}.gguf", ""),
        (folder / f"ollama/{kind}/registered.json", marker if isinstance(marker, str) else json.dumps(marker)),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.mark.parametrize(
    "marker",
    [
        {"target": "store", "store": "store"},
        {"target": "store", "host": SERVER.place},
        {"target": "server", "host": "http://127.0.0.1:11435"},
        {"target": "server"},
        {},
        [],
        "",
        "{",
    ],
)
def test_a_model_that_is_registered_elsewhere_is_registered_again(tmp_path: Path, marker: object) -> None:
    finish(tmp_path, "m", "Q8_0", marker)
    found = peak_of(tmp_path, "Q8_0", registration=SERVER)
    assert (found.needed, found.stays) == (3 * quantized_bytes(BIG, "Q8_0"), quantized_bytes(BIG, "Q8_0"))


def test_a_store_is_known_by_its_folder(tmp_path: Path) -> None:
    for place, copied in (
        (tmp_path / "store", 0),
        (tmp_path / "x/../store", 0),
        (tmp_path / "other", quantized_bytes(BIG, "Q8_0")),
    ):
        finish(tmp_path, "m", "Q8_0", {"target": "store", "store": str(place), "server_version": None})
        registration = Registration("copy", "store", str(tmp_path / "store"))
        assert peak_of(tmp_path, "Q8_0", registration=registration).in_store == copied
    finish(tmp_path, "m", "Q8_0", {"target": "server", "host": str(tmp_path / "store")})
    assert peak_of(tmp_path, "Q8_0", registration=registration).in_store > 0


WEIGHTS = 2 * elements(BIG)


def added(
    results: Path, *kinds: str, weights: int = WEIGHTS, registration: Registration = SHARED, **how: bool
) -> tuple[int, int]:
    keep = {"keep_merged": True, "keep_unquantized": True} | how
    other = {"name": "m", "base_bytes": weights, "quantizations": kinds}
    return added_by_others([other], results, registration, **keep)


@pytest.mark.parametrize("keep_merged", [True, False])
@pytest.mark.parametrize("keep_unquantized", [True, False])
@pytest.mark.parametrize("registration", [SHARED, COPY, SERVER, ELSEWHERE])
def test_another_model_adds_what_stays_of_its_own_build(
    tmp_path: Path, keep_merged: bool, keep_unquantized: bool, registration: Registration
) -> None:
    kinds, keep = ("Q4_K_M", "F16"), {"keep_merged": keep_merged, "keep_unquantized": keep_unquantized}
    # The plan is known to the model's own check; here its 16-bit weights alone are.
    own = peak_of(tmp_path / "m", *kinds, registration=registration, **keep)
    found = added(tmp_path, *kinds, registration=registration, **keep)
    assert found == pytest.approx((own.stays, own.in_store), rel=1e-6)


def test_what_other_models_have_is_not_counted(tmp_path: Path) -> None:
    everything, size = added(tmp_path, "Q8_0")[0], quantized_bytes(BIG, "Q8_0")
    merged = tmp_path / "m/merged"
    merged.mkdir(parents=True)
    (merged / "model-00001-of-00002.safetensors").write_bytes(b"x" * 5000)
    (merged / "tokenizer.json").write_bytes(b"x" * 7000)
    assert added(tmp_path, "Q8_0")[0] == everything - 5000
    # A header more than the base has is not to be subtracted from the rest.
    assert added(tmp_path, "Q8_0", weights=4000)[0] == 4000 + METADATA_BYTES + 2125 + METADATA_BYTES
    (tmp_path / "m/gguf").mkdir()
    (tmp_path / "m/gguf/m.unquantized.gguf").touch()
    assert added(tmp_path, "Q8_0")[0] == size
    for registration, expected in ((SHARED, (0, 0)), (SERVER, (size, 0)), (COPY, (0, size))):
        finish(tmp_path / "m", "m", "Q8_0", "")
        assert added(tmp_path, "Q8_0", registration=registration) == expected
        finish(tmp_path / "m", "m", "Q8_0", {"target": registration.target, "host": SERVER.place, "store": "store"})
        assert added(tmp_path, "Q8_0", registration=registration) == (0, 0)


def test_other_models_add_up_and_those_made_here_have_an_allowance(tmp_path: Path) -> None:
    one = {"name": "m", "base_bytes": WEIGHTS, "quantizations": ["Q8_0"]}
    demo = {"name": "demo", "base_bytes": 0, "quantizations": ["Q8_0"]}
    keep = {"keep_merged": True, "keep_unquantized": True}
    found = added_by_others([one, one | {"name": "n"}, demo], tmp_path, SHARED, **keep)
    assert found == (2 * added(tmp_path, "Q8_0")[0] + MADE_HERE_BYTES, 0)
    finish(tmp_path / "demo", "demo", "Q8_0", "")
    assert added_by_others([demo], tmp_path, SHARED, **keep) == (0, 0)
    assert added_by_others([], tmp_path, SHARED, **keep) == (0, 0)


def test_building_the_programs_counts(tmp_path: Path) -> None:
    how = {"keep_merged": True, "keep_unquantized": True}
    with_tools = disk_peak(BIG, "m", tmp_path, ["Q8_0"], SHARED, builds_tools=True, **how)
    without = disk_peak(BIG, "m", tmp_path, ["Q8_0"], SHARED, **how)
    assert with_tools.needed - without.needed == TOOLS_BYTES
