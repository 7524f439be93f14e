"""How a model's conversations are to be written in Ollama: policy, TEMPLATE, and the text that ends an answer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ollamake.chat_template import answer_end, choose_template
from ollamake.generation_defaults import special_tokens
from ollamake.json_object import read_json_object

log = logging.getLogger("ollamake")


def prompt_template(
    folder: Path, template_file: str | None, policy: str, tokenizer: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the record of a model's template.

    ``folder`` is the merged checkpoint's, ``template_file`` the name of its chat template or None, ``policy`` is `auto`, `gguf`
    or a TEMPLATE, ``tokenizer`` are the facts of the GGUF's (gguf_tokenizer). The record has ``template`` (Go, or None),
    ``origin`` in words, ``end_of_turn`` (the special token's text that ends an answer, or None), ``proven`` and ``deviations``
    (names of conversations).
    """
    record: dict[str, Any] = {"policy": policy if policy in ("auto", "gguf") else "own", "template": None}
    record |= {"family": None, "proven": [], "deviations": {}, "end_of_turn": None}
    record["adds_bos"] = bool(tokenizer and tokenizer["adds_bos"])
    if template_file is None:
        origin = "the tokenizer has no chat template, so Ollama decides how the model is prompted"
        if policy == "auto":
            log.warning("%s. If it is a chat model, put its chat_template.jinja beside the adapter.", origin)
    else:
        jinja = (folder / template_file).read_bytes().decode("utf-8")
        bos, eos = special_texts(folder)
        known = {*special_tokens(folder).values(), bos, eos}
        record["end_of_turn"] = _first_special(answer_end(jinja, bos, eos), known)
        chosen = choose_template(jinja, bos, eos, record["adds_bos"]) if policy == "auto" else None
        if chosen is not None:
            record |= {"template": chosen.go_template, "family": chosen.family}
            record |= {"proven": list(chosen.proven), "deviations": dict(chosen.deviations)}
            proof = f"{chosen.family}; proven on {len(chosen.proven)} conversations"
            origin = f"says what the tokenizer's chat template says ({proof})"
        else:
            origin = "none: Ollama renders the chat template in the GGUF (0.30 and later) or guesses"
    if record["policy"] == "own":
        record["template"] = policy
        origin = "from the configuration (ollama.template)"
    return record | {"origin": origin}


def special_texts(folder: Path) -> tuple[str, str]:
    """Return the texts of BOS and EOS as chat templates are given them; "" for one that there is not."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        config |= read_json_object(file) if file.is_file() else {}
    bos, eos = (config.get(f"{name}_token") for name in ("bos", "eos"))
    return _token_text(bos), _token_text(eos)


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _first_special(text: str, tokens: Iterable[str]) -> str | None:
    """Return the special token that comes first in a text, the longest of those that begin there."""
    places = [(text.find(token), -len(token), token) for token in tokens if token and token in text]
    return min(places)[2] if places else None
