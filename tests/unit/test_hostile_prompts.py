"""The check of prompts renders a stranger's chat template by transformers, which bounds nothing; the check does."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ollamake import jinja_rendering
from ollamake.conversations import CONVERSATIONS
from ollamake.prompt_check import REFUSED, PromptCheck, Renderer


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "did not end within 1 seconds",
        ),
        ("{{ ('x' * 2000000000) | length }}", "needs more than 1024 MiB"),
        ("{{ 'x' * 1000001 }}", "writes more than 1000000 characters"),
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.x.y }}", "by the chat template: "),
    ],
)
def test_a_template_that_does_not_end(template: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_rendering, "MAX_SECONDS", 1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=template)

    def never(*_arguments: Any) -> Any:
        raise AssertionError("nothing is to be compared")

    check = PromptCheck(tokenizer, Renderer("nobody", never, None), never, False, None, {})
    found = check._one(CONVERSATIONS[0])
    assert found["status"] == REFUSED
    assert said in found["detail"]
