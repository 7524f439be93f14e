"""Where the disk does not hold the intermediate files of all models at once, one model is finished before the next begins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from dag_build import Build, save_small_adapter, save_small_base
from snakemake_runs import REPOSITORY

WRITES = re.compile(
    r"^Job \d+: (?:(Merging) shard \d+ of \d+ of|(Converting)|(Quantizing)|The Q8_0 of) (m\d)\b.*", re.MULTILINE
)


@pytest.fixture(scope="module")
def models(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Two models on one base; nothing built, intermediate files are not kept."""
    folder = tmp_path_factory.mktemp("turns") / "work"
    save_small_base(folder / "base")
    for name in ("m0", "m1"):
        save_small_adapter(folder / "base", folder / name, seed=int(name[1]))
    config = {
        "models": {name: {"base": "base", "adapter": name, "quantizations": ["Q8_0"]} for name in ("m0", "m1")},
        "ollama": {"target": "store"},
        "tools": {"llama_cpp": str(programs)},
        "keep": {"merged": False, "unquantized": False},
        "hardware": {"gpus": [], "ram_gib": 64, "disk_gib": None},
    }
    return Build(folder, config)


def test_the_next_model_begins_when_the_files_of_the_last_are_gone(models: Build) -> None:
    """By the plan each takes 25 MB (10 MB are an allowance for each GGUF's metadata), of which 11 stay: both fit, not at once."""
    models.config["hardware"]["disk_gib"] = 0.042
    models.write_config()
    said = models.run("--cores", "8", "gguf")
    order = [
        (found[4], next((kind for kind in found.groups()[:3] if kind), "released")) for found in WRITES.finditer(said)
    ]
    assert [kind for name, kind in order if name == "m0"] == [*["Merging"] * 3, "Converting", "Quantizing", "released"]
    assert [name for name, _ in order] == ["m0"] * 6 + ["m1"] * 6
    assert models.planned("gguf") == {}


def test_a_model_that_does_not_fit_beside_what_earlier_ones_keep_is_refused(models: Build, tmp_path: Path) -> None:
    """The check of the inputs counts as the build goes: of models before it what they keep, of later ones nothing."""
    fresh = Build(tmp_path / "work", models.config)
    fresh.folder.mkdir()
    for name in ("base", "m0", "m1"):
        (fresh.folder / name).symlink_to(models.folder / name)
    fresh.config["hardware"]["disk_gib"] = 0.028
    fresh.write_config()
    said = fresh.run_to_failure("--cores", "1", "--keep-going", "results/m0/inputs.json", "results/m1/inputs.json")
    assert "not enough disk for building m1" in said
    assert "not enough disk for building m0" not in said


def test_jobs_that_stream_weights_are_bounded(models: Build) -> None:
    """Of these profiles/default lets four run side by side; here it is one, though there are cores for all three."""
    models.write_config()
    bound = ("--cores", "8", "--resources", "ollama=1", "streams=1")
    said = models.run(*bound, "--forcerun", "merge_shard", "--", "results/m0/merge_report.json")
    steps = re.findall(r"^Job \d+: (Merging)|^Finished jobid: \d+ \(Rule: (merge_shard)\)", said, re.MULTILINE)
    assert steps == [("Merging", ""), ("", "merge_shard")] * 3
    profile = yaml.safe_load((REPOSITORY / "profiles/default/profile.yaml").read_text(encoding="utf-8"))
    assert "streams=4" in profile["resources"]
