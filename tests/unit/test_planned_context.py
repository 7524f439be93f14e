"""What num_ctx: auto takes from a plan, and what it says of where that comes from."""

from typing import Any

import pytest
from ghost_of_qwen import gpu, qwen_32b, spec

from ollamake import hardware
from ollamake.errors import OllamakeError
from ollamake.memory_plan import memory_plan
from ollamake.planned_context import num_ctx_of_plan


def auto(kind: str, ghost: dict[str, Any] | None = None, gpus: Any = None, **asked: Any) -> tuple[int, str]:
    gpus = [gpu(36, "A100-40GB")] if gpus is None else gpus
    return num_ctx_of_plan(memory_plan("m", ghost or qwen_32b(), [], spec(gpus, **asked)), kind)


def test_the_largest_that_fits_the_deciding_place() -> None:
    assert auto("Q8_0") == (10752, "by the plan, the largest with which Q8_0 fits A100-40GB (f16 cache, 1 slot)")
    assert auto("Q8_0", kv_cache="q8_0")[0] > 10752
    assert auto("Q8_0", parallel=2, context=2048) == (
        5376,  # half of it for each of two slots
        "by the plan, the largest with which Q8_0 fits A100-40GB (f16 cache, 2 slots)",
    )
    assert auto("Q8_0", gpus=[])[0] == 32768  # in RAM


def test_not_more_than_the_model_was_trained_for() -> None:
    trained = "by the plan, the length the model was trained for; "
    assert auto("Q6_K") == (32768, f"{trained}Q6_K fits A100-40GB with it (f16 cache, 1 slot)")
    assert auto("Q6_K", qwen_32b(trained_context=5000))[0] == 5000
    assert auto("Q6_K", qwen_32b(trained_context=5000), context=8192)[0] == 5000
    measured = "by the plan, the largest that was measured; Q6_K fits"
    assert auto("Q6_K", qwen_32b(trained_context=10**6))[1].startswith(measured)
    assert auto("Q6_K", qwen_32b(trained_context=None))[1].startswith(measured)


def test_a_shorter_context_than_asked_where_that_does_not_fit() -> None:
    assert auto("Q8_0", context=16384) == (
        10752,
        "by the plan, the largest with which Q8_0 fits A100-40GB (f16 cache, 1 slot), though 16,384 are asked (plan.context)",
    )


def test_what_is_asked_where_only_a_useless_context_fits() -> None:
    """32414 + 256 x 0.25 + 206 MiB and less than 2048 tokens more are usable; the rest of the layers goes into RAM."""
    narrow = [gpu((32414 + 206 + 400) / 1024 + 1 + 500 / 1024, "narrow")]
    tokens, origin = auto("Q8_0", gpus=narrow)
    assert tokens == 8192
    assert origin.startswith(
        "by the plan, what is asked (plan.context); Q8_0 with it needs 1.6 GiB more than narrow has, "
    )
    assert origin.endswith(" of its 65 layers fit on the GPU")
    tokens, origin = auto("F16", context=10**5, gpus=[])
    assert tokens == 32768
    assert origin == (
        "by the plan, the length the model was trained for, as more is asked (100,000, plan.context); F16 with it needs"
        " 8.3 GiB more than RAM has"  # 62495 + 8192 + 234 MiB; 64 GiB less 3
    )


def test_what_is_asked_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = qwen_32b(memory={"source": None, "reason": "no formula\nfor mamba"})
    assert auto("Q8_0", unknown) == (
        8192,
        "by the plan, what is asked (plan.context); whether it fits A100-40GB is unknown (no formula for mamba)",
    )
    monkeypatch.setattr(hardware, "_ram_gib", lambda: None)
    assert auto("Q8_0", gpus=[], ram_gib=None) == (
        8192,
        "by the plan, what is asked (plan.context); nothing is known of the memory (hardware)",
    )
    assert auto("Q8_0", gpus=[], ram_gib=None, context=65536)[0] == 32768


def test_the_origin_is_one_line() -> None:
    assert "\n" not in auto("Q8_0", gpus=[gpu(36, "A100\n40GB")])[1]


def test_types_without_a_context() -> None:
    with pytest.raises(OllamakeError, match=r"auto for TQ1_0 of m: .*refuses it: cannot be made of it\."):
        auto("TQ1_0")
    with pytest.raises(OllamakeError, match=r"auto for Q5_0 of m: .*the plan does not know it"):
        auto("Q5_0")
