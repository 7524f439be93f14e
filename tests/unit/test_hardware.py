"""What the machine has for a model: read from fake tools on PATH that print what the real ones print."""

import logging
import math
import os
import platform
import shlex
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ollamake import gpu_detection
from ollamake.errors import OllamakeError
from ollamake.hardware import (
    Budget,
    Gpu,
    Hardware,
    budgets,
    cgroup_limit,
    checked_settings,
    configured_hardware,
    deciding,
    detect_hardware,
)

Tool = Callable[..., Path]

A100 = "NVIDIA A100-SXM4-40GB, 40960\n"
LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: NVIDIA GeForce RTX 4090 (UUID: GPU-1b724e78-eef5-4163-d43c-e4da15d41176)
"""
TWO = A100 + "NVIDIA GeForce RTX 4090, 24564\n"
MIG_LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-e07a497d-1bb6-5a42-b670-1c33bf55ab6e)
  MIG 1g.5gb      Device  1: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
"""
MIG_XML = """\
<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <gpu id="00000000:00:09.0">
    <fb_memory_usage><total>40960 MiB</total></fb_memory_usage>
    <mig_devices>
      <mig_device><index>0</index><fb_memory_usage><total>20096 MiB</total></fb_memory_usage></mig_device>
      <mig_device><index>1</index><fb_memory_usage><total>4864 MiB</total></fb_memory_usage></mig_device>
    </mig_devices>
  </gpu>
</nvidia_smi_log>
"""
ROCM = """\

WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status

{"card0": {"VRAM Total Memory (B)": "17163091968", "VRAM Total Used Memory (B)": "692142080",
           "Card Series": "Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]", "Card Model": "0x73bf"},
 "card1": {"VRAM Total Memory (B)": "67108864", "VRAM Total Used Memory (B)": "26079232",
           "Card Series": "Raphael", "Card Model": "0x164e"},
 "system": {"Driver version": "6.10.5"}}
"""
AMD = """\
{"gpu_data": [{"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002"},
               "vram": {"type": "HBM3", "size": {"value": 196592, "unit": "MB"}}}]}
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Return a function that puts a fake program on a PATH that has nothing else: what it prints, by its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)

    def make(program: str, printed: dict[str, str] | None = None, script: str = "") -> Path:
        cases = []
        for number, (pattern, text) in enumerate((printed or {}).items()):
            output = tmp_path / f"{program}-{number}.txt"
            output.write_text(text)
            cases.append(f"{pattern}) /bin/cat {shlex.quote(str(output))};;")
        other = "*) echo unknown option >&2; exit 2;;"
        path = folder / program
        path.write_text("#!/bin/sh\n" + (script or 'case "$*" in\n' + "\n".join([*cases, other]) + "\nesac\n"))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def nvidia_smi(tool: Tool, rows: str, listed: str = "", xml: str = "") -> None:
    printed = {"'--query-gpu=name,memory.total --format=csv,noheader,nounits'": rows, "-L": listed}
    tool("nvidia-smi", printed | ({"'-q -x'": xml} if xml else {}))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_machine_without_tools_has_its_ram(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    hardware = detect_hardware()
    assert hardware.gpus == ()
    assert not hardware.unified
    assert hardware.source == "detected"
    told = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert hardware.ram_gib is not None
    assert 0 < hardware.ram_gib <= int(told.split()[1]) / 2**20 * 1.001
    assert not warnings(caplog)


def test_nvidia(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    nvidia_smi(tool, TWO, LISTED)
    hardware = detect_hardware()
    assert hardware.gpus == (Gpu("NVIDIA A100-SXM4-40GB", 40.0), Gpu("NVIDIA GeForce RTX 4090", 24564 / 1024))
    assert not hardware.unified
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        ("0", [0]),
        ("1,0", [1, 0]),
        (" 1 ", [1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", [0]),
        ("GPU-1b724e78", [1]),
        ("GPU-1b724e78-eef5-4163-d43c-e4da15d41176,0", [1, 0]),
    ],
)
def test_cuda_visible_devices(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, setting: str, indices: list[int]
) -> None:
    nvidia_smi(tool, TWO, LISTED)
    everything = detect_hardware().gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert detect_hardware().gpus == tuple(everything[index] for index in indices)
    assert not warnings(caplog)


def test_cuda_visible_devices_that_do_not_exist(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nvidia_smi(tool, TWO, LISTED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,7,1")
    assert [gpu.name for gpu in detect_hardware().gpus] == ["NVIDIA A100-SXM4-40GB"]
    assert "CUDA_VISIBLE_DEVICES=0,7,1: there is no GPU 7 here" in warnings(caplog)[0]


def test_cuda_visible_devices_on_a_machine_without_a_gpu(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert detect_hardware().gpus == ()
    assert not warnings(caplog)


@pytest.mark.parametrize("memory", ["[N/A]", "[Not Supported]", "0"])
def test_nvidia_with_unified_memory(tool: Tool, memory: str) -> None:
    nvidia_smi(tool, f"NVIDIA GB10, {memory}\n")
    hardware = detect_hardware()
    assert hardware.unified
    assert hardware.gpus == (Gpu("NVIDIA GB10", hardware.ram_gib),)


def test_a_hidden_gpu_with_unified_memory_leaves_the_ram(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tool, "NVIDIA GB10, [N/A]\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hardware = detect_hardware()
    assert hardware.gpus == ()
    assert not hardware.unified
    assert [place.name for place in budgets(hardware, 0)] == ["RAM"]


def test_an_amd_gpu_beside_a_hidden_one_has_memory_of_its_own(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tool, "NVIDIA GB10, [N/A]\n")
    tool("amd-smi", {"'static --asic --vram --json'": AMD})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    hardware = detect_hardware()
    assert [gpu.name for gpu in hardware.gpus] == ["AMD Instinct MI300X"]
    assert not hardware.unified


@pytest.mark.parametrize("memory", ["40960", "[Insufficient Permissions]"])
@pytest.mark.parametrize(
    ("setting", "name", "mib"),
    [
        (None, "3g.20gb", 20096),
        ("0", "3g.20gb", 20096),
        ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "1g.5gb", 4864),
        ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f,MIG-e07a497d-1bb6-5a42-b670-1c33bf55ab6e", "1g.5gb", 4864),
    ],
)
def test_one_mig_device_is_all_that_a_process_sees(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, memory: str, setting: str | None, name: str, mib: int
) -> None:
    nvidia_smi(tool, f"NVIDIA A100-SXM4-40GB, {memory}\n", MIG_LISTED, MIG_XML)
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    hardware = detect_hardware()
    assert hardware.gpus == (Gpu(f"NVIDIA A100-SXM4-40GB MIG {name}", mib / 1024),)
    assert not hardware.unified


def test_memory_that_may_not_be_asked_is_said_and_not_used(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    nvidia_smi(tool, "NVIDIA A100-SXM4-40GB, [Insufficient Permissions]\n" + A100, LISTED)
    assert detect_hardware().gpus == (Gpu("NVIDIA A100-SXM4-40GB", 40.0),)
    assert "does not tell the memory of GPU 0" in warnings(caplog)[0]


def test_a_whole_gpu_is_seen_beside_a_divided_one(tool: Tool) -> None:
    second = "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-42db43a1-526e-626d-ff2d-456bf26d9df0)\n"
    nvidia_smi(tool, A100 * 2, MIG_LISTED + second, MIG_XML)
    assert detect_hardware().gpus == (Gpu("NVIDIA A100-SXM4-40GB", 40.0),)


def test_mig_devices_of_unknown_size_are_said_and_not_used(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    nvidia_smi(tool, A100, MIG_LISTED)
    assert detect_hardware().gpus == ()
    failed, unknown = warnings(caplog)
    assert "nvidia-smi ended with code 2: the GPUs divided by MIG count as none (printed: unknown option)" in failed
    assert "does not tell the memory of GPU 0" in unknown


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate\nwith the NVIDIA driver.'; exit 9",
            "ended with code 9: it counts as no GPU (printed: NVIDIA-SMI has failed because it could not communicate with",
        ),
        ("echo no such library >&2; exit 12", "ended with code 12: it counts as no GPU (printed: no such library)"),
        ("echo '<html>what?</html>'", "printed no list of names and MiB: it counts as no GPU (printed: <html>what?"),
        ("echo 'NVIDIA A100, many'", "(printed: NVIDIA A100, many)"),
        ("printf 'NVIDIA A100, 40960\\nUnable to query GPU 1\\n'", "Unable to query GPU 1)"),
        ("exit 0", "printed no list of names and MiB: it counts as no GPU (printed: nothing)"),
        ("kill -9 $$", "ended with code -9: it counts as no GPU (printed: nothing)"),
    ],
)
def test_a_tool_that_fails_is_said(tool: Tool, caplog: pytest.LogCaptureFixture, script: str, said: str) -> None:
    tool("nvidia-smi", script=script)
    hardware = detect_hardware()
    assert hardware.gpus == ()
    assert hardware.ram_gib
    (warning,) = warnings(caplog)
    assert warning.startswith("nvidia-smi ")
    assert said in warning
    assert "\n" not in warning
    assert "set `hardware` in the configuration" in warning


def test_a_tool_that_hangs_is_ended_with_its_children(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert gpu_detection.TIMEOUT == 10
    monkeypatch.setattr(gpu_detection, "TIMEOUT", 0.5)
    child = tmp_path / "child"
    tool("nvidia-smi", script=f"echo waiting for the driver\n/bin/sleep 60 &\necho $! > {child}\nwait\n")
    begun = time.monotonic()
    assert detect_hardware().gpus == ()
    assert time.monotonic() - begun < 10
    (warning,) = warnings(caplog)
    assert "did not end within 0.5 s: it counts as no GPU (printed: waiting for the driver)" in warning
    status = Path("/proc", child.read_text().strip(), "status")
    while time.monotonic() - begun < 10 and is_running(status):
        time.sleep(0.05)
    assert not is_running(status)


def is_running(status: Path) -> bool:
    """Return whether a process is there and is not a zombie that its new parent has not looked after."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return "State:\tZ" not in status.read_text()
    return False


