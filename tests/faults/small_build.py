"""A small build that goes over nearly all rules, and what of it must be the same bytes whatever happened on the way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dag_build import Build, save_small_adapter, save_small_base

from ollamake.file_digest import sha256_of

EVALUATION = "設計速度80km/hの道路の最小曲線半径は280mである。 The clothoid joins a straight and a curve.\n"
CALIBRATION = "縦断曲線は勾配の変化点で衝撃を和らげる。 Gutters carry the water of the road away.\n"

CONFIG: dict[str, Any] = {
    "models": {
        "small": {
            "base": "base",
            "adapter": "adapter",
            "quantizations": ["Q4_K_M", "Q8_0"],
            "imatrix": {"text": ["calibration.txt"], "context": 64, "chunks": 2},
            "quality": {"text": ["evaluation.txt"], "context": 64, "chunks": 4, "max_kld_mean": 5.0},
            "bitsandbytes": {"types": ["nf4"], "evaluate": True},
            "serving": {"checkpoints": ["nf4", "adapter"]},
            "ollama": {"system": "道路設計の専門家。", "parameters": {"temperature": 0.1}},
            "rag": {"file": "rag.yaml"},
        }
    },
    "ollama": {"target": "store"},
    # So that intermediates go, which is where a killed run may find least of what it had made.
    "keep": {"merged": False, "unquantized": False},
    "tools": {"threads": 1},
    "hardware": {"gpus": [{"name": "RTX 4090", "memory_gib": 24}], "ram_gib": 64, "disk_gib": 1000},
}
"""66 jobs of 34 rules, 95 s of one core. Rules for the hub, the demo, llama.cpp itself and a running server are not in it."""

WITHOUT_CHECKPOINTS = ("bitsandbytes", "serving")
"""Keys of the model without which a build has 53 jobs and takes half the time: there is no bitsandbytes to import."""
FEW_JOBS = (*WITHOUT_CHECKPOINTS, "imatrix", "quality", "rag")
"""Keys of the model without which a build has 25 jobs and takes a third of the time."""

VOLATILE: Mapping[str, str] = {
    r"results/[^/]+/times\.json": "estimates made of the times that earlier jobs took",
    r"results/[^/]+/quality/[^/]+\.speed\.json": "tokens a second, measured",
    r"results/[^/]+/quality\.(json|md|html|svg)": "shows tokens a second",
    r"results/[^/]+/overview\.html": "shows how long each job took",
    r"results/[^/]+/ollama/registrations\.html": "the time of the registration",
}
"""Final files with times in them -> why they differ from run to run. Whole they must be, too: the watcher looks at them."""

VOLATILE_KEYS: Mapping[str, Mapping[str, str]] = {
    "registered.json": {"time": "when it was registered"},
    "inputs.json": dict.fromkeys(("disk_allowed_gb", "disk_free_gb", "memory_free_gb"), "what was free at that time"),
    # Killed when the application's file has its values already, the next job finds them there.
    "rag_config.json": dict.fromkeys(("before", "backup", "written"), "what the job found to be done"),
}
"""Name of a JSON file -> keys that are not compared -> why; all others are."""


def small_inputs(folder: Path, programs: Path, without: Iterable[str] = ()) -> Build:
    """Write the inputs of the small build: base, adapter, texts, configuration.

    ``programs``: llama.cpp's folder; ``without``: keys of the model that are left out.
    """
    save_small_base(folder / "base")
    save_small_adapter(folder / "base", folder / "adapter")
    (folder / "evaluation.txt").write_text(EVALUATION * 40, encoding="utf-8")
    (folder / "calibration.txt").write_text(CALIBRATION * 40, encoding="utf-8")
    (folder / "rag.yaml").write_text("llm:\n  use_finetuned: false # later\n", encoding="utf-8")
    config = json.loads(json.dumps(CONFIG))
    config["tools"]["llama_cpp"] = str(programs)
    for key in without:
        del config["models"]["small"][key]
    build = Build(folder, config)
    build.write_config()
    return build


def copied(build: Build, folder: Path) -> Build:
    """Copy a build, with its times, by which weights are known."""
    shutil.copytree(build.folder, folder, symlinks=True)
    return Build(folder, json.loads(json.dumps(build.config)))


def final_bytes(folder: Path) -> dict[str, str]:
    """Return {path: sha256} of all that a build leaves for good and that must be the same each time.

    Temporary files are in it: none may be left. Where a file says the folder of the build, that is left out.
    """
    found = {}
    for file in sorted([*folder.glob("results/**/*"), *folder.glob("results/**/.*"), *folder.glob("*.yaml*")]):
        name = file.relative_to(folder).as_posix()
        if file.is_dir():
            continue
        if (file.suffix == ".json" and str(folder).encode() in file.read_bytes()) or file.name in VOLATILE_KEYS:
            value = json.loads(file.read_text(encoding="utf-8").replace(str(folder), "."))
            value.pop("seal", None)  # The watcher has compared it with the rest as it stands there.
            kept = {key: part for key, part in value.items() if key not in VOLATILE_KEYS.get(file.name, {})}
            found[name] = json.dumps(kept, sort_keys=True)
        elif not any(re.fullmatch(pattern, name) for pattern in VOLATILE):
            found[name] = sha256_of(file)
        else:
            found[name] = "there"
    return found


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return what two results of final_bytes differ in, a line a file."""
    lines = [f"{name}: missing" for name in expected if name not in found]
    lines += [f"{name}: should not be there" for name in found if name not in expected]
    return lines + [f"{name}: other bytes" for name in expected if name in found and found[name] != expected[name]]
