"""What a real Ollama makes of the chosen TEMPLATEs: the texts and token ids that transformers trains on.

The templates in tests/unit/chat_templates write what those of the named models write. One tiny model serves them all, once
with a GGUF that has BOS added by the server and once without; its tokenizer knows the special tokens of all families.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ollama
import pytest
import torch
from registering import ONE_THREAD
from snakemake_runs import LLAMA_CPP, REPOSITORY
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ollamake.chat_template import choose_template, render_jinja
from ollamake.conversations import CONVERSATIONS, LONG_TEXT, SPECIAL_TOKENS, Conversation
from ollamake.demo_base import save_base
from ollamake.demo_text import train_tokenizer
from ollamake.gguf_conversion import convert

TEMPLATES = sorted((REPOSITORY / "tests/unit/chat_templates").glob("*.jinja"))
BOS, EOS = "<s>", "</s>"
NUM_CTX = 4096


@dataclass
class Served:
    """A model on the server that answers nothing, and its tokenizer."""

    client: ollama.Client
    files: dict[str, str]
    tokenizer: PreTrainedTokenizerFast
    adds_bos: bool

    def register(self, go_template: str) -> None:
        body = {"model": self.name, "files": self.files, "template": go_template, "stream": False}
        answer = self._post("/api/create", body | {"parameters": {"num_ctx": NUM_CTX, **ONE_THREAD}})
        assert answer == {"status": "success"}

    @property
    def name(self) -> str:
        return f"families-{'with' if self.adds_bos else 'without'}-bos"

    def rendered(self, conversation: Conversation) -> str:
        body = {"model": self.name, "messages": conversation.messages, "_debug_render_only": True, "stream": False}
        text: str = self._post("/api/chat", body)["_debug_info"]["rendered_template"]
        return text

    def token_ids(self, prompt: str) -> list[int]:
        """Return what the model is given for a prompt that is rendered already.

        ``context`` has the ids of prompt and answer, without the BOS that the count has; the answer is empty here.
        """
        body = {"model": self.name, "prompt": prompt, "template": "{{ .Prompt }}", "stream": False}
        answer = self._post("/api/generate", body | {"options": {"num_predict": 1, "temperature": 0}})
        assert answer["response"] == ""
        bos = [self.tokenizer.convert_tokens_to_ids(BOS)] if self.adds_bos else []
        ids = bos + answer["context"]
        assert answer["prompt_eval_count"] == len(ids)
        return ids

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self.client._request_raw("POST", path, json=body).json()
        return answer


def save_model(folder: Path, adds_bos: bool) -> None:
    """Save a Qwen2 that answers everything with token 0, which ends the answer."""
    tokenizer = train_tokenizer([LONG_TEXT, *(str(c.messages) for c in CONVERSATIONS)])
    special = dict.fromkeys([BOS, EOS, *(word for word in SPECIAL_TOKENS.split() if word[0] in "<[" and len(word) > 3)])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    size = tokenizer.get_vocab_size()
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        max_position_embeddings=NUM_CTX,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    for weight in (model.model.embed_tokens.weight, model.model.norm.weight, model.lm_head.weight[0]):
        torch.nn.init.ones_(weight)
    save_base(model, tokenizer, folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings |= {"bos_token": BOS, "add_bos_token": adds_bos, "eos_token": tokenizer.id_to_token(0)}
    file.write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module", params=[True, False], ids=["the server adds BOS", "the server adds no BOS"])
def served(request: pytest.FixtureRequest, server: str, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("families")
    save_model(folder / "model", request.param)
    gguf = folder / "model.gguf"
    convert(LLAMA_CPP / "source/convert_hf_to_gguf.py", folder / "model", "f16", "families", gguf)
    client = ollama.Client(server)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "model/tokenizer.json"), bos_token=BOS, eos_token=EOS
    )
    return Served(client, {"model.gguf": client.create_blob(gguf)}, tokenizer, request.param)


@pytest.mark.parametrize("template", TEMPLATES, ids=[file.stem for file in TEMPLATES])
def test_prompted_as_in_training(served: Served, template: Path) -> None:
    jinja = template.read_text(encoding="utf-8")
    chosen = choose_template(jinja, BOS, EOS, served.adds_bos)
    assert chosen is not None
    served.register(chosen.go_template)
    # A template that writes BOS is for a server that adds it, and the other way round; else the start alone is of interest.
    usual = served.adds_bos == (BOS in render_jinja(jinja, CONVERSATIONS[0], BOS, EOS))
    for conversation in CONVERSATIONS if usual else CONVERSATIONS[:4]:
        if conversation.name not in chosen.proven:
            continue
        settings: dict[str, Any] = {"continue_final_message": True} if conversation.continues else {}
        trained = served.tokenizer.apply_chat_template(
            [dict(message) for message in conversation.messages],
            chat_template=jinja,
            add_generation_prompt=not conversation.continues,
            tokenize=False,
            **settings,
        )
        rendered = served.rendered(conversation)
        added = BOS if served.adds_bos else ""
        extra = BOS if "BOS" in chosen.deviations else ""
        assert added + rendered == extra + trained, conversation.name
        expected = served.tokenizer(extra + trained, add_special_tokens=False)["input_ids"]
        assert served.token_ids(rendered) == expected, conversation.name
