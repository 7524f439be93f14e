"""Which adapters vLLM and TGI can apply beside a base: what they refuse, and what they would leave out in silence.

vLLM 0.33.0: lora/peft_helper.py, config/lora.py, lora/lora_model.py. TGI 3.3.7: server/text_generation_server/adapters/lora.py
and utils/adapter.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.json_object import read_json_object
from ollamake.model_files import tokenizer_owner
from ollamake.tensor_names import EMBEDDING, HEAD

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max-lora-rank may be."""

WITHOUT_LORA = frozenset(
    {
        "BloomForCausalLM", "Cohere2MoeForCausalLM", "DbrxForCausalLM", "FalconForCausalLM", "FalconMambaForCausalLM",
        "GPT2LMHeadModel", "GPTJForCausalLM", "Gemma3nForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM",
        "OrionForCausalLM", "StableLmForCausalLM", "Zamba2ForCausalLM",
    }
)  # fmt: skip
"""Architectures that vLLM runs, but without adapters: classes of its models that are no SupportsLoRA."""

_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of init_lora_weights that leave the base as it was."""
_LAYERS_OF_TGI = re.compile(r"\.(self_attn\.(q|k|v|o|qkv)_proj|mlp\.(gate|up|down)_proj|mlp\.c_(fc|proj))\.weight$")


def largest_rank(plan: Mapping[str, Any]) -> int:
    """Return the largest rank of an adapter's tensors. ``plan``: merge_plan.json."""
    return max((edit["rank"] for _, edit in _edits(plan) if "rank" in edit), default=1)


def max_lora_rank(rank: int) -> int | None:
    """Return the smallest max-lora-rank that vLLM takes and that is not below ``rank``; None if there is none."""
    return next((allowed for allowed in RANKS if allowed >= rank), None)


def require_served_by_vllm(name: str, plan: Mapping[str, Any], base: Path, adapter: Path) -> None:
    """Raise OllamakeError with everything for which vLLM cannot serve the adapter of model ``name`` beside its base."""
    reasons = refused_by_vllm(plan, read_json_object(base / "config.json"))
    if not reasons and tokenizer_owner(base, [adapter], plan) != base:
        reasons.append("it brings a tokenizer with other tokens than the base's, and servers have one tokenizer")
    if reasons:
        raise OllamakeError(
            f"models.{name}.serving: vLLM cannot serve the adapter {adapter} beside its base:\n    "
            + "\n    ".join(reasons)
            + "\n  Serve the merged weights instead: `serving: {checkpoints: [merged]}`, with `serve: merged`."
        )


def refused_by_vllm(plan: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return why vLLM cannot apply the adapter of a merge plan to its base. ``config``: the base's config.json."""
    reasons = [*_of_any(plan)]
    adapter = plan["adapters"][0]["config"]
    start = adapter.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        reasons.append(
            f"init_lora_weights is {start!r}: the base's weights were changed before training, which vLLM does not do"
        )
    for key, what in (("layer_replication", "repeated layers"), ("use_bdlora", "BD-LoRA"), ("use_qalora", "QALoRA")):
        if adapter.get(key):
            reasons.append(f"{key}: vLLM has no {what}")
    if adapter.get("alora_invocation_tokens"):
        reasons.append("alora_invocation_tokens: vLLM has no activated LoRA")
    rank = largest_rank(plan)
    if max_lora_rank(rank) is None:
        reasons.append(f"its rank is {rank}; vLLM takes at most {RANKS[-1]}")
    for architecture in config.get("architectures") or []:
        if architecture in WITHOUT_LORA:
            reasons.append(f"vLLM has no adapters for {architecture}")
    return reasons


def refused_by_tgi(plan: Mapping[str, Any]) -> list[str]:
    """Return why TGI would apply the adapter of a merge plan otherwise than it was trained."""
    reasons = [*_of_any(plan)]
    adapter = plan["adapters"][0]["config"]
    for key in ("rank_pattern", "alpha_pattern"):
        if adapter.get(key):
            reasons.append(f"{key}: TGI scales every update by lora_alpha and r alone")
    left_out = [name for name, edit in _edits(plan) if edit["kind"] == "low_rank" and not _LAYERS_OF_TGI.search(name)]
    if left_out:
        reasons.append(f"TGI leaves out the update of {_condensed(left_out[0])}")
    return reasons


def _of_any(plan: Mapping[str, Any]) -> Iterator[str]:
    """Say once what neither server can: all that is not a product of two matrices that is added."""
    config = plan["adapters"][0]["config"]
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')}: only LoRA is applied beside a base"
        return
    if config.get("use_dora"):
        yield "use_dora: DoRA scales the base's weights as well, which servers do not"
    said = set()
    for name, edit in _edits(plan):
        where = _condensed(name)
        if edit["kind"] == "low_rank" and (EMBEDDING.search(name) or HEAD.search(name)):
            reason = f"{where} has an update: it reaches only one side of a tied embedding, and no server is known to apply it"
        elif edit["kind"] == "low_rank":
            continue
        elif edit["kind"] == "add":
            reason = f"{where}: a bias was trained (bias, lora_bias)"
        elif edit["kind"] in ("replace", "rows"):
            reason = f"{where} was trained whole (modules_to_save, or tokens): only low-rank updates are applied"
        else:
            reason = "its updates go through peft's own layers: they are not products of two matrices"
        if reason not in said:
            said.add(reason)
            yield reason
    if plan["config"]:
        changed = ", ".join(f"{key}: {value}" for key, value in plan["config"].items())
        yield f"the merged model has another config.json than the base ({changed})"


def _edits(plan: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for shard in plan["shards"]:
        for tensor in shard["tensors"]:
            for edit in tensor["edits"]:
                yield tensor["name"], edit


def _condensed(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)
