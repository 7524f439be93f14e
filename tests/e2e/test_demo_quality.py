"""What quantization loses of the trained demo, with and without an importance matrix: by the whole chain and real programs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from background_builds import OF_A_BUILD
from safetensors.torch import load_file
from snakemake_runs import LLAMA_CPP, REPOSITORY, run_snakemake
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from ollamake.file_digest import sha256_of


def write_config(work: Path, **quality: Any) -> None:
    text = REPOSITORY / "config/demo"
    shared = {
        "base": "trained/base",
        "adapter": "trained/adapter",
        "quantizations": ["Q4_K_M", "Q8_0"],
        "quality": {"chat": [str(text / "road_design.jsonl")], "context": 64, "compare": ["Q2_K", "F16"]} | quality,
    }
    config = {
        "models": {
            "plain": shared | {"bitsandbytes": {"types": ["nf4", "int8"], "evaluate": True}},
            "calibrated": shared | {"imatrix": {"chat": [str(text / "calibration.jsonl")], "context": 32}},
        },
        "ollama": {"target": "store"},
        "tools": {"llama_cpp": str(LLAMA_CPP)},
    }
    (work / "mine.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))), encoding="utf-8")


@pytest.fixture(scope="module")
def measured(llama_cpp: Callable[[str], Path], work: Path) -> Path:
    """A working directory in which the demo was measured twice: plain and calibrated."""
    for program in OF_A_BUILD:
        llama_cpp(program)
    write_config(work)
    done = run_snakemake("--cores", "2", "quality", "--configfile", "mine.yaml", folder=work)
    assert done.returncode == 0, done.stdout
    return work


def rows(work: Path, model: str) -> dict[str, dict[str, Any]]:
    summary = json.loads((work / f"results/{model}/quality.json").read_text(encoding="utf-8"))
    return {row["type"]: row for row in summary["rows"]}


@pytest.mark.parametrize("model", ["plain", "calibrated"])
def test_fewer_bits_lose_more(measured: Path, model: str) -> None:
    found = rows(measured, model)
    assert found["Q2_K"]["kld_mean"] > found["Q4_K_M"]["kld_mean"] > found["Q8_0"]["kld_mean"] > 0
    assert found["Q2_K"]["same_top"] < found["Q4_K_M"]["same_top"] < found["Q8_0"]["same_top"] < 1
    assert found["Q8_0"]["kld_mean"] < 0.003
    assert [row for row in found if not found[row]["compared_only"]] == ["Q8_0", "Q4_K_M"]


def test_the_fine_tune_differs_from_itself_by_the_rounding_of_what_is_stored(measured: Path) -> None:
    """llama-perplexity stores log-probabilities with 16 bits, and prints six decimals."""
    itself = rows(measured, "plain")["F16"]
    assert abs(itself["kld_mean"]) <= 2e-6
    assert itself["same_top"] == 1
    assert itself["ppl_ratio"] == 1


def test_training_changes_the_model_more_than_quantizing(measured: Path) -> None:
    summary = json.loads((measured / "results/plain/quality.json").read_text(encoding="utf-8"))
    trained = summary["base"]
    assert trained["kld"]["mean"]["value"] > 10 * rows(measured, "plain")["Q2_K"]["kld_mean"]
    assert trained["ppl_ratio"]["value"] > 2
    # One base serves both models, and nothing is quantized of it.
    bases = [folder for folder in (measured / "results").iterdir() if folder.name.endswith("-base")]
    (base,) = bases
    ggufs = {file.name.removeprefix(base.name) for file in base.glob("gguf/*")}
    assert ggufs == {".unquantized.gguf", ".unquantized.json", ".conversion.json"}


def test_bitsandbytes_checkpoints_beside_the_ggufs(measured: Path) -> None:
    """Two programs that share no code agree about the fine-tune; 8 bits of either lose less than 4 bits of either."""
    summary = json.loads((measured / "results/plain/quality.json").read_text(encoding="utf-8"))
    reference, (int8, nf4) = summary["reference"], summary["checkpoints"]
    assert (int8["type"], nf4["type"]) == ("int8", "nf4")
    ggufs = rows(measured, "plain")
    for row in (int8, nf4):
        # llama.cpp rounds what a matrix of F16 is multiplied with to 16 bits, transformers runs the merged weights in float32.
        assert row["ppl_merged"] == pytest.approx(reference["ppl"]["value"], rel=1e-3)
        assert row["chunks"] == reference["chunks"]
        record = json.loads((measured / f"results/plain/bitsandbytes/{row['type']}.json").read_text(encoding="utf-8"))
        assert (row["size"], row["bits_per_weight"]) == (record["bytes"], record["bits_per_weight"])
    assert 0 < int8["kld_mean"] < ggufs["Q4_K_M"]["kld_mean"]
    assert ggufs["Q8_0"]["kld_mean"] < nf4["kld_mean"] < ggufs["Q2_K"]["kld_mean"]
    assert not any("disagree" in sentence for sentence in summary["sentences"])
    table = (measured / "results/plain/quality.md").read_text(encoding="utf-8")
    assert "\n| nf4 (bitsandbytes, by transformers) | " in table
    assert "bitsandbytes" not in (measured / "results/calibrated/quality.md").read_text(encoding="utf-8")


def test_checkpoints_are_those_of_transformers(measured: Path, tmp_path: Path) -> None:
    """Loaded without arguments: every byte of what transformers makes of the merged weights itself, and the same answers."""
    results = measured / "results/plain"
    settings: dict[str, dict[str, Any]] = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": torch.bfloat16},
        "int8": {"load_in_8bit": True},
    }  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in which sums are the same each time
    for precision, options in settings.items():
        own = AutoModelForCausalLM.from_pretrained(results / "bitsandbytes" / precision)
        quantization = BitsAndBytesConfig(**options)
        theirs = AutoModelForCausalLM.from_pretrained(results / "merged", quantization_config=quantization)
        theirs.save_pretrained(tmp_path / precision)
        saved = load_file(tmp_path / precision / "model.safetensors")
        stored = {}
        for file in (results / "bitsandbytes" / precision).glob("*.safetensors"):
            stored |= load_file(file)
        assert stored.keys() == saved.keys()
        for name, tensor in saved.items():
            assert stored[name].dtype == tensor.dtype, name
            assert torch.equal(stored[name], tensor), name
        assert answer(own, results) == answer(theirs, results)
    torch.set_num_threads(threads)


def answer(model: PreTrainedModel, results: Path) -> str:
    """Return what a model answers to a question of its training, with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(results / "bitsandbytes/nf4")
    text = "<|im_start|>user\n設計速度80km/hの道路の最小曲線半径は？<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, return_tensors="pt").input_ids
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True))


