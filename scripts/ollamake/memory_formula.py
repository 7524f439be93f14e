"""What llama-server's KV cache and compute buffer take, by formula, where llama-fit-params is missing.

Every ``file:line`` is in llama.cpp 0.5.0-dev as llama-cpp-python 0.3.36 ships it. The KV cache is llama.cpp's own
arithmetic, without a tolerance. The compute buffer is what its graph allocator finds in blocks of all sizes; the formulas
name the blocks that are alive at the peak, and hold within 3 % + 16 MiB of what llama-fit-params prints for the shapes in
tests/unit/test_memory_formula.py. Only architectures measured there are known: a wrong figure would be worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollamake.errors import OllamakeError

KV_BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
"""Bits per element of a type of the KV cache (gguf-py/gguf/constants.py:5958)."""

_KV_BLOCK = {"f16": 1, "q8_0": 32, "q4_0": 32}

_FULL_ATTENTION = frozenset(
    [
        "ernie4_5",
        "gemma",
        "glm4",
        "granite",
        "llama",
        "mistral3",
        "olmoe",
        "phi3",
        "qwen2",
        "qwen2moe",
        "qwen3",
        "qwen3moe",
        "seed_oss",
        "smollm3",
    ]
)
"""Attention layers only, all of them over the whole context. A ``sliding_window`` in phi3's metadata is not used
(src/models/phi3.cpp:13)."""

_SLIDING_WINDOW = {"cohere2": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2, "olmo2": 4}
"""Architecture -> the pattern where the metadata name none: every n-th layer sees the whole context
(``load_swa_pattern`` in src/models/{cohere2,exaone4,gemma2,gemma3,openai-moe,olmo2}.cpp)."""

_WINDOW_BY_DEFAULT = {"exaone4": 4096, "gemma2": 4096}
_WINDOW_OPTIONAL = frozenset({"gemma3", "olmo2"})

_GATED_DELTA_NET = frozenset({"qwen3next", "qwen35", "qwen35moe"})
_RECURRENT = _GATED_DELTA_NET | {"lfm2"}

ARCHITECTURES = _FULL_ATTENTION | _SLIDING_WINDOW.keys() | _RECURRENT | {"deepseek2"}
"""The architectures whose formula was compared with llama-fit-params."""

_EXPERTS = frozenset({"deepseek2", "gpt-oss", "llama", "olmoe", "qwen2moe", "qwen35moe", "qwen3moe", "qwen3next"})
_EXPERTS_HAVE_FEED_FORWARD_LENGTH = frozenset({"llama", "olmoe"})
_MICRO_BATCH = 512
_CELLS = 256


def memory_by_formula(metadata: Mapping[str, Any], kv: str, parallel: int, context: int) -> tuple[int, int] | None:
    """Return (KV cache, compute buffer) in MiB, rounded down as llama-fit-params prints them.

    None if llama.cpp has no such cache for this model, as its heads are no multiple of 32 elements
    (src/llama-context.cpp:3854). ``metadata`` is the key-value section of a GGUF as Python values; ``kv`` is a type of
    :data:`KV_BITS` for K and V; ``context`` is the tokens of each of ``parallel`` slots. Meant is llama-server as Ollama
    starts it, with ``-c context*parallel -np parallel``, flash attention and micro-batches of 512, the KV cache not unified;
    it reserves logits for ``parallel`` tokens only (tools/server/server-context.cpp:996), which is nothing beside the rest.
    The state of recurrent layers counts as KV cache, as in llama.cpp's own table. Raises OllamakeError for an architecture
    that is not in :data:`ARCHITECTURES` and for metadata that lack a key.
    """
    if kv not in KV_BITS or parallel < 1 or context < 1:
        raise OllamakeError(
            f"memory of a context: expected a KV cache of {', '.join(KV_BITS)}, and at least 1 slot and 1 token; "
            f"found {kv}, {parallel} slots, {context} tokens"
        )
    shape = _Shape(metadata)
    if any(length % _KV_BLOCK[kv] for length in (*shape.lengths(False), *shape.lengths(True))):
        return None
    asked = context * parallel
    # src/llama-context.cpp:246-248 cuts the micro-batch before :290-296 round the context up to 256 cells a slot.
    micro_batch = min(asked, _MICRO_BATCH)
    cells = _padded(_padded(asked) // parallel)
    window = shape.window()
    window_cells = _padded(min(cells, window + micro_batch)) if window else 0
    kv_bytes = _kv_cache(shape, kv, parallel * cells, parallel * window_cells) + _recurrent_state(shape, parallel)
    # One mask of F16 for each of the two caches (src/llama-graph.cpp:41).
    masks = 2 * micro_batch * (cells + window_cells)
    compute_bytes = 4 * micro_batch * _live_floats(shape) + masks
    return int(kv_bytes) >> 20, compute_bytes >> 20


def _padded(cells: int) -> int:
    return -(-cells // _CELLS) * _CELLS


class _Shape:
    """What the metadata say of the model's layers, with llama.cpp's defaults (src/llama-model.cpp:1298-1470)."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.architecture = str(metadata.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise OllamakeError(
                f"memory of the architecture {self.architecture}: ollamake has no formula for it (only for "
                f"{', '.join(sorted(ARCHITECTURES))}). llama-fit-params is needed: build llama.cpp's programs"
            )
        # The layers that predict further tokens come last and have no part in the context (src/llama-model.cpp:2802).
        predicting = self.number("nextn_predict_layers", 0)
        self.n_layers = self.number("block_count", least=predicting + 1) - predicting
        self.width = self.number("embedding_length")
        self.heads = self.per_layer("attention.head_count")
        self.kv_heads = self.per_layer("attention.head_count_kv", self.heads)
        head = self.width // self.heads[0] if self.heads[0] else 0  # n_head() is that of layer 0.
        self.key_length = self.number("attention.key_length", head)
        self.value_length = self.number("attention.value_length", head)

    def number(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self._metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._fault(key, f"a whole number from {least}", value)
        return value

    def per_layer(self, key: str, default: Sequence[int] | None = None) -> list[int]:
        """Return one value a layer of a key that has either one number for all or a list."""
        value = self._metadata.get(f"{self.architecture}.{key}", default)
        values = [value] * self.n_layers if isinstance(value, int) else value
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) < self.n_layers:
            raise self._fault(key, f"a number, or one for each of {self.n_layers} layers", value)
        return [int(number) for number in values[: self.n_layers]]

    def has(self, key: str) -> bool:
        return self._metadata.get(f"{self.architecture}.{key}") is not None

    def lengths(self, windowed: bool) -> tuple[int, int]:
        """Return the elements of one head's key and value, in a layer with or without a window."""
        if not windowed:
            return self.key_length, self.value_length
        return (
            self.number("attention.key_length_swa", self.key_length),
            self.number("attention.value_length_swa", self.value_length),
        )

    def window(self) -> int:
        """Return the tokens that a sliding-window layer sees, 0 if the model has no such layer."""
        if self.architecture == "exaone4" and self.n_layers != 64:
            return 0  # src/models/exaone4.cpp:4: the 32B alone has windows.
        if self.architecture == "lfm2" and self.number("attention.sliding_window", 0):
            raise OllamakeError(
                "memory of an lfm2 with a sliding window: there is no formula; llama-fit-params is needed"
            )
        if self.architecture not in _SLIDING_WINDOW:
            return 0
        default = 0 if self.architecture in _WINDOW_OPTIONAL else _WINDOW_BY_DEFAULT.get(self.architecture)
        return self.number("attention.sliding_window", default)

    def windowed(self) -> list[bool]:
        """Return for each layer whether it sees a window only (src/llama-model.cpp:3434, src/llama-hparams.cpp:8)."""
        if not self.window():
            return [False] * self.n_layers
        key = "attention.sliding_window_pattern"
        pattern = self._metadata.get(f"{self.architecture}.{key}", _SLIDING_WINDOW[self.architecture])
        if not isinstance(pattern, int):
            return [bool(value) for value in self.per_layer(key)]
        return [pattern == 0 or layer % pattern < pattern - 1 for layer in range(self.n_layers)]

    def recurrent(self) -> list[bool]:
        """Return for each layer whether it keeps a state in place of keys and values."""
        if self.architecture == "lfm2":  # src/models/lfm2.cpp:8
            return [heads == 0 for heads in self.kv_heads]
        if self.architecture not in _GATED_DELTA_NET:
            return [False] * self.n_layers
        if self.has("attention.recurrent_layers"):
            return [bool(value) for value in self.per_layer("attention.recurrent_layers")]
        interval = self.number("full_attention_interval", 4, least=1)  # src/models/qwen3next.cpp:18
        return [(layer + 1) % interval != 0 for layer in range(self.n_layers)]

    def _fault(self, key: str, expected: str, found: Any) -> OllamakeError:
        return OllamakeError(
            f"metadata of the GGUF, {self.architecture}.{key}: expected {expected}; found {found!r}. Convert the model with "
            "the llama.cpp that ollamake pins"
        )


