"""What is measured of bitsandbytes checkpoints: the statistics, the chunks, and their rows beside those of the GGUFs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dag_build import save_small_base
from safetensors.torch import load_file, save_file
from sample_plan import sample_plan
from sample_quality import FIGURES, TEXT_SHA, measurement, record, reference_record, text_record

from ollamake.bitsandbytes_configuration import BitsAndBytes, bitsandbytes_of
from ollamake.bitsandbytes_needs import bitsandbytes_jobs, evaluate_bitsandbytes
from ollamake.checkpoint_evaluation import compare_checkpoints, require_same_weights, text_chunks
from ollamake.checkpoint_statistics import TokenFigures
from ollamake.errors import OllamakeError
from ollamake.perplexity_reference import EvaluationText
from ollamake.quality_summary import summarize
from ollamake.quality_table import quality_markdown


def test_the_statistics_are_those_of_llama_perplexity() -> None:
    """Sums as kl_divergence() takes them, token by token."""
    torch.manual_seed(5)
    own, other = torch.randn(50, 97), torch.randn(50, 97)
    following = torch.randint(97, (50,))
    gathered = TokenFigures()
    for first, last in ((0, 20), (20, 50)):
        gathered.add(own[first:last], other[first:last], following[first:last])
    assert gathered.tokens == 50
    figures = gathered.figures()
    nll, nll_base, kld, change, same = [], [], [], [], 0
    for token in range(50):
        base = [math.exp(value) for value in own[token].tolist()]
        measured = [math.exp(value) for value in other[token].tolist()]
        p, q = [one / sum(base) for one in base], [one / sum(measured) for one in measured]
        said = int(following[token])
        nll.append(-math.log(q[said]))
        nll_base.append(-math.log(p[said]))
        kld.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        change.append(q[said] - p[said])
        same += p.index(max(p)) == q.index(max(q))

    def mean(values: list[float]) -> tuple[float, float]:
        average = sum(values) / len(values)
        return average, math.sqrt((sum(one**2 for one in values) / len(values) - average**2) / (len(values) - 1))

    assert figures["ppl"]["value"] == pytest.approx(math.exp(mean(nll)[0]))
    assert figures["ppl"]["error"] == pytest.approx(math.exp(mean(nll)[0]) * mean(nll)[1])
    assert figures["ppl_reference"]["value"] == pytest.approx(math.exp(mean(nll_base)[0]))
    ratio, error = mean([one - base for one, base in zip(nll, nll_base, strict=True)])
    assert figures["ppl_ratio"] == pytest.approx({"value": math.exp(ratio), "error": math.exp(ratio) * error})
    assert figures["kld"]["mean"] == pytest.approx(dict(zip(("value", "error"), mean(kld), strict=True)))
    assert figures["kld"]["max"] == pytest.approx(max(kld))
    assert figures["kld"]["p99"] == pytest.approx(np.quantile(kld, 0.99))
    square, error = mean([one**2 for one in change])
    rms = math.sqrt(square)
    assert figures["delta_p"]["rms"] == pytest.approx({"value": 100 * rms, "error": 100 * 0.5 / rms * error})
    share = same / 50
    assert figures["same_top"] == pytest.approx(
        {"value": 100 * share, "error": 100 * math.sqrt(share * (1 - share) / 49)}
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "base"
    save_small_base(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> EvaluationText:
    path = tmp_path / "evaluation.txt"
    path.write_text("road design 道路設計 <|im_end|> 0123456789\n" * 40, encoding="utf-8")
    return EvaluationText(path, {"context": 64, "chunks": 6, "parse_special": True})


def test_chunks_with_and_without_a_bos(small: Path, text: EvaluationText) -> None:
    read, scored = text_chunks(small, text, None)
    assert read.shape == (6, 64)
    assert torch.equal(read, scored)
    with_bos, after = text_chunks(small, text, "<|im_end|>")
    assert with_bos[:, 0].tolist() == [2] * 6
    # llama-perplexity puts one before the whole text too, and scores what stood in the places of the others.
    assert after.flatten()[1:].tolist() == scored.flatten()[:-1].tolist()
    assert torch.equal(with_bos[:, 1:], after[:, 1:])
    with pytest.raises(OllamakeError, match="'no token' before a text, which is no token"):
        text_chunks(small, text, "no token")
    text.path.write_text("short", encoding="utf-8")
    with pytest.raises(OllamakeError, match="chunks"):
        text_chunks(small, text, None)


def test_a_model_against_itself_and_another(small: Path, text: EvaluationText, tmp_path: Path) -> None:
    same = compare_checkpoints(small, small, text, None, torch.float32)
    assert (same["chunks"], same["context"], same["tokens"]) == (6, 64, 6 * 31)
    assert same["kld"]["mean"] == {"value": 0.0, "error": 0.0}
    assert same["ppl"] == same["ppl_reference"]
    assert same["ppl_ratio"] == {"value": 1.0, "error": 0.0}
    assert same["same_top"]["value"] == 100.0
    other = tmp_path / "other"
    save_small_base(other, seed=2)
    figures = compare_checkpoints(small, other, text, None, torch.float32)
    assert figures["kld"]["mean"]["value"] > 0
    assert figures["ppl_reference"] == same["ppl"]
    for file in other.glob("*.safetensors"):
        save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(OllamakeError, match=r"NaN or infinity in ppl\.value"):
        compare_checkpoints(small, other, text, None, torch.float32)
    (other / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(OllamakeError, match=f"transformers cannot load {other}"):
        compare_checkpoints(small, other, text, None)


def test_a_checkpoint_that_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    require_same_weights({"files": {"model.safetensors": {"size": 4}}}, tmp_path)
    with pytest.raises(OllamakeError, match=r"model\.safetensors is missing or has another size"):
        require_same_weights({"files": {"model.safetensors": {"size": 5}}}, tmp_path)


def checkpoint(kind: str, size: int, kld: float, **changes: Any) -> dict[str, Any]:
    """Return results/M/quality/nf4.json or int8.json."""
    figures = (0.0, kld, kld / 100, 1 + kld, 0.0004, 2.0, 95.0, 0.0)
    versions = {"bitsandbytes": "0.50.2", "torch": "2.15.0", "transformers": "5.24.0"}
    return {**measurement("F16", figures), "measured": kind, "size": size, "bits_per_weight": 8 * size / 8.03e9,
            "weights_sha256": "d" * 64, "versions": versions} | changes  # fmt: skip


def summary(*checkpoints: dict[str, Any]) -> dict[str, Any]:
    kinds = ("Q8_0", "Q4_K_M")
    spec = {"limits": {"max_kld_mean": 0.05}, "on_fail": "stop", "registered": list(kinds)}
    measured, records = [measurement(kind) for kind in kinds], [record(kind) for kind in kinds]
    return summarize(
        "m", sample_plan(), text_record(), reference_record(), None, measured, records, [], spec, None, checkpoints
    )


def test_rows_of_checkpoints() -> None:
    """They stand in the table, and change nothing that is judged or recommended."""
    with_them = summary(checkpoint("nf4", 5_500_000_000, 0.04), checkpoint("int8", 9_100_000_000, 0.002))
    without = summary()
    changed = {key for key in without if without[key] != with_them[key]}
    assert changed == {"checkpoints"}
    assert [row["type"] for row in with_them["checkpoints"]] == ["int8", "nf4"]
    lines = quality_markdown(with_them).splitlines()
    (line,) = (line for line in lines if line.startswith("| nf4"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["nf4 (bitsandbytes, by transformers)", "5.50", "5.48", "0.04000 ± 0.00040"]
    assert cells[-1] == "not judged"
    (said,) = (
        line for line in lines if line.startswith("- bitsandbytes checkpoints (bitsandbytes 0.50.2, torch 2.15.0,")
    )
    assert "perplexity of 6.23163 by transformers, 6.23163 by llama-perplexity" in said
    assert "bitsandbytes" not in quality_markdown(without)
    assert FIGURES["Q4_K_M"][1] < 0.04


def test_programs_that_disagree_about_the_fine_tune() -> None:
    near = checkpoint("nf4", 1, 0.04, ppl_reference={"value": 6.25, "error": 0.04})
    assert not any("disagree" in sentence for sentence in summary(near)["sentences"])
    far = checkpoint("nf4", 1, 0.04, ppl_reference={"value": 6.4, "error": 0.04})
    (said,) = (sentence for sentence in summary(far)["sentences"] if "disagree" in sentence)
    assert "perplexity 6.4 of 100 chunks and 6.23 of 100" in said
    assert any(
        "of 99 chunks and" in sentence for sentence in summary(checkpoint("nf4", 1, 0.04, chunks=99))["sentences"]
    )
    with pytest.raises(OllamakeError, match="nf4 is of another text"):
        summary(checkpoint("nf4", 1, 0.04, text_sha256="0" * 64))
    assert near["text_sha256"] == TEXT_SHA


def asked(**keys: Any) -> dict[str, Any]:
    return {"bitsandbytes": {"types": [], "skip_modules": None, "compute_dtype": "bfloat16", "evaluate": False} | keys}


def test_what_cannot_be_asked() -> None:
    assert bitsandbytes_of(asked(), "models.m", serves_adapter=True, is_measured=False) == BitsAndBytes()
    with pytest.raises(
        OllamakeError, match=r"models\.m\.bitsandbytes\.types: nf4 is made from merged weights, and with"
    ):
        bitsandbytes_of(asked(types=["nf4"]), "models.m", serves_adapter=True, is_measured=True)
    with pytest.raises(OllamakeError, match=r"models\.m\.bitsandbytes\.evaluate: nothing is measured without text"):
        bitsandbytes_of(asked(types=["nf4"], evaluate=True), "models.m", serves_adapter=False, is_measured=False)
    # From `defaults`, for a model that has no checkpoint.
    given = bitsandbytes_of(asked(evaluate=True), "models.m", serves_adapter=False, is_measured=False)
    assert not given.evaluate


def test_the_memory_of_an_evaluation() -> None:
    """4 bytes a parameter of the merged weights, and the checkpoint beside them."""
    shapes = {"model.embed_tokens.weight": [152064, 5120], "model.layers.0.mlp.up_proj.weight": [5120 * 1000, 5120]}
    tensors = [{"name": name, "shape": shape, "stored": "BF16", "edits": []} for name, shape in shapes.items()]
    plan = {"shards": [{"file": "one", "tensors": tensors}]}
    parameters = 5120 * (152064 + 5120 * 1000)
    needed = evaluate_bitsandbytes(plan, "nf4", 512).mem_mb * 1e6
    assert 6.5 * parameters < needed < 8 * parameters
    jobs = dict(bitsandbytes_jobs(plan, ("nf4", "int8"), 512))
    assert len(jobs) == 4
    assert max(jobs, key=lambda job: jobs[job].mem_mb).startswith(
        "evaluating int8 against the merged weights in float32"
    )
    assert json.dumps(sorted(dict(bitsandbytes_jobs(plan, ("nf4",), None)))) == '["quantizing one to nf4"]'
