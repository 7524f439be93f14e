"""Room on the disk and in memory, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ollamake import free_disk
from ollamake.build_room import require_disk, require_memory
from ollamake.disk_peak import DiskPeak
from ollamake.errors import OllamakeError
from ollamake.free_memory import Memory, free_memory
from ollamake.job_needs import Needs

PEAK = DiskPeak(131_000_000_000, "converting to GGUF", 20_000_000_000, 0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Make all filesystems have `free` bytes free."""
    usage = SimpleNamespace(free=0)
    monkeypatch.setattr(free_disk.shutil, "disk_usage", lambda _folder: usage)
    return usage


def test_the_disk_must_hold_the_peak_and_a_margin(tmp_path: Path, disk: SimpleNamespace) -> None:
    disk.free = PEAK.needed + free_disk.MARGIN
    assert require_disk("m", PEAK, tmp_path / "results") == PEAK.needed
    disk.free -= 1
    with pytest.raises(OllamakeError) as refused:
        require_disk("m", PEAK, tmp_path / "results")
    for words in (
        "not enough disk for building m: it needs 131.00 GB at its peak (converting to GGUF)",
        "20.00 GB stay",
        "131.00 GB free",
        "keep.merged",
        "keep.unquantized",
        "--directory",
    ):
        assert words in str(refused.value)
    assert "disk_gib" not in str(refused.value)


def test_the_configured_disk_bounds_a_build(tmp_path: Path, disk: SimpleNamespace) -> None:
    disk.free = 10**12
    assert require_disk("m", PEAK, tmp_path, disk_gib=200) == 200 * 2**30
    with pytest.raises(OllamakeError, match=r"hardware.disk_gib allows 100 GiB \(107.37 GB\).*raise hardware.disk_gib"):
        require_disk("m", PEAK, tmp_path, disk_gib=100)
    disk.free = 10**9
    with pytest.raises(OllamakeError, match=r"has 0.90 GB free"):
        require_disk("m", PEAK, tmp_path, disk_gib=100)


def test_other_models_of_the_configuration_need_room_too(tmp_path: Path, disk: SimpleNamespace) -> None:
    peak = DiskPeak(340_000_000, "quantizing to Q8_0", 300_000_000, 0, others=680_000_000)
    disk.free = 1_020_000_000 + free_disk.MARGIN
    assert require_disk("m", peak, tmp_path) == 1_020_000_000
    with pytest.raises(OllamakeError) as refused:
        require_disk("m", peak, tmp_path, disk_gib=0.4)
    for words in (
        "it needs 0.34 GB at its peak",
        "0.30 GB stay, and other models of this configuration: 0.68 GB, together 1.02 GB;",
        "hardware.disk_gib allows 0.4 GiB (0.43 GB)",
        "fewer models",
    ):
        assert words in str(refused.value)
    assert require_disk("m", DiskPeak(0, "nothing is written", 0, 0, others=10**10), tmp_path) == 1_020_000_000


def test_a_store_on_another_filesystem_needs_room_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {tmp_path / "results": 10**12, tmp_path / "store": 10**10}
    for folder in there:
        folder.mkdir()
    monkeypatch.setattr(free_disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=there[folder]))
    copied = DiskPeak(10**9, "quantizing", 10**9, 2 * 10**10)
    with pytest.raises(OllamakeError, match=r"store.*are copied \(20.00 GB\).*10.00 GB free.*ollama.store"):
        require_disk("m", copied, tmp_path / "results", store=tmp_path / "store")
    require_disk("m", DiskPeak(10**9, "quantizing", 10**9, 0), tmp_path / "results", store=tmp_path / "store")
    both = DiskPeak(10**9, "quantizing", 10**9, 6 * 10**9, 0, 6 * 10**9)
    with pytest.raises(
        OllamakeError, match=r"\(6.00 GB, and other models of this configuration: 6.00 GB, together 12.00 GB\)"
    ):
        require_disk("m", both, tmp_path / "results", store=tmp_path / "store")


def test_the_largest_job_must_fit_into_free_memory() -> None:
    memory = Memory(16 * 10**9, 4 * 10**9)
    require_memory("m", "converting to GGUF", Needs(4000, 1), memory)
    require_memory("m", "converting to GGUF", Needs(4001, 1), None)
    with pytest.raises(OllamakeError) as refused:
        require_memory("m", "converting to GGUF", Needs(6300, 1), memory)
    for words in ("building m: converting to GGUF needs 6.3 GB", "of 16.0 GB", "4.0 GB are free", "--cores"):
        assert words in str(refused.value)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A machine of 24 GiB with 20 GiB available, as /proc and /sys/fs/cgroup say it."""
    (tmp_path / "meminfo").write_text("MemTotal:  25165824 kB\nMemFree:  1 kB\nMemAvailable:   20971520 kB\n")
    return tmp_path / "meminfo", tmp_path / "membership", tmp_path / "groups"


def test_memory_without_control_groups(machine: tuple[Path, Path, Path]) -> None:
    assert free_memory(*machine) == Memory(24 * 2**30, 20 * 2**30)


def test_the_limit_of_a_group_above_less_what_its_processes_use(machine: tuple[Path, Path, Path]) -> None:
    _, membership, groups = machine
    membership.write_text("0::/job/step\n")
    stat = f"anon 5\nfile 7\ninactive_file {2**30}\n"
    write(groups / "job", memory__max=str(8 * 2**30), memory__current=str(5 * 2**30), memory__stat=stat)
    write(groups / "job/step", memory__max="max", memory__current=str(2**30), memory__stat=stat)
    assert free_memory(*machine) == Memory(8 * 2**30, 4 * 2**30)


def test_a_group_of_version_1(machine: tuple[Path, Path, Path]) -> None:
    _, membership, groups = machine
    membership.write_text("5:cpu:/x\n4:memory:/job\n0::/\n")
    write(
        groups / "memory", memory__limit_in_bytes=str(2**63 - 4096), memory__usage_in_bytes=str(9 * 2**30),
        memory__stat="total_inactive_file 0\n",
    )  # fmt: skip
    write(
        groups / "memory/job", memory__limit_in_bytes=str(6 * 2**30), memory__usage_in_bytes=str(7 * 2**30),
        memory__stat="inactive_file 1\ntotal_inactive_file 0\n",
    )  # fmt: skip
    assert free_memory(*machine) == Memory(6 * 2**30, 0)


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "not there") is None


def test_this_machine_as_psutil_sees_it() -> None:
    seen, memory = psutil.virtual_memory(), free_memory()
    assert memory is not None
    assert 0 < memory.total <= seen.total
    assert 0 < memory.free <= seen.available + 2**30