def test_an_importance_matrix_changes_the_bytes_and_loses_less(measured: Path) -> None:
    """Of Q4_K_M, by about a fifth; the last bits of the demo depend on the processor, so by how much is not said here.

    Two bits are another matter: from these few conversations the matrix does Q2_K no good.
    """
    plain, calibrated = rows(measured, "plain"), rows(measured, "calibrated")
    for kind in ("Q4_K_M", "Q2_K"):
        assert (plain[kind]["imatrix"], calibrated[kind]["imatrix"]) == (False, True)
        one, other = (measured / f"results/{model}/gguf/{model}.{kind}.gguf" for model in ("plain", "calibrated"))
        assert sha256_of(one) != sha256_of(other)
    allowed = plain["Q4_K_M"]["kld_mean"] + plain["Q4_K_M"]["kld_mean_error"] / 2
    assert calibrated["Q4_K_M"]["kld_mean"] < allowed
    assert calibrated["Q8_0"]["kld_mean"] == plain["Q8_0"]["kld_mean"]
    assert calibrated["Q8_0"]["imatrix"] is False


def test_the_figures_are_those_of_llama_perplexity_itself(
    measured: Path, llama_cpp: Callable[[str], Path], tmp_path: Path
) -> None:
    """Run by hand on the same text: every line that it prints of its statistics is recorded, and nothing else."""
    program, results = str(llama_cpp("llama-perplexity")), measured / "results/plain"
    reference = json.loads((results / "quality/reference.json").read_text(encoding="utf-8"))
    logits = ["--kl-divergence-base", str(tmp_path / "logits"), "-c", "64", "-t", "2"]
    text = ["-f", str(results / "quality/evaluation.txt"), "--parse-special"]
    said = subprocess.run(
        [program, "-m", str(results / "gguf/plain.unquantized.gguf"), *text, *logits],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"PPL = {reference['ppl']['value']:.4f} +/- {reference['ppl']['error']:.5f}" in said.stdout + said.stderr
    for kind in ("Q4_K_M", "Q2_K"):
        record = json.loads((results / f"quality/{kind}.json").read_text(encoding="utf-8"))
        said = subprocess.run(
            [program, "-m", str(results / f"gguf/plain.{kind}.gguf"), "--kl-divergence", *logits],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        statistics = [line for line in said.stdout.splitlines() if re.search(r"(PPL|KLD|Δp|top p).*: +-?\d", line)]
        assert [line.strip() for line in record["printed"]] == [line.strip() for line in statistics]
        assert (
            f"Mean    KLD: {record['kld']['mean']['value']:10.6f} ± {record['kld']['mean']['error']:10.6f}"
            in said.stdout
        )


def test_conversations_are_read_as_in_training(measured: Path) -> None:
    """By the chat template, and each of its special tokens as one token."""
    text = (measured / "results/plain/quality/evaluation.txt").read_text(encoding="utf-8")
    assert text.startswith(
        "<|im_start|>user\n設計速度80km/hの道路の最小曲線半径は？<|im_end|>\n<|im_start|>assistant\n"
    )
    record = json.loads((measured / "results/plain/quality/evaluation.json").read_text(encoding="utf-8"))
    assert record["parse_special"] is True
    # Read letter by letter, the markers alone would be more tokens than these.
    assert record["tokens"] < 2600
    reference = json.loads((measured / "results/plain/quality/reference.json").read_text(encoding="utf-8"))
    assert reference["chunks"] == record["chunks"] == record["tokens"] // 64


def test_one_type_passes_a_limit_and_another_fails(measured: Path) -> None:
    found = rows(measured, "plain")
    limit = (found["Q4_K_M"]["kld_mean"] + found["Q8_0"]["kld_mean"]) / 2
    write_config(measured, max_kld_mean=limit)
    done = run_snakemake("--cores", "2", "--keep-going", "all", "--configfile", "mine.yaml", folder=measured)
    assert done.returncode == 1
    registered = measured / "results/plain/ollama"
    assert (registered / "Q8_0/registered.json").exists()
    assert not (registered / "Q4_K_M/registered.json").exists()
    assert (measured / "results/plain/gguf/plain.Q4_K_M.gguf").exists()
    assert "models.plain.quality.max_kld_mean" in done.stdout[done.stdout.index("judge_quality failed") :]
