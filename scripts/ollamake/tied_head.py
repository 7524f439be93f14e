"""Embedding and output head that are one tensor: which edits keep them so, and which demand that they part.

With tie_word_embeddings a checkpoint stores the embedding only. An adapter that was trained on one of the two leaves the
other as it was, so the merged model needs both: the head is stored beside the embedding and config.json says that they
are no longer tied. (peft's own merge_and_unload changes both then; what was trained is the unmerged model.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ollamake.adapter import Adapter
from ollamake.adapter_edits import Edit
from ollamake.errors import OllamakeError
from ollamake.foreign_pattern import NO_PATTERN, matches_whole
from ollamake.safetensors_header import TensorEntry
from ollamake.tensor_names import EMBEDDING, HEAD, TensorNames


class TiedHead:
    """The embedding of a base whose head is tied to it, and the head as it would be stored."""

    def __init__(self, embedding: str, head: str, head_is_stored: bool, others: list[str]) -> None:
        self.embedding, self.head, self.head_is_stored = embedding, head, head_is_stored
        self.parted = False
        self._others = others

    def settle(self, adapters: list[Adapter], edits: dict[str, list[Edit]], rows: Mapping[str, int]) -> None:
        """Make ``edits`` those of what will be stored, and decide whether the head parts from the embedding.

        Raises OllamakeError if they have to part and config.json's one switch would part other tensors, too.
        """
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
        if self.parted and self._others:
            raise OllamakeError(
                f"the adapter changes only one of {self.embedding} and {self.head}, which this architecture ties along with"
                f" {', '.join(self._others)}; tie_word_embeddings parts all of them or none. Train with ensure_weight_tying,"
                " or merge with peft's merge_and_unload() and give the result as `base`, without an adapter."
            )
        if kept_below:
            edits[self.embedding] = kept_below
        if kept_above and (self.parted or self.head_is_stored):
            edits[self.head] = kept_above

    def _together(self, adapter: Adapter, rows: Mapping[str, int]) -> bool:
        """Whether embedding and head were trained as one, or only saved because the vocabulary grew."""
        if adapter.config.get("ensure_weight_tying"):
            return True
        chosen = [*_as_list(adapter.config.get("modules_to_save")), *_as_list(adapter.config.get("target_modules"))]
        modules = [tensor.removesuffix(".weight") for tensor in (self.embedding, self.head)]
        return self.embedding in rows and not any(_names(one, module) for one in chosen for module in modules)

    @staticmethod
    def _pair(mine: list[Edit], heads: list[Edit]) -> None:
        """Note the tensors that must be equal, since of each pair only the embedding's is used."""
        for one, other in zip(mine, heads, strict=False):
            pairs = [["source", "source"]] if one["kind"] != "low_rank" else [["a", "b"], ["b", "a"]]
            if one["kind"] == other["kind"]:
                one.setdefault("twins", []).extend([one[key], other[twin]] for key, twin in pairs)
                one["twins"] += other.get("twins", [])


def find_tied_head(
    ties_head: bool,
    names: TensorNames,
    entries: Mapping[str, TensorEntry],
    edits: Mapping[str, Any],
    unstored: Mapping[str, Any],
    config: Mapping[str, Any],
) -> TiedHead | None:
    """Return the tied head of a base, or None if it has none. ``unstored``: edited tensors that the base does not store."""
    if not ties_head:
        return None
    matrices = [name for name in entries if len(entries[name].shape) == 2]
    embeddings = [name for name in matrices if EMBEDDING.search(name)]
    if not embeddings:
        embeddings = [name for name in matrices if names.is_embedding(name)]
    # A vision tower may have embeddings too: the language model's has a row for each token.
    size = (config.get("text_config") or config).get("vocab_size")
    if len(embeddings) > 1:
        embeddings = [name for name in embeddings if entries[name].shape[0] == size] or embeddings
    if len(embeddings) != 1:
        return None
    embedding = embeddings[0]
    stored = next((name for name in matrices if HEAD.search(name)), None)
    named = next((name for name in unstored if names.is_head(name)), None)
    others: list[str] = []
    if (embedding in edits or stored in edits or named is not None) and names.ties is not None:
        heads = [head for head in names.ties if names.is_head(head)]
        if not heads:
            return None  # whatever config.json says, this architecture ties nothing
        stored = stored or next((found for head in heads if (found := names.find_stored(head))), None)
        others = [name for name in names.ties if name not in heads[:1]]
        named = named or heads[0]
    usual = "embed_out.weight" if embedding.endswith("embed_in.weight") else "lm_head.weight"
    return TiedHead(embedding, stored or named or usual, stored is not None, others)


def _names(chosen: str, module: str) -> bool:
    """Whether an entry of modules_to_save or target_modules means a module: by its end, or as a pattern of the whole name."""
    if module == chosen or module.endswith(f".{chosen}"):
        return True
    try:
        re.compile(chosen)
    except NO_PATTERN:
        return False
    return matches_whole(chosen, module, "adapter_config.json: target_modules")


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
