"""Embedding and output head that are one tensor: which edits keep them so, and which demand that they part.

With tie_word_embeddings a checkpoint stores the embedding only. An adapter that was trained on one of the two leaves the
other as it was, so the merged model needs both: the head is stored beside the embedding and config.json says that they
are no longer tied. (peft's own merge_and_unload changes both then; what was trained is the unmerged model.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollamake.adapter import Adapter
from ollamake.adapter_edits import Edit
from ollamake.safetensors_header import TensorEntry
from ollamake.tensor_names import EMBEDDING, HEAD


class TiedHead:
    """The embedding of a base whose head is tied to it, and the head as it would be stored."""

    def __init__(self, embedding: str, head: str, head_is_stored: bool) -> None:
        self.embedding, self.head, self.head_is_stored = embedding, head, head_is_stored
        self.parted = False

    def settle(self, adapters: list[Adapter], edits: dict[str, list[Edit]], rows: Mapping[str, int]) -> None:
        """Make ``edits`` those of what will be stored, and decide whether the head parts from the embedding."""
        below, above = edits.pop(self.embedding, []), edits.pop(self.head, [])
        kept_below: list[Edit] = []
        kept_above: list[Edit] = []
        for number, adapter in enumerate(adapters):
            mine = [edit for edit in below if edit["adapter"] == number]
            heads = [edit for edit in above if edit["adapter"] == number]
            if mine and heads and self._together(adapter, rows):
                self._pair(mine, heads)
                heads = mine
            # Trained tokens are trained in both (peft's TrainableTokensWrapper follows the tie).
            shared = [edit for edit in mine if edit["kind"] == "rows"]
            if shared and not any(edit["kind"] == "rows" for edit in heads):
                heads = [*heads, *shared]
            kept_below += mine
            kept_above += heads
        self.parted = kept_below != kept_above
        if kept_below:
            edits[self.embedding] = kept_below
        if kept_above and (self.parted or self.head_is_stored):
            edits[self.head] = kept_above

    def _together(self, adapter: Adapter, rows: Mapping[str, int]) -> bool:
        """Whether embedding and head were trained as one, or only saved because the vocabulary grew."""
        if adapter.config.get("ensure_weight_tying"):
            return True
        chosen = [*(adapter.config.get("modules_to_save") or ()), *_as_list(adapter.config.get("target_modules"))]
        named = [name for name in chosen if EMBEDDING.search(f"{name}.weight") or HEAD.search(f"{name}.weight")]
        return self.embedding in rows and not named

    @staticmethod
    def _pair(mine: list[Edit], heads: list[Edit]) -> None:
        """Note the tensors that must be equal, since of each pair only the embedding's is used."""
        for one, other in zip(mine, heads, strict=False):
            pairs = [["source", "source"]] if one["kind"] != "low_rank" else [["a", "b"], ["b", "a"]]
            if one["kind"] == other["kind"]:
                one.setdefault("twins", []).extend([one[key], other[twin]] for key, twin in pairs)
                one["twins"] += other.get("twins", [])


def find_tied_head(
    ties_head: bool, entries: Mapping[str, TensorEntry], unstored: Mapping[str, Any], config: Mapping[str, Any]
) -> TiedHead | None:
    """Return the tied head of a base, or None if it has none. ``unstored``: edited tensors that the base does not store."""
    if not ties_head:
        return None
    embeddings = [name for name in entries if EMBEDDING.search(name) and len(entries[name].shape) == 2]
    # A vision tower may have embeddings too: the language model's has a row for each token.
    size = (config.get("text_config") or config).get("vocab_size")
    if len(embeddings) > 1:
        embeddings = [name for name in embeddings if entries[name].shape[0] == size] or embeddings
    stored = [name for name in entries if HEAD.search(name) and len(entries[name].shape) == 2]
    named = [name for name in unstored if HEAD.search(name)]
    if len(embeddings) != 1:
        return None
    usual = "embed_out.weight" if embeddings[0].endswith("embed_in.weight") else "lm_head.weight"
    return TiedHead(embeddings[0], (stored or named or [usual])[0], bool(stored))


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
