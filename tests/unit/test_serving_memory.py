"""What fits GPUs that serve with vLLM, by the plan: sums done by hand for Qwen2.5-32B (0.25 MiB of KV cache a token)."""

from __future__ import annotations

from typing import Any

import pytest
from ghost_of_qwen import gpu, qwen_32b, spec

from ollamake.memory_plan import memory_plan
from ollamake.serving_memory import adapter_slot_bytes, pipeline_devices, room_for, tensor_devices, working_mib

CONFIG = {
    "model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064,
}  # fmt: skip


def plan(gpus: Any, ghost: dict[str, Any] | None = None, **asked: Any) -> dict[str, Any]:
    return memory_plan("m", ghost or qwen_32b(), [], spec(list(gpus), **asked))


def test_the_estimate_of_what_a_server_takes() -> None:
    """2048 x 2 bytes x (5 x 5120 + 3 x 27648), 256 x 152064 x 12 bytes, and 1 GiB."""
    assert working_mib(CONFIG, 1) == 870 + 1024
    assert working_mib(CONFIG, 2) == 708 + 1024


def test_one_gpu_for_all() -> None:
    """62493 MiB of weights and 1894 for the server leave 15894 of 80281: more than the 8192 that 32,768 tokens take."""
    room = room_for("merged", plan([gpu(80, "H100")]), CONFIG, None)
    assert (room.devices, room.utilization, room.context, room.fits) == (1, 0.98, 32768, True)
    assert room.sentences == ("32,768 tokens: the length the model was trained for; it fits H100",)


def test_two_gpus_share_every_layer() -> None:
    """Of 35020 MiB each: 31247 of weights, 1732 for the server; 2041 for half of the cache are 16,328 tokens, in steps of 256."""
    room = room_for("merged", plan([gpu(36, "A100")] * 2), CONFIG, None)
    assert (room.devices, room.split_by_layers, room.utilization) == (2, False, 0.95)
    assert (room.context, room.fits) == (16128, True)


def test_it_does_not_say_that_more_fits_than_the_plan() -> None:
    served = set()
    for gib in (64, 66, 67, 68, 70, 72, 76, 80):
        made = plan([gpu(gib, "one")])
        room = room_for("merged", made, CONFIG, None)
        (fits,) = [row["fits"] for row in made["rows"] if row["type"] == "F16"]
        assert not room.fits or room.context <= fits[0]["largest_context"]["f16"]
        served.add((room.fits, room.context))
    assert (False, 8192) in served
    assert len(served) > 3


@pytest.mark.parametrize(
    ("checkpoint", "context"),
    # 18120 and 32616 MiB of weights: 15006 and 510 MiB are left for the cache.
    [("nf4", 32768), ("int8", 8192)],
)
def test_quantized_weights(checkpoint: str, context: int) -> None:
    room = room_for(checkpoint, plan([gpu(36, "A100")]), CONFIG, None)
    assert room.context == context
    assert room.fits is (checkpoint == "nf4")


def test_quantized_weights_are_split_by_layers() -> None:
    """Half of 32616 MiB on each GPU of 24, of which 23040 may be taken; 1894 for the server, 4838 for half of the cache."""
    room = room_for("int8", plan([gpu(24, "RTX 4090")] * 2), CONFIG, None)
    assert (room.devices, room.split_by_layers, room.fits, room.context) == (2, True, True, 32768)


def test_what_does_not_fit_is_said_with_what_is_missing() -> None:
    """62493 + 1894 + 2048 MiB for 8,192 tokens against 93 % of 24 GiB."""
    room = room_for("merged", plan([gpu(24, "RTX 4090")]), CONFIG, None)
    assert (room.fits, room.context, room.utilization) == (False, 8192, 0.93)
    assert room.sentences[0] == (
        "8,192 tokens DO NOT FIT: they need 42.6 GiB more than the 22.3 GiB that may be taken of RTX 4090"
    )


def test_less_than_is_asked_may_fit() -> None:
    """Of 67 GiB 97 % may be taken, 66549 MiB: 2162 are left, which are 8,648 tokens, in steps of 256."""
    room = room_for("merged", plan([gpu(67, "one")], context=16384), CONFIG, None)
    assert (room.fits, room.context) == (True, 8448)
    assert "16,384 tokens are asked, which need 1.9 GiB more than there is" in room.sentences


def test_the_user_says_how_long() -> None:
    made = plan([gpu(80, "H100")])
    assert room_for("merged", made, CONFIG, 4096).context == 4096
    room = room_for("merged", made, CONFIG, 99999)
    assert room.context == 32768
    assert any("num_ctx asks for 99,999 tokens; the model was trained on 32,768" in one for one in room.sentences)


def test_without_gpus_nothing_is_said_of_memory() -> None:
    room = room_for("merged", plan([]), CONFIG, None)
    assert (room.utilization, room.fits, room.context, room.devices) == (None, None, 8192, 1)
    assert any(sentence.startswith("hardware.gpus: no GPU is known") for sentence in room.sentences)


def test_an_unknown_cache_is_said() -> None:
    ghost = qwen_32b(memory={"source": None, "reason": "no program", "rows": []})
    room = room_for("merged", plan([gpu(80, "H100")], ghost), CONFIG, None)
    assert room.fits is None
    assert "whether it fits H100 is not known: no program" in room.sentences


def test_the_smallest_gpu_decides() -> None:
    both = room_for("merged", plan([gpu(80, "H100"), gpu(36, "A100")]), CONFIG, None)
    assert both == room_for("merged", plan([gpu(36, "A100")] * 2), CONFIG, None)


@pytest.mark.parametrize(
    ("gpus", "heads", "kv_heads", "inner", "used"),
    [
        (1, 40, 8, 27648, 1),
        (3, 40, 8, 27648, 2),
        (4, 40, 8, 27648, 4),
        (5, 40, 8, 27648, 4),  # 5 would divide 40, but not 8
        (8, 40, 8, 27648, 8),
        (6, 12, 2, 8960, 4),  # two heads of keys, each on two
        (2, 14, 2, 4865, 1),  # a layer of odd size
        (2, 71, 1, 100, 1),
    ],
)
def test_gpus_divide_heads_and_layers_evenly(gpus: int, heads: int, kv_heads: int, inner: int, used: int) -> None:
    config = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": inner}
    assert tensor_devices(gpus, config) == used


def test_layers_bound_a_pipeline() -> None:
    assert pipeline_devices(8, {"num_hidden_layers": 3}) == 3
    assert pipeline_devices(2, CONFIG) == 2


def test_the_room_of_an_adapter() -> None:
    """Two matrices of rank 16 for every linear layer, in 16 bits; not for the embedding or the head."""
    tensors = [
        ("model.embed_tokens.weight", (1000, 64)),
        ("model.layers.0.self_attn.q_proj.weight", (64, 32)),
        ("model.layers.0.self_attn.q_proj.bias", (64,)),
        ("model.layers.0.mlp.down_proj.weight", (64, 128)),
        ("lm_head.weight", (1000, 64)),
    ]
    assert adapter_slot_bytes(tensors, 16) == 2 * 16 * (64 + 32 + 64 + 128)


def test_an_adapter_takes_room() -> None:
    made = plan([gpu(36, "A100")] * 2)
    alone, beside = (room_for("adapter", made, CONFIG, None, taken) for taken in (0, 2 << 30))
    # 1 GiB less on each GPU, for half a MiB of cache a token and GPU.
    assert alone.context - beside.context == 8192