def test_a_tool_that_cannot_be_run_is_said(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    tool("nvidia-smi").write_bytes(b"\x7fELF of another machine")
    assert detect_hardware().gpus == ()
    assert "nvidia-smi cannot be run (Exec format error)" in warnings(caplog)[0]


def test_amd_by_rocm_smi(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tool("rocm-smi", {"'--showproductname --showmeminfo vram --json'": ROCM})
    tool("amd-smi", script="exit 1")  # not asked, or it would be said
    assert detect_hardware().gpus == (Gpu("Radeon RX 6800/6800 XT / 6900 XT", 17163091968 / 2**30),)
    assert not warnings(caplog)
    assert "Raphael has 64 MiB of its own memory, too little for a model: not used" in caplog.text


def test_amd_by_amd_smi(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    tool("amd-smi", {"'static --asic --vram --json'": AMD})
    assert detect_hardware().gpus == (Gpu("AMD Instinct MI300X", 196592 / 1024),)
    assert not warnings(caplog)


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
def test_amd_gpus_are_hidden_too(tool: Tool, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    tool("rocm-smi", {"'--showproductname --showmeminfo vram --json'": ROCM})
    monkeypatch.setenv(variable, "0")
    assert len(detect_hardware().gpus) == 1
    monkeypatch.setenv(variable, "")
    assert detect_hardware().gpus == ()


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("rocm-smi", "WARNING: No JSON data to report"),
        ("rocm-smi", '{"system": {"Driver version": "6.10.5"}}'),
        ("rocm-smi", '{"card0": {"Card Series": "Vega", "VRAM Total Memory (B)": "N/A"}}'),
        ("rocm-smi", "[1, 2]"),
        ("amd-smi", '{"gpu_data": [{"gpu": 0, "vram": {"size": "N/A"}}]}'),
        ("amd-smi", "ERROR: no driver"),
    ],
)
def test_an_amd_tool_that_prints_something_else_is_said(
    tool: Tool, caplog: pytest.LogCaptureFixture, program: str, printed: str
) -> None:
    tool(program, {"*": printed})
    assert detect_hardware().gpus == ()
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{program} printed no JSON with names and memory")
    assert printed[:20] in warning


def sysctl(tool: Tool, gib: int, brand: str = "Apple M3 Max", limit: str = "0\n") -> None:
    tool(
        "sysctl",
        {
            "'-n hw.memsize'": f"{gib * 2**30}\n",
            "'-n machdep.cpu.brand_string'": f"{brand}\n",
            "'-in iogpu.wired_limit_mb'": limit,
        },
    )


@pytest.mark.parametrize(
    ("gib", "limit", "expected"),
    [
        (16, "0\n", 32 / 3),
        (32, "", 64 / 3),
        (36, "0\n", 24.0),
        (64, "0\n", 48.0),
        (64, "57344\n", 56.0),
        (64, "999999\n", 64.0),
    ],
)
def test_apple_silicon(
    tool: Tool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gib: int,
    limit: str,
    expected: float,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    sysctl(tool, gib, limit=limit)
    hardware = detect_hardware()
    assert hardware.unified
    assert hardware.ram_gib == gib
    assert [gpu.name for gpu in hardware.gpus] == ["Apple M3 Max"]
    assert hardware.gpus[0].memory_gib == pytest.approx(expected)
    assert not warnings(caplog)


def test_apple_silicon_of_32_gib_as_llama_cpp_reports_it(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ggml_metal_init: recommendedMaxWorkingSetSize = 22906.50 MB, in units of 1e6 bytes."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    sysctl(tool, 32)
    assert detect_hardware().gpus[0].memory_gib * 2**30 == pytest.approx(22906.50e6, rel=0.001)


def test_a_mac_with_an_intel_processor_has_ram_only(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    sysctl(tool, 32, brand="Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz")
    assert detect_hardware() == Hardware((), 32.0, False, "detected")


def test_sysctl_that_prints_no_numbers_is_said(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    sysctl(tool, 32, limit="much\n")
    assert detect_hardware().gpus[0].memory_gib == pytest.approx(64 / 3)
    assert "iogpu.wired_limit_mb: macOS's default limit is assumed (printed: much)" in warnings(caplog)[0]
    caplog.clear()
    tool("sysctl", {"*": "?\n"})
    assert detect_hardware() == Hardware((), None, False, "detected")
    assert "hw.memsize: the RAM is unknown (printed: ?)" in warnings(caplog)[0]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cgroup_version_2(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/slurm/job_7/step_0\n")
    write(tmp_path / "cgroup/slurm/memory.max", f"{512 * 2**30}\n")
    write(tmp_path / "cgroup/slurm/job_7/memory.max", f"{64 * 2**30}\n")
    write(tmp_path / "cgroup/slurm/job_7/step_0/memory.max", "max\n")
    assert cgroup_limit(tmp_path / "membership", tmp_path / "cgroup") == 64 * 2**30


def test_cgroup_version_2_in_a_container(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/\n")
    write(tmp_path / "cgroup/memory.max", f"{8 * 2**30}\n")
    assert cgroup_limit(tmp_path / "membership", tmp_path / "cgroup") == 8 * 2**30


def test_cgroup_version_1(tmp_path: Path) -> None:
    write(tmp_path / "membership", "9:name=systemd:/\n5:cpu,cpuacct:/x\n4:memory:/slurm/job_7\n0::/\n")
    write(tmp_path / "cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert cgroup_limit(tmp_path / "membership", tmp_path / "cgroup") is None
    write(tmp_path / "cgroup/memory/slurm/job_7/memory.limit_in_bytes", f"{32 * 2**30}\n")
    assert cgroup_limit(tmp_path / "membership", tmp_path / "cgroup") == 32 * 2**30


def test_no_cgroup(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path / "membership", tmp_path / "cgroup") is None


def test_ram_is_bounded_by_the_cgroup(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollamake.hardware.cgroup_limit", lambda: 2**28)
    assert detect_hardware().ram_gib == 0.25
    monkeypatch.setattr("ollamake.hardware.cgroup_limit", lambda: 2**59)
    assert detect_hardware().ram_gib == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def test_configured_hardware_asks_no_tool(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    tool("nvidia-smi", script="exit 1")
    settings = {"gpus": [{"name": "A100-40GB", "memory_gib": 36}], "ram_gib": 64}
    assert configured_hardware(settings) == Hardware((Gpu("A100-40GB", 36.0),), 64.0, False, "configured")
    assert configured_hardware({"gpus": [], "ram_gib": 64}) == Hardware((), 64.0, False, "configured")
    assert not warnings(caplog)


def test_null_is_detected(tool: Tool) -> None:
    nvidia_smi(tool, A100)
    detected = detect_hardware()
    for settings in (None, {}, {"gpus": None, "ram_gib": None}):
        assert configured_hardware(settings) == detected
    assert configured_hardware({"gpus": None, "ram_gib": 8}) == Hardware(detected.gpus, 8.0, False, "detected")
    assert configured_hardware({"gpus": [], "ram_gib": None}) == Hardware((), detected.ram_gib, False, "detected")
    settings = {"gpus": [{"name": "A100-40GB", "memory_gib": 36}], "ram_gib": None}
    assert configured_hardware(settings) == Hardware((Gpu("A100-40GB", 36.0),), detected.ram_gib, False, "configured")


def test_settings_are_checked_without_asking_the_machine(tool: Tool, caplog: pytest.LogCaptureFixture) -> None:
    tool("nvidia-smi", script="exit 1")
    assert checked_settings({"gpus": None, "ram_gib": None}) == {"gpus": None, "ram_gib": None}
    given = {"gpus": [{"memory_gib": 24}, {"name": "A100-40GB", "memory_gib": 36}], "ram_gib": 64}
    assert checked_settings(given) == {
        "gpus": [{"name": "GPU", "memory_gib": 24}, {"name": "A100-40GB", "memory_gib": 36}],
        "ram_gib": 64,
    }
    assert not warnings(caplog)
    with pytest.raises(OllamakeError, match=r"hardware\.gpus\[1\]\.memory_gib: 36864 is absurd"):
        checked_settings({"gpus": [{"memory_gib": 24}, {"memory_gib": 36864}], "ram_gib": 64})
    with pytest.raises(OllamakeError, match=r"hardware\.ram_gib: 131072 is absurd"):
        checked_settings({"gpus": None, "ram_gib": 131072})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"gpus": [{"name": "A", "memory_gib": 36864}]},
            "hardware.gpus[0].memory_gib: 36864 is absurd for GiB; did you mean 36?",
        ),
        (
            {"gpus": [{"name": "A", "memory_gib": 36}, {"name": "B", "memory_gib": 24564}]},
            "hardware.gpus[1].memory_gib: 24564 is absurd for GiB; did you mean 23.99?",
        ),
        ({"gpus": [{"name": "A", "memory_gib": 36 * 2**30}]}, "is absurd for GiB; did you mean 36?"),
        ({"gpus": [{"name": "A", "memory_gib": math.inf}]}, "inf is absurd for GiB; give the memory in GiB."),
        ({"gpus": [{"name": "A", "memory_gib": 10**400}]}, "is absurd for GiB; give the memory in GiB."),
        ({"gpus": [{"name": "A", "memory_gib": 0}]}, "hardware.gpus[0].memory_gib: 0 is not a size."),
        ({"gpus": [{"name": "A", "memory_gib": -24}]}, "hardware.gpus[0].memory_gib: -24 is not a size."),
        ({"gpus": [{"name": "A", "memory_gib": math.nan}]}, "hardware.gpus[0].memory_gib: nan is not a size."),
        ({"gpus": [{"name": "A", "memory_gib": "36 GiB"}]}, "hardware.gpus[0].memory_gib: '36 GiB' is not a size."),
        ({"gpus": [{"name": "A", "memory_gib": True}]}, "hardware.gpus[0].memory_gib: True is not a size."),
        ({"gpus": [{"name": "A"}]}, "hardware.gpus[0].memory_gib: None is not a size."),
        ({"gpus": [{"memory_gib": 24}]}, "hardware.gpus[0]: {'memory_gib': 24} has no name."),
        ({"gpus": ["RTX 4090"]}, "hardware.gpus[0]: 'RTX 4090' has no name."),
        ({"gpus": {"name": "A", "memory_gib": 24}}, "hardware.gpus: {'name': 'A', 'memory_gib': 24} is not a list."),
        ({"gpus": [], "ram_gib": 131072}, "hardware.ram_gib: 131072 is absurd for GiB; did you mean 128?"),
        ({"gpus": [], "ram_gib": 0}, "hardware.ram_gib: 0 is not a size."),
    ],
)
def test_memory_that_cannot_be_meant_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(OllamakeError) as refused:
        configured_hardware(settings)
    assert message in str(refused.value)


def test_the_largest_sizes_are_taken() -> None:
    settings = {"gpus": [{"name": "A", "memory_gib": 2048}], "ram_gib": 65536}
    assert configured_hardware(settings).ram_gib == 65536


def machine(*gpus: Gpu, ram_gib: float | None = 64.0, unified: bool = False) -> Hardware:
    return Hardware(gpus, ram_gib, unified, "configured")


def test_budgets_of_one_gpu() -> None:
    places = budgets(machine(Gpu("A100-40GB", 36.0)), 1.0)
    assert places == [
        Budget("A100-40GB", "gpu", 36.0, 36864 - 1024 - 500),
        Budget("RAM", "ram", 64.0, 65536 - 1024 - 2048),
    ]
    assert deciding(places) == places[0]


def test_budgets_of_two_equal_gpus() -> None:
    places = budgets(machine(Gpu("A100-40GB", 40.0), Gpu("A100-40GB", 40.0), ram_gib=None), 0.5)
    one = 40960 - 512 - 500
    assert places == [Budget("A100-40GB", "gpu", 40.0, one), Budget("2 x A100-40GB", "gpu", 80.0, 2 * one, devices=2)]
    assert deciding(places) == places[1]


def test_budgets_of_unlike_gpus() -> None:
    a100, rtx = Gpu("A100-40GB", 40.0), Gpu("RTX 4090", 24.0)
    assert [place.name for place in budgets(machine(a100, rtx), 1.0)] == [
        "A100-40GB",
        "RTX 4090",
        "A100-40GB + RTX 4090",
        "RAM",
    ]
    places = budgets(machine(a100, rtx, a100, ram_gib=None), 0.0)
    assert [place.name for place in places] == ["A100-40GB", "RTX 4090", "2 x A100-40GB + RTX 4090"]
    assert places[2].usable_mib == 2 * (40960 - 500) + 24576 - 500
    assert places[2].memory_gib == 104.0
    assert [place.devices for place in places] == [1, 1, 3]


def test_budgets_of_gpus_of_one_name() -> None:
    places = budgets(machine(Gpu("A100", 40.0), Gpu("A100", 79.15), ram_gib=None), 1.0)
    assert [place.name for place in places] == ["A100 40 GiB", "A100 79.15 GiB", "A100 40 GiB + A100 79.15 GiB"]


def test_unified_memory_is_one_budget() -> None:
    places = budgets(machine(Gpu("Apple M3 Max", 48.0), unified=True), 1.0)
    assert places == [Budget("Apple M3 Max (unified)", "gpu", 48.0, 49152 - 1024 - 500)]
    assert deciding(places) == places[0]


def test_unified_memory_leaves_the_system_its_part() -> None:
    (place,) = budgets(machine(Gpu("NVIDIA GB10", 119.0), ram_gib=119.0, unified=True), 1.0)
    assert place.usable_mib == 119 * 1024 - 1024 - 2048


def test_a_gpu_too_small_for_the_margin_does_not_decide() -> None:
    places = budgets(machine(Gpu("MX150", 1.0)), 1.0)
    assert places[0].usable_mib == 0
    assert deciding(places) == places[1]
    assert deciding(places[:1]) == places[0]


def test_nothing_known_decides_nothing() -> None:
    assert budgets(machine(ram_gib=None), 1.0) == []
    assert deciding([]) is None


def test_a_machine_without_gpus_decides_by_ram() -> None:
    (ram,) = budgets(machine(ram_gib=1.0), 1.0)
    assert ram == Budget("RAM", "ram", 1.0, 0)
    assert deciding([ram]) == ram


@pytest.mark.parametrize("margin", [-1.0, math.nan, math.inf])
def test_a_margin_that_is_no_size_is_refused(margin: float) -> None:
    with pytest.raises(OllamakeError, match=r"plan\.margin_gib"):
        budgets(machine(), margin)