def _kv_cache(shape: _Shape, kv: str, cells: int, window_cells: int) -> float:
    """Return the bytes of keys and values (src/llama-kv-cache.cpp:228-234, src/llama-kv-cache-iswa.cpp:73).

    ``cells`` are those of all slots. A cell has the keys and values of every KV head; with multi-head latent attention it
    has one vector, the latent and the rotated part, for keys and values both.
    """
    latent = shape.architecture == "deepseek2"
    if latent and not (shape.has("attention.key_length_mla") and shape.has("attention.value_length_mla")):
        raise OllamakeError(
            "metadata of the GGUF, deepseek2.attention.key_length_mla and value_length_mla: expected both; found a file of a "
            "converter before multi-head latent attention. Convert the model with the llama.cpp that ollamake pins"
        )
    total = 0.0
    recurrent = shape.recurrent()
    for layer, windowed in enumerate(shape.windowed()):
        if recurrent[layer]:
            continue
        key, value = shape.lengths(windowed)
        elements = shape.kv_heads[layer] * (key if latent else key + value)
        total += (window_cells if windowed else cells) * elements * KV_BITS[kv] / 8
    return total


def _recurrent_state(shape: _Shape, parallel: int) -> int:
    """Return the bytes of the recurrent layers' state: F32, one a slot, whatever the context.

    Rule: src/llama-memory-recurrent.cpp:101; lengths: src/llama-hparams.cpp:208-261.
    """
    layers = sum(shape.recurrent())
    if not layers:
        return 0
    if shape.architecture == "lfm2":
        elements = shape.width * (shape.number("shortconv.l_cache") - 1)
    else:
        inner, state = shape.number("ssm.inner_size"), shape.number("ssm.state_size")
        convolved = inner + 2 * shape.number("ssm.group_count") * state
        elements = (shape.number("ssm.conv_kernel") - 1) * convolved + state * inner
    return 4 * layers * parallel * elements


