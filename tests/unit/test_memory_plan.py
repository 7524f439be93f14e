"""The plan's arithmetic, against figures that llama.cpp printed and sums done by hand."""

import json
import logging
import random
import socket
from pathlib import Path
from typing import Any

import pytest
from ghost_of_qwen import CONTEXTS, KV_KIB, ON_GPU_MIB, gpu, of_fit_params, of_server, qwen_32b, rows, spec

import plan_memory
from ollamake import hardware
from ollamake.chosen_types import chosen_warnings
from ollamake.context_fit import ContextMemory, Need, gpu_layers
from ollamake.errors import OllamakeError
from ollamake.memory_formula import memory_by_formula
from ollamake.memory_plan import memory_plan
from ollamake.plan_sentences import asked as asked_for
from ollamake.published_quality import CANDIDATES, by_quality
from ollamake.record_seal import read_record

A100 = gpu(36, "A100-40GB")


def plan(ghost: dict[str, Any] | None = None, gpus: Any = (A100,), **asked: Any) -> dict[str, Any]:
    alternatives = asked.pop("alternatives", [])
    return memory_plan("m", ghost or qwen_32b(), alternatives, spec(gpus if gpus is None else list(gpus), **asked))


def row(of: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(row for row in of["rows"] if row["type"] == kind)


def fit(of: dict[str, Any], kind: str) -> dict[str, Any]:
    deciding = [budget["deciding"] for budget in of["budgets"]]
    assert deciding.count(True) == 1
    return row(of, kind)["fits"][deciding.index(True)]


@pytest.mark.parametrize(
    ("context", "kv", "totals"),
    [
        (4096, "f16", {"Q8_0": 34143, "Q6_K": 26756, "Q5_K_M": 23398, "Q4_K_M": 20238}),
        (8192, "f16", {"Q8_0": 35171, "Q6_K": 27784, "Q5_K_M": 24426, "Q4_K_M": 21266}),
        (32768, "f16", {"Q8_0": 41339, "Q6_K": 33952, "Q5_K_M": 30594, "Q4_K_M": 27434}),
        (32768, "q8_0", {"Q8_0": 37499, "Q6_K": 30112, "Q5_K_M": 26754, "Q4_K_M": 23594}),
    ],
)
def test_totals_are_those_worked_out_from_llama_server(context: int, kv: str, totals: dict[str, int]) -> None:
    """The table's totals have 500 MiB of CUDA in them; here they are taken off what is usable."""
    planned = plan(context=context, kv_cache=kv)
    for kind, total in totals.items():
        assert fit(planned, kind)["total_mib"] == pytest.approx(total - 500, abs=2)


@pytest.mark.parametrize(
    ("compute", "largest", "mib", "next_mib"),
    [
        # 32413.2 MiB of weights, 0.25 MiB a token, and the compute buffer.
        (of_fit_params, 10240, 32414 + 2560 + 317, 32414 + 2624 + 317),
        (of_server, 10752, 32414 + 2688 + 213, 32414 + 2752 + 213),
    ],
)
def test_on_36_gib_the_best_type_of_a_32b_is_q8_0(compute: Any, largest: int, mib: int, next_mib: int) -> None:
    usable = 36 * 1024 - 500 - 1024
    assert mib <= usable == 35340 < next_mib

    planned = plan(qwen_32b(compute))

    assert planned["budgets"][0] == {
        "name": "A100-40GB",
        "kind": "gpu",
        "memory_gib": 36.0,
        "usable_mib": 35340,
        "devices": 1,
        "deciding": True,
    }
    assert planned["recommendation"]["type"] == "Q8_0"
    assert row(planned, "Q8_0")["gpu_mib"] == 32414
    assert row(planned, "Q8_0")["host_mib"] == 789
    assert fit(planned, "Q8_0")["largest_context"]["f16"] == largest
    assert planned["num_ctx"]["Q8_0"]["tokens"] == largest
    assert fit(planned, "Q6_K")["largest_context"]["f16"] == 32768


def test_the_recommendation_says_what_it_is_for_and_what_is_next_to_it() -> None:
    found = plan()["recommendation"]
    # 32414 + 2048 + 210 MiB; F16 61010 + 2258; Q6_K 25026 + 2258.
    assert found == {
        "type": "Q8_0",
        "reason": "best of those that fit A100-40GB: 33.9 GiB of 34.5 GiB usable with a context of 8,192 tokens (f16 cache,"
        " 1 slot)",
        "up": {"type": "F16", "reason": "F16 needs 61.8 GiB, 27.3 GiB more than there is"},
        "down": {
            "type": "Q6_K",
            "reason": "Q6_K would leave 7.2 GiB more, for a context of up to 32,768 tokens; published quality: good",
        },
    }
    up = plan(context=16384)["recommendation"]["up"]
    assert (
        up["reason"] == "Q8_0 needs 35.9 GiB, 1.4 GiB more than there is; it fits with a context of up to 10,752 tokens"
    )


def test_the_unquantized_type_is_recommended_where_it_fits_but_never_f32_of_a_16_bit_model() -> None:
    planned = plan(gpus=[gpu(200)])
    assert fit(planned, "F32")["fits"]
    assert (planned["recommendation"]["type"], planned["recommendation"]["up"]) == ("F16", None)
    assert plan(qwen_32b(outtype="F32"), gpus=[gpu(200)])["recommendation"]["type"] == "F32"


def test_types_that_are_no_candidates_are_not_recommended() -> None:
    """IQ2_M is the only one that fits 11 GiB, and nobody is to get it unasked."""
    planned = plan(gpus=[gpu(11)], context=256)
    assert fit(planned, "IQ2_M")["fits"]
    assert planned["recommendation"] is None
    assert not row(planned, "IQ2_M")["candidate"]
    assert row(planned, "IQ2_M")["quality"]["class"] == "bad"


def test_rows_are_in_the_order_of_quality_with_what_is_refused_last() -> None:
    planned = plan()
    *made, refused = planned["rows"]
    kinds = [row["type"] for row in made]
    assert kinds == [kind for kind in by_quality() if kind in kinds]
    assert {row["type"] for row in made if row["candidate"]} == set(kinds) & set(CANDIDATES)
    assert refused == {"type": "TQ1_0", "refused": "cannot be made of it"}
    assert "TQ1_0" not in planned["num_ctx"]
    assert set(planned["num_ctx"]) == set(kinds)


def test_layers_for_a_gpu_that_is_too_small_are_those_that_llama_cpp_would_take_there() -> None:
    """-ngl n is the output layer and n - 1 blocks (src/llama-model.cpp:1589 and 1614)."""
    planned = plan(gpus=[gpu(24)])
    usable = 24 * 1024 - 500 - 1024
    output, block = 788.93, 494.13  # MiB of Q8_0

    def taken(layers: int) -> float:
        return output + (layers - 1) * (block + 2048 / 64) + 210

    layers = fit(planned, "Q8_0")["gpu_layers"]
    assert layers == 42
    assert taken(layers) <= usable < taken(layers + 1)
    assert fit(planned, "Q4_K_M")["gpu_layers"] is None
    assert fit(planned, "Q8_0")["free_mib"] == usable - 34672
    assert row(planned, "Q8_0")["fits"][1]["gpu_layers"] is None  # RAM


@pytest.mark.parametrize(
    ("usable", "layers"), [(9, 0), (10, 1), (19, 1), (20, 2), (29, 2), (30, 3), (39, 3), (40, 4), (50, 5)]
)
def test_layers_count_the_output_first(usable: int, layers: int) -> None:
    """Compute buffers of 3 MiB on each of 2 devices and 4 MiB of output; then blocks, each with 3 of 12 MiB of KV cache."""
    blocks = [5 << 20, 7 << 20, 7 << 20, 7 << 20]  # the first is the last to come
    expected = {0: 10, 1: 20, 2: 30, 3: 40, 4: 48}
    found = gpu_layers(4 << 20, blocks, Need(12, 3), usable, devices=2)
    assert found == layers == sum(need <= usable for need in expected.values())


def test_in_ram_and_in_unified_memory_everything_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = qwen_32b()
    for size in tied["types"].values():
        if "refused" not in size:
            size |= {"tied": True, "other_bytes": 4 * 5120}
    in_ram = plan(gpus=[])
    assert in_ram["budgets"][0]["kind"] == "ram"
    assert fit(in_ram, "Q8_0")["total_mib"] == 33203 + 2048 + 210  # with the 788.9 MiB of the embedding
    assert fit(plan(tied, gpus=[]), "Q8_0")["total_mib"] == 32414 + 2048 + 210
    # On the GPU a tied embedding is there as output, too.
    assert row(plan(tied), "Q8_0")["gpu_mib"] == row(plan(), "Q8_0")["gpu_mib"] == 32414
    assert fit(in_ram, "F16")["gpu_layers"] is None

    monkeypatch.setattr(hardware, "detect_gpus", lambda ram: ((hardware.Gpu("Apple M4", 48.0),), True))
    unified = plan(gpus=None)
    assert unified["hardware"] == {
        "source": "detected",
        "unified": True,
        "gpus": [{"name": "Apple M4", "memory_gib": 48.0}],
        "ram_gib": 64.0,
    }
    assert fit(unified, "Q8_0")["total_mib"] == 33203 + 2048 + 210
    assert fit(unified, "F16")["fits"] is False
    assert fit(unified, "F16")["gpu_layers"] is None


def test_every_gpu_has_compute_buffers_of_its_own() -> None:
    planned = plan(gpus=[gpu(24), gpu(24)])
    assert [(budget["name"], budget["deciding"]) for budget in planned["budgets"]] == [
        ("GPU", False),
        ("2 x GPU", True),
        ("RAM", False),
    ]
    one, both, _ = row(planned, "Q6_K")["fits"]
    assert (one["fits"], both["fits"]) == (False, True)
    assert both["total_mib"] == one["total_mib"] + 210 == 25026 + 2048 + 2 * 210


def test_slots_have_a_context_each() -> None:
    assert fit(plan(parallel=4), "Q6_K")["total_mib"] == 25026 + 4 * 2048 + 210
    assert any("OLLAMA_NUM_PARALLEL=4" in warning for warning in plan(parallel=4)["warnings"])
    with pytest.raises(OllamakeError, match=r"plan\.parallel: .*Qwen2.5-32B.*\(1, 2, 4\); found 3\. Take"):
        plan(parallel=3)


def test_the_largest_context_is_the_same_as_by_trying_all() -> None:
    """Of every type of cache, with rounded rows and a trained length that is no multiple of 256."""
    drawn = random.Random(6)
    memory = ContextMemory(qwen_32b(trained_context=30000), 1)
    assert memory.limit == 30000
    tried = [*range(256, 30000, 256), 30000]
    seen = set()
    for _ in range(200):
        kv, devices, free = drawn.choice(list(KV_KIB)), drawn.choice([1, 2]), drawn.randrange(0, 9000)
        needs = [memory.need(kv, context) for context in tried]
        fitting = [c for c, need in zip(tried, needs, strict=True) if need.kv_mib + devices * need.compute_mib <= free]
        found = memory.largest(kv, free, devices)
        assert found == max(fitting, default=0)
        seen.add(found)
    assert {0, 30000} < seen
    assert len(seen) > 50


GEMMA = {
    "general.architecture": "gemma3",
    "gemma3.block_count": 48,
    "gemma3.embedding_length": 3840,
    "gemma3.feed_forward_length": 15360,
    "gemma3.attention.head_count": 16,
    "gemma3.attention.head_count_kv": 8,
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
}


@pytest.mark.parametrize("window", [1024, 4096, 6000])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_between_measured_contexts_it_is_what_the_formula_says(window: int, kv: str, parallel: int) -> None:
    """Also where sliding windows are full, in the middle of two measured contexts."""
    shape = GEMMA | {"gemma3.attention.sliding_window": window}

    def computed(context: int) -> tuple[int, int]:
        found = memory_by_formula(shape, kv=kv, parallel=parallel, context=context)
        assert found is not None
        return found

    measured = [
        {
            "kv": kv,
            "parallel": parallel,
            "context": context,
            "kv_mib": computed(context)[0],
            "compute_mib": computed(context)[1],
        }
        for context in (*CONTEXTS, 65536, 131072)
    ]
    memory = ContextMemory(
        qwen_32b(trained_context=131072, memory={"source": "formula", "rows": measured, "impossible": {}}), parallel
    )
    for context in range(256, 131073, 256):
        kv_mib, compute_mib = computed(context)
        need = memory.need(kv, context)
        # What is measured is cut to whole MiB.
        assert need.kv_mib - kv_mib >= -1
        assert need.kv_mib - kv_mib <= (3 if context >= 2048 else measured[0]["kv_mib"])
        assert need.compute_mib - compute_mib >= -1


def test_a_window_that_is_full_before_the_last_measured_context_is_not_underestimated() -> None:
    """llama-fit-params of gemma-2-9b-it, which is trained on 8192 tokens with windows of 4096: MiB of KV cache, f16."""
    printed = {2048: 672, 3072: 1008, 4096: 1344, 4608: 1512, 5120: 1596, 6144: 1764, 8192: 2100}
    measured = [
        {"kv": "f16", "parallel": 1, "context": context, "kv_mib": printed[context], "compute_mib": 0}
        for context in (2048, 4096, 8192)
    ]
    memory = ContextMemory(qwen_32b(trained_context=8192, memory={"source": "llama-fit-params", "rows": measured}), 1)
    found = {context: memory.need("f16", context).kv_mib for context in printed}
    assert {context: found[context] for context in (2048, 3072, 4096, 4608, 8192)} == {
        context: printed[context] for context in (2048, 3072, 4096, 4608, 8192)
    }
    assert all(printed[context] <= found[context] <= 1.15 * printed[context] for context in printed)


def test_a_context_beyond_the_measured_ones_is_not_made_up() -> None:
    long = qwen_32b(trained_context=1_000_000)
    planned = plan(long, gpus=[gpu(200)])
    assert fit(planned, "Q8_0")["largest_context"]["f16"] == 32768
    assert "was trained on 1,000,000 tokens, but its memory was measured up to 32,768" in planned["warnings"][0]
    assert planned["num_ctx"]["Q8_0"]["reason"].startswith("the largest that was measured; ")
    with pytest.raises(OllamakeError, match=r"plan\.context: expected at most the 32,768 .* found 40,000"):
        plan(long, context=40000)


def test_a_context_beyond_the_trained_one_is_cut_with_a_warning() -> None:
    planned = plan(context=65536)
    assert planned["asked"]["context"] == 65536
    assert fit(planned, "Q6_K")["total_mib"] == 25026 + 8192 + 234
    assert planned["warnings"] == [
        "plan.context: 65,536 tokens are asked, but Qwen/Qwen2.5-32B-Instruct was trained on 32,768; planned with 32,768"
    ]


def test_without_a_trained_length_the_measured_one_bounds() -> None:
    assert fit(plan(qwen_32b(trained_context=None), gpus=[gpu(200)]), "Q8_0")["largest_context"]["f16"] == 32768


def test_a_context_shorter_than_every_measured_one() -> None:
    """Its KV cache is less in proportion, its compute buffer is taken for that of 2048 tokens: 32414 + 256 + 204 MiB."""
    planned = plan(gpus=[gpu((32414 + 256 + 204 + 1524) / 1024)], context=2048)
    assert fit(planned, "Q8_0")["largest_context"]["f16"] == 1024
    assert fit(planned, "Q8_0")["free_mib"] == -256


def test_not_even_256_tokens() -> None:
    """Weights alone are within what is usable: 25026 of 25100 MiB; 64 MiB of KV and 202 of compute are too many."""
    planned = plan(gpus=[gpu((25100 + 1524) / 1024)], context=256)
    assert fit(planned, "Q6_K")["largest_context"]["f16"] == 0
    assert fit(planned, "Q6_K")["fits"] is False


def test_nothing_fits_says_by_how_much_and_what_to_do() -> None:
    planned = plan(gpus=[gpu(12, "RTX 3060")])
    assert planned["recommendation"] is None
    # 14872 + 2048 + 210 MiB; 12 GiB less 1524 MiB.
    assert planned["no_recommendation"] == (
        "nothing fits RTX 3060: Q3_K_M, the smallest candidate, needs 16.7 GiB with a context of 8,192 tokens (f16 cache,"
        f" 1 slot), there are 10.5 GiB; {fit(planned, 'Q3_K_M')['gpu_layers']} of its 65 layers fit on the GPU. What helps:"
        " reduce plan.context, set plan.kv_cache to q8_0 or q4_0, plan for a larger GPU (hardware.gpus), compare smaller"
        " models (plan.alternatives)"
    )
    # (10764 - 210 - 638) / (222 + 32)
    assert fit(planned, "Q3_K_M")["gpu_layers"] == 1 + int((10764 - 210 - 609.1) / ((14872 - 609.1) / 64 + 32))
    # 17 GiB less 1524 MiB are 15884; 14872 + 768 + 205 fit, 14872 + 832 + 206 do not.
    assert "reduce plan.context (3,072 tokens fit), set" in plan(gpus=[gpu(17)])["no_recommendation"]
    in_ram = plan(gpus=[], ram_gib=8, kv_cache="q4_0")["no_recommendation"]
    assert "plan for more RAM (hardware.ram_gib)" in in_ram
    assert "plan.kv_cache" not in in_ram
    assert "layers" not in in_ram


def test_hardware_of_which_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_ram_gib", lambda: None)
    planned = plan(gpus=[], ram_gib=None)
    assert planned["budgets"] == []
    assert planned["recommendation"] is None
    assert planned["no_recommendation"].endswith("Set hardware.gpus or hardware.ram_gib")
    assert row(planned, "Q8_0")["fits"] == []
    assert planned["num_ctx"]["Q8_0"]["tokens"] == 8192


def test_without_figures_of_memory_nothing_is_said_to_fit() -> None:
    planned = plan(qwen_32b(memory={"source": None, "reason": "no formula for mamba"}))
    assert fit(planned, "Q8_0") == {
        "fits": None,
        "total_mib": None,
        "free_mib": None,
        "largest_context": {"f16": None, "q8_0": None, "q4_0": None},
        "gpu_layers": None,
    }
    assert planned["recommendation"] is None
    assert "is unknown (no formula for mamba)" in planned["no_recommendation"]
    assert "llama-fit-params" in planned["no_recommendation"]
    assert planned["warnings"] == []


def test_a_cache_that_the_model_cannot_have() -> None:
    refused = {"q4_0": "V cache quantization requires ...", "q8_0": "the same"}
    memory = {"source": "llama-fit-params", "rows": [r for r in rows() if r["kv"] == "f16"], "impossible": refused}
    ghost = qwen_32b(memory=memory)
    assert fit(plan(ghost), "Q8_0")["largest_context"] == {"f16": 10752, "q8_0": None, "q4_0": None}
    assert "plan.kv_cache" not in plan(ghost, gpus=[gpu(12)])["no_recommendation"]
    planned = plan(ghost, kv_cache="q4_0")
    assert fit(planned, "Q8_0")["fits"] is None
    assert fit(planned, "Q8_0")["largest_context"]["f16"] == 10752
    assert planned["no_recommendation"] == (
        "Qwen/Qwen2.5-32B-Instruct cannot have a KV cache of q4_0 (V cache quantization requires ...), so nothing can be said"
        " to fit. Set plan.kv_cache to f16"
    )


def test_a_cache_that_the_model_cannot_have_with_several_slots() -> None:
    """As phi-4, whose llama-fit-params aborts with a quantized cache of more than one slot."""
    refused = {"q8_0": {"2": "fatal error", "4": "fatal error with four"}}
    measured = [r for r in rows() if r["kv"] == "f16" or r["parallel"] == 1]
    memory = {"source": "llama-fit-params", "rows": measured, "impossible": {}, "impossible_slots": refused}
    ghost = qwen_32b(memory=memory)
    assert plan(ghost, kv_cache="q8_0")["rows"] == plan(kv_cache="q8_0")["rows"]
    planned = plan(ghost, kv_cache="q8_0", parallel=4)
    assert fit(planned, "Q8_0")["fits"] is None
    assert fit(planned, "Q8_0")["largest_context"]["q8_0"] is None
    assert fit(planned, "Q8_0")["largest_context"]["f16"] > 0
    assert planned["no_recommendation"] == (
        "Qwen/Qwen2.5-32B-Instruct cannot have a KV cache of q8_0 (with 4 slots: fatal error with four), so nothing can be"
        " said to fit. Set plan.kv_cache to f16"
    )
    assert "is unknown (with 4 slots: fatal error with four)" in planned["num_ctx"]["Q8_0"]["reason"]
    assert ContextMemory(ghost, 1).why_unknown("q8_0") is None
    assert ContextMemory(ghost, 2).why_unknown("q8_0") == "with 2 slots: fatal error"
    assert ContextMemory(ghost, 2).why_unknown("q4_0") == "it was not measured"


def test_slots_that_no_cache_can_have_were_measured_all_the_same() -> None:
    memory = {
        "source": "llama-fit-params",
        "rows": rows(parallel=(1,)),
        "impossible_slots": {"f16": {"2": "fatal error"}},
    }
    ghost = qwen_32b(memory=memory)
    assert fit(plan(ghost, parallel=2), "Q8_0")["fits"] is None
    assert ContextMemory(ghost, 2).limit is None
    with pytest.raises(OllamakeError, match=r"plan\.parallel: .* measured with \(1, 2\); found 3"):
        plan(ghost, parallel=3)


def test_a_cache_with_fewer_measured_contexts_than_another() -> None:
    measured = [r for r in rows() if r["kv"] == "f16" or r["context"] <= 8192]
    ghost = qwen_32b(memory={"source": "llama-fit-params", "rows": measured, "impossible": {}, "impossible_slots": {}})
    memory = ContextMemory(ghost, 1)
    assert (memory.longest("f16"), memory.longest("q8_0"), memory.longest("q5_0")) == (32768, 8192, None)
    assert fit(plan(ghost, gpus=[gpu(200)]), "Q8_0")["largest_context"] == {"f16": 32768, "q8_0": 8192, "q4_0": 8192}
    with pytest.raises(OllamakeError, match="at most the 8,192 tokens that were measured"):
        memory.need("q8_0", 8193)
    odd = [r | {"context": 8000} if r["context"] == 8192 else r for r in measured]
    assert ContextMemory(ghost | {"memory": ghost["memory"] | {"rows": odd}}, 1).largest("q8_0", 10**6, 1) == 8000


@pytest.mark.parametrize(
    ("host", "elsewhere"),
    [
        (None, None),
        ("127.0.0.1", None),
        ("http://localhost:11434", None),
        ("[::1]:11434", None),
        ("0.0.0.0", None),
        ("127.0.1.1:1234", None),
        (socket.gethostname(), None),
        ("gpu.example.org", "http://gpu.example.org:11434"),
        ("https://10.0.0.7", "https://10.0.0.7:443"),
    ],
)
def test_hardware_of_here_is_not_that_of_a_server_elsewhere(
    host: str | None, elsewhere: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "detect_gpus", lambda ram: ((hardware.Gpu("here", 36.0),), False))
    warnings = plan(gpus=None, host=host)["warnings"]
    assert plan(host=host)["warnings"] == []  # configured
    if elsewhere is None:
        assert warnings == []
    else:
        assert len(warnings) == 1
        assert f"the Ollama server is {elsewhere.removesuffix(':443')}" in warnings[0]
        assert "hardware.gpus" in warnings[0]


def test_warnings_of_estimates_and_of_the_cache() -> None:
    assert plan()["warnings"] == []
    memory = {"source": "formula", "rows": rows(), "impossible": {}}
    planned = plan(qwen_32b(exact=False, memory=memory), kv_cache="q8_0")
    cache, tokenizer, formula = planned["warnings"]
    assert "OLLAMA_KV_CACHE_TYPE=q8_0" in cache
    assert "OLLAMA_FLASH_ATTENTION=1" in cache
    assert "0.1 %" in tokenizer
    assert "formula" in formula


def test_types_that_the_user_wants_and_that_do_not_fit() -> None:
    planned = plan(gpus=[gpu(24)])
    lacking = (32414 + 2048 + 210 - 23052) / 1024
    assert chosen_warnings(planned, ["Q4_K_M", "Q8_0", "TQ1_0"]) == [
        f"Q8_0 does not fit GPU, {lacking:.1f} GiB are lacking; 42 of its 65 layers fit on the GPU"
    ]
    assert chosen_warnings(plan(gpus=[], ram_gib=16), ["Q8_0"])[0].startswith("Q8_0 does not fit RAM, ")
    unknown = plan(qwen_32b(memory={"source": None, "reason": "no formula for mamba"}))
    assert chosen_warnings(unknown, ["Q8_0"]) == []


def test_alternatives_are_judged_by_the_same_measure() -> None:
    other = qwen_32b(name="org/other", trained_context=4096, exact=False)
    planned = plan(alternatives=[other, qwen_32b()])
    assert planned["alternatives"][1]["rows"] == planned["rows"]
    found = planned["alternatives"][0]
    assert set(found) == {
        *("name", "source", "architecture", "parameters", "trained_context", "exact"),
        *("rows", "recommendation", "no_recommendation", "warnings"),
    }
    assert found["name"] == "org/other"
    assert fit(planned | {"rows": found["rows"]}, "Q8_0")["total_mib"] == 32414 + 1024 + 206
    assert ["was trained on 4,096" in found["warnings"][0], len(found["warnings"])] == [True, 2]
    assert planned["warnings"] == []


def test_weights_for_transformers_are_compared_with_every_place() -> None:
    planned = plan()
    assert [budget["kind"] for budget in planned["budgets"]] == ["gpu", "ram"]
    assert planned["transformers"] == [
        {"name": "FP16", "bytes": 65527752704, "fits": [False, False]},  # 61.03 GiB; 64 GiB less 3
        {"name": "INT8", "bytes": 34200000000, "fits": [True, True]},
        {"name": "NF4", "bytes": 19000000000, "fits": [True, True]},
    ]


def test_small_models_are_told_in_mib() -> None:
    tiny = qwen_32b()
    for size in tiny["types"].values():
        if "refused" not in size:
            size |= {"block_bytes": [1000] * 64, "other_bytes": 10, "embedding_bytes": 10, "bytes": 64020}
    planned = plan(tiny, gpus=[gpu(1.7)])
    # 1.7 GiB less 1524 MiB are 216 MiB: too few for 8192 tokens in any type, all of which are equally small.
    assert planned["no_recommendation"].startswith("nothing fits GPU: F16, the smallest candidate, needs 2.2 GiB")
    short = tiny["memory"]["rows"] = [{"kv": "f16", "parallel": 1, "context": 256, "kv_mib": 1, "compute_mib": 3}]
    lean = plan(tiny | {"trained_context": 256}, gpus=[gpu(1.7)])
    assert (
        f": {short[0]['kv_mib'] + short[0]['compute_mib'] + 1} MiB of 0.2 GiB usable"
        in lean["recommendation"]["reason"]
    )
    assert lean["num_ctx"]["F16"]["tokens"] == 256
    fitting = plan(tiny | {"trained_context": 256}, gpus=[gpu(36)])["recommendation"]
    assert (fitting["type"], fitting["down"]) == ("F16", None)


def test_entry_point_writes_the_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ghost, other, output = tmp_path / "ghost.json", tmp_path / "other.json", tmp_path / "m" / "plan.json"
    ghost.write_text(json.dumps(qwen_32b()), "utf-8")
    other.write_text(json.dumps(qwen_32b(name="org/other")), "utf-8")
    asked = spec([A100])
    arguments = [
        "--ghost",
        str(ghost),
        "--alternatives",
        str(other),
        "--spec",
        json.dumps(asked),
        "--output",
        str(output),
    ]
    with caplog.at_level(logging.WARNING, "ollamake"):
        plan_memory.main(["--name", "m", *arguments])
    written = read_record(output)
    assert written == memory_plan("m", qwen_32b(), [qwen_32b(name="org/other")], asked)
    assert caplog.messages == written["warnings"]
    assert set(written) == {
        *(
            "model",
            "name",
            "source",
            "exact",
            "architecture",
            "parameters",
            "trained_context",
            "block_count",
            "outtype",
        ),
        *("unquantized_bytes", "asked", "hardware", "budgets", "memory", "rows", "recommendation", "no_recommendation"),
        *("num_ctx", "transformers", "warnings", "alternatives", "with_imatrix"),
    }


def test_an_adapter_that_is_left_out_is_named() -> None:
    (warning,) = plan(left_out={"adapters": True})["warnings"]
    assert warning.startswith("models.m: planned without its adapter")


def test_an_adapter_beside_the_base_is_counted() -> None:
    """Rank 32 on all weights of a 32B takes half a GiB more: contexts get shorter, and what just fitted does not."""
    ghost = qwen_32b() | {"adapter_bytes": 537 * 2**20 - 1}
    without, planned = plan(ghost), plan(ghost, serves_adapter=True)
    assert row(planned, "Q4_K_M")["gpu_mib"] == row(without, "Q4_K_M")["gpu_mib"] + 537
    assert fit(planned, "Q8_0")["largest_context"]["f16"] < fit(without, "Q8_0")["largest_context"]["f16"]
    assert "The adapter's 0.52 GiB in float32 are counted" in asked_for(planned)
    assert "adapter" not in asked_for(without)
    assert row(planned, "Q4_K_M")["bytes"] == row(without, "Q4_K_M")["bytes"]


def with_one_block_more(ghost: dict[str, Any]) -> dict[str, Any]:
    """Let an importance matrix change the types in a Q4_K_M, so that it has a MiB more."""
    size = ghost["types"]["Q4_K_M"]
    larger = size | {"imatrix": True, "other_bytes": size["other_bytes"] + 2**20}
    return ghost | {"with_imatrix": {"Q4_K_M": larger}}


def test_sizes_that_an_importance_matrix_changes_are_judged_too() -> None:
    planned = plan(with_one_block_more(qwen_32b()))
    (found,) = planned["with_imatrix"]
    assert (found["type"], found["imatrix"], row(planned, "Q4_K_M")["imatrix"]) == ("Q4_K_M", True, False)
    assert found["gpu_mib"] == row(planned, "Q4_K_M")["gpu_mib"] + 1
    assert found["quality"]["kld"] < row(planned, "Q4_K_M")["quality"]["kld"]


def test_a_model_with_an_importance_matrix_has_the_sizes_with_it_of_types_that_use_one() -> None:
    ghost = with_one_block_more(qwen_32b())
    without, planned = plan(ghost), plan(ghost, imatrix=True)
    assert planned["with_imatrix"] == []
    used = {found["type"] for found in planned["rows"] if found.get("imatrix")}
    assert used == {*ON_GPU_MIB, "Q6_K", "IQ2_M"}
    assert row(planned, "Q8_0") == row(without, "Q8_0")
    assert row(planned, "Q4_K_M") == without["with_imatrix"][0]
    assert planned["recommendation"]["type"] == without["recommendation"]["type"]