def _live_floats(shape: _Shape) -> int:
    """Return how many F32 elements for each token of a micro-batch are alive at the graph's peak.

    The allocator writes a result over its input only for some operations (ggml/src/ggml-alloc.c:22), and multiplications
    with weights, gates and attention are not among them; so the peak is in the widest of the blocks below, each beside the
    residual stream, its norm and the block's input.
    """
    width = shape.width
    heads = max(shape.heads)
    queries = heads * shape.key_length
    # A block of the queries' size stays behind and the residual stream takes it; the hybrids' are reused.
    beside = 4 * width if shape.architecture in _RECURRENT | {"deepseek2"} else 3 * width + max(width, queries)
    if shape.architecture == "cohere2":
        beside += width  # Attention and feed-forward in parallel: src/models/cohere2.cpp keeps both outputs.
    if shape.architecture == "deepseek2":
        # Queries, absorbed in the latent, rotated, and joined (src/models/deepseek2.cpp:560-569).
        rotated = shape.number("rope.dimension_count")
        absorbed = shape.number("attention.key_length_mla") + 2 * shape.number("attention.kv_lora_rank") + 3 * rotated
        peaks = [beside + heads * absorbed]
    else:
        # Queries and the attention's output, keys and values.
        peaks = [3 * width + 2 * queries + 2 * max(shape.kv_heads) * shape.key_length]
    experts = shape.number("expert_count", 0)
    if experts and shape.architecture not in _EXPERTS:
        raise OllamakeError(
            f"memory of the architecture {shape.architecture} with experts: ollamake has no formula for it. llama-fit-params "
            "is needed: build llama.cpp's programs"
        )
    if not experts or shape.number("leading_dense_block_count", 0):
        # Gate, up, and their product (src/llama-graph.cpp:1865).
        peaks.append(3 * max(shape.per_layer("feed_forward_length")) + beside)
    if experts:
        peaks += _experts(shape, beside)
    return max(peaks)


def _experts(shape: _Shape, beside: int) -> list[int]:
    """Return the floats that are alive in a mixture of experts and in the expert that all tokens share."""
    used = max(shape.per_layer("expert_used_count"))
    of_feed_forward = shape.architecture in _EXPERTS_HAVE_FEED_FORWARD_LENGTH
    length = max(shape.per_layer("feed_forward_length" if of_feed_forward else "expert_feed_forward_length"))
    hidden, out = used * length, used * shape.width
    # Gate, up and their product for every expert used (src/llama-graph.cpp:2260), then their outputs (:2318), which take the
    # place of gate and up if they fit; behind the wide blocks of latent attention those two are not side by side.
    routed = 3 * hidden + beside
    if out > 2 * hidden or shape.architecture == "deepseek2":
        routed += out
    shared = shape.number("expert_shared_feed_forward_length", 0)
    if not shared:
        shared = shape.number("expert_shared_count", 0) * length
    # The outputs of the experts used wait meanwhile.
    return [routed, 3 * shared + beside + shape.width] if shared else [routed]
