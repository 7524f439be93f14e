"""A Go template is given only where it says the same as the tokenizer's Jinja."""

from __future__ import annotations

import itertools
import logging
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ollamake import jinja_rendering
from ollamake.chat_template import EMPTY, EXTRA_BOS, TOOLS, answer_end, choose_template, render_jinja
from ollamake.conversations import CONVERSATIONS, Conversation, assistant, system, user
from ollamake.demo_text import CHAT_TEMPLATE
from ollamake.errors import OllamakeError
from ollamake.go_text import WHITE_SPACE, go_text
from ollamake.jinja_rendering import render_unbounded

FOLDER = Path(__file__).parent / "chat_templates"
"""Templates that write what those of the models in their names write; tools are written in fewer words."""
TEMPLATES = {file.stem: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))}
BOS, EOS = "<s>", "</s>"
PLAIN_CHATML = TEMPLATES["OpenHermes-2.5"]

FAMILIES = {
    "ChatML": ("OpenHermes-2.5", "Qwen2", "Qwen2.5", "Qwen3", "Qwen3-without-thinking", "SmolLM2", "Yi-1.5"),
    "Llama 2": ("Llama-2",),
    "Llama 3": ("Llama-3", "Llama-3.1", "Llama-3.2"),
    "Mistral": (
        "Mistral-7B-Instruct-v0.1",
        "Mistral-7B-Instruct-v0.2",
        "Mistral-7B-Instruct-v0.3",
        "Mistral-Large-2411",
        "Mistral-Nemo-2407",
    ),
    "Gemma": ("Gemma-2", "Gemma-3"),
    "Phi-3": ("Phi-3-mini", "Phi-3.5-mini"),
    "Phi-4": ("Phi-4",),
    "Command R": ("Command-R",),
    "DeepSeek": ("DeepSeek-R1", "DeepSeek-V3"),
    "Granite": ("Granite-3.0", "Granite-3.3"),
    "Zephyr": ("Falcon-3", "OLMo-2", "Zephyr"),
    "Alpaca": ("DeepSeek-Coder",),
    "Solar": ("Solar",),
    "Vicuna": ("Vicuna",),
    "derived": ("DeepSeek-V2", "OpenChat-3.5"),
}
WITHOUT_SYSTEM = {"Gemma-2", "Mistral-7B-Instruct-v0.1"}
WITH_TOOLS = {"Llama-3.1", "Llama-3.2", "Mistral-7B-Instruct-v0.3", "Mistral-Nemo-2407", "Qwen2.5", "Qwen3"}

ANSWER_ENDS = {
    "OpenHermes-2.5": "<|im_end|>\n",
    "Qwen2": "<|im_end|>\n",
    "Phi-4": "<|im_end|>",
    "Llama-2": " </s>",
    "Llama-3.1": "<|eot_id|>",
    "Mistral-7B-Instruct-v0.1": "</s> ",
    "Mistral-Nemo-2407": "</s>",
    "Gemma-2": "<end_of_turn>\n",
    "Phi-3.5-mini": "<|end|>\n",
    "Command-R": "<|END_OF_TURN_TOKEN|>",
    "DeepSeek-R1": "<｜end▁of▁sentence｜>",
    "OLMo-2": "</s>",
    "Solar": "",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=BOS, eos_token=EOS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_as_by_transformers(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    for conversation in CONVERSATIONS:
        settings: dict[str, Any] = {"continue_final_message": True} if conversation.continues else {}
        try:
            expected = tokenizer.apply_chat_template(
                [dict(message) for message in conversation.messages],
                tools=list(conversation.tools) if conversation.tools else None,
                chat_template=TEMPLATES[name],
                add_generation_prompt=not conversation.continues,
                tokenize=False,
                **settings,
            )
        except (TemplateError, ValueError, TypeError):
            with pytest.raises(TemplateError):
                render_unbounded(TEMPLATES[name], conversation, BOS, EOS)
        else:
            assert render_unbounded(TEMPLATES[name], conversation, BOS, EOS) == expected


FEATURES = [
    "{{ messages[0].content }}{% generation %}{{ messages | tojson }}{% endgeneration %}{{ strftime_now('%Y') }}",
    "{{ messages | tojson(indent=2) }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}",
    "  {% if true %}\n  a\n  {% endif %}\n{{ bos_token }}{{ unknown }}{{ 'x' if tools is none else 'y' }}\n",
]


@pytest.mark.parametrize("template", FEATURES)
def test_what_templates_can_use_is_what_transformers_gives_them(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    conversation = CONVERSATIONS[2]
    expected = tokenizer.apply_chat_template(
        list(conversation.messages), chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert render_jinja(template, conversation, BOS, EOS) == expected


def test_a_token_that_the_tokenizer_lacks_is_undefined() -> None:
    template = "{{ bos_token is defined }} {{ eos_token is defined }}"
    assert render_jinja(template, CONVERSATIONS[0], "", EOS) == "False True"


def test_the_list_of_families_is_complete() -> None:
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(TEMPLATES)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in FAMILIES.items() for name in names])
def test_recognised(family: str, name: str) -> None:
    for server_adds_bos in (False, True):
        chosen = choose_template(TEMPLATES[name], BOS, EOS, server_adds_bos)
        assert chosen is not None
        assert chosen.family == family
        plain = [c.name for c in CONVERSATIONS if not c.tools]
        if name in WITHOUT_SYSTEM:
            plain = [c.name for c in CONVERSATIONS if not c.tools and c.messages[0]["role"] != "system"]
        assert list(chosen.proven) == plain
        reasons = set(chosen.deviations.values()) - {EXTRA_BOS}
        assert reasons == ({TOOLS} if name in WITH_TOOLS else set())


def test_the_demos_template_is_recognised() -> None:
    chosen = choose_template(CHAT_TEMPLATE, "", "<|im_end|>", False)
    assert chosen is not None
    assert chosen.deviations == {}


def test_bos_is_written_by_the_server_or_by_the_template() -> None:
    llama = TEMPLATES["Llama-3"]
    by_server, by_template = (choose_template(llama, BOS, EOS, adds) for adds in (True, False))
    assert by_server is not None
    assert by_template is not None
    assert BOS not in by_server.go_template
    assert BOS in by_template.go_template
    assert "BOS" not in by_server.deviations


def test_only_the_first_bos_is_left_to_the_server() -> None:
    chosen = choose_template(TEMPLATES["Llama-2"], BOS, EOS, True)
    assert chosen is not None
    assert f" {EOS}{BOS}[INST] " in chosen.go_template


def test_a_bos_that_training_does_not_know_is_told() -> None:
    chosen = choose_template(TEMPLATES["Qwen2"], BOS, EOS, True)
    assert chosen is not None
    assert chosen.deviations == {"BOS": EXTRA_BOS}


def test_bos_before_some_conversations_only_cannot_be_said() -> None:
    template = "{% if messages[0].role == 'system' %}{{ bos_token }}{% endif %}" + PLAIN_CHATML
    assert choose_template(template, BOS, EOS, True) is None
    assert choose_template(template, BOS, EOS, False) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<|im_end|>\\n", "<|im_end|>"),
        ("<|im_end|>\\n", " <|im_end|>\\n"),
        ("m.content", "(m.content | trim)"),
        ("m.content", "m.content.lstrip()"),
        ("m.content", "m.content.rstrip('\\n')"),
        ("assistant\\n", "assistant\\n<think>\\n"),
        ("<|im_start|>", "{{"),
        ("<|im_start|>", "{"),
    ],
)
def test_a_template_that_differs_a_little_is_written_as_it_is(old: str, new: str) -> None:
    template = PLAIN_CHATML.replace(old, new)
    assert template != PLAIN_CHATML
    plain, chosen = (choose_template(text, BOS, EOS, False) for text in (PLAIN_CHATML, template))
    assert plain is not None
    assert chosen is not None
    assert chosen.go_template != plain.go_template
    assert chosen.proven == plain.proven


@pytest.mark.parametrize(
    "template",
    [
        PLAIN_CHATML.replace("m.content", "(m.content | e)"),
        PLAIN_CHATML.replace("m.content", "(m.content | upper)"),
        PLAIN_CHATML.replace("m.content", "m.content[:100]"),
        PLAIN_CHATML.replace("m.content", "m.content.replace('</s>', '')"),
        PLAIN_CHATML.replace("m.content", "(loop.index ~ m.content)"),
        PLAIN_CHATML.replace("m.content", "(messages | length ~ m.content)"),
        PLAIN_CHATML.replace("m.content", "m.content.strip('\\t')"),
        PLAIN_CHATML.replace("m.content", "(strftime_now('%H:%M') ~ m.content)"),
        PLAIN_CHATML.replace("m.content", "((strftime_now('%Y') | int - 1) ~ m.content)"),
        "{{ messages[-1].content }}",
        "{{ raise_exception('no') }}",
        "no content",
        "{% for %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "",
    ],
)
def test_what_is_not_proven_is_left_to_ollama(template: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ollamake"):
        assert choose_template(template, BOS, EOS, False) is None
    assert "Ollama decides how to prompt the model" in caplog.text


def test_an_empty_content_of_its_own_kind_is_told() -> None:
    template = PLAIN_CHATML.replace("m.content", "(m.content or 'nothing')")
    chosen = choose_template(template, BOS, EOS, False)
    assert chosen is not None
    assert chosen.deviations == {"empty system": EMPTY, "empty user turn": EMPTY, "empty answer": EMPTY}


def test_an_empty_system_text_is_skipped_where_the_template_does() -> None:
    chosen = choose_template(TEMPLATES["Phi-3.5-mini"], BOS, EOS, False)
    assert chosen is not None
    assert "empty system" in chosen.proven
    assert '{{ if or .Content (ne .Role "system") }}' in chosen.go_template


def test_dates_are_those_of_the_day_the_model_is_asked() -> None:
    chosen = choose_template(TEMPLATES["Granite-3.3"], BOS, EOS, False)
    assert chosen is not None
    assert 'Today\'s Date: {{ template "full-month" (slice currentDate 5 7) }} {{ slice currentDate 8 10 }}' in (
        chosen.go_template
    )


def test_go_trims_what_python_trims() -> None:
    assert set(WHITE_SPACE) == {character for character in map(chr, range(sys.maxunicode + 1)) if character.isspace()}


def test_braces_cannot_become_actions() -> None:
    assert go_text("a{b{{c{") == 'a{b{{ "{{" }}c{{ "{" }}'


def test_the_choice_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ollamake"):
        choose_template(TEMPLATES["Qwen2.5"], BOS, EOS, False)
    assert re.search("family ChatML; .* on 16 conversations", caplog.text)
    assert f"tools ({TOOLS})" in caplog.text


@pytest.mark.parametrize(("name", "end"), ANSWER_ENDS.items())
def test_end_of_an_answer(name: str, end: str) -> None:
    assert answer_end(TEMPLATES[name], BOS, EOS) == end


def test_end_of_an_answer_that_is_written_only_when_a_turn_follows() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '<end>' if not loop.last }}{% endfor %}<assistant>"
    )
    assert answer_end(template, BOS, EOS) == "<end>"


def test_a_broken_template_has_no_end_of_an_answer() -> None:
    assert answer_end("{% for %}", BOS, EOS) == ""


BOMBS = {
    "writes without end": "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
    "loops without writing": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a number without end": "{{ (9 ** (9 ** 9)) | string | length }}",
    "a text that fills memory": "{{ ('x' * 99999999999) | length }}",
    "lists that fill memory": "{% set n = namespace(x=[0]) %}{% for a in range(9) %}{% set n.x = n.x * 999 %}{% endfor %}",
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a range that the sandbox refuses": "{% for a in range(99999999999) %}{% endfor %}",
}


REFUSED_BY_JINJA = ("calls itself", "a range that the sandbox refuses")
"""What ends by itself with an error: whoever renders it has that, and nothing worse."""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with one is not registered, since the server that renders it has no bounds."""
    monkeypatch.setattr(jinja_rendering, "MAX_SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(TemplateError):
        render_jinja(BOMBS[name], CONVERSATIONS[0], BOS, EOS)
    for work in (
        lambda: choose_template(BOMBS[name], BOS, EOS, False),
        lambda: answer_end(BOMBS[name], BOS, EOS),
    ):
        if name in REFUSED_BY_JINJA:
            assert not work()
        else:
            with pytest.raises(OllamakeError, match="a server that renders it would hang, or use up its memory"):
                work()
    assert time.monotonic() - start < 100


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format('')[50] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ strftime_now.__globals__.datetime }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.name }}",
        "{% set x = namespace() %}{{ x.__class__.__init__.__globals__ }}",
        "{% if " + "(" * 5000 + "1" + ")" * 5000 + " %}{% endif %}",
        "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(template: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TemplateError):
        render_jinja(template, CONVERSATIONS[0], BOS, EOS)
    assert "Traceback" not in capfd.readouterr().err


def test_a_system_text_that_the_template_refuses_goes_into_the_first_question() -> None:
    chosen = choose_template(TEMPLATES["Gemma-2"], BOS, EOS, True)
    assert chosen is not None
    assert "system" not in " ".join(chosen.proven)
    assert '{{ else if eq $before "system" }}\n\n{{ else }}' in chosen.go_template


def test_conversations_are_told_apart_by_name_and_alternate() -> None:
    assert len({conversation.name for conversation in CONVERSATIONS}) == len(CONVERSATIONS)
    for conversation in CONVERSATIONS:
        roles = [message["role"] for message in conversation.messages]
        assert all(one != next_one for one, next_one in itertools.pairwise(roles))
        assert (roles[-1] == "assistant") == conversation.continues
        assert sum(len(message["content"].encode()) for message in conversation.messages) < 3900


def test_a_continued_answer_keeps_its_blanks_only_where_the_template_does() -> None:
    conversation = Conversation("own", (system("s"), user("u"), assistant("half \n")), continues=True)
    assert render_jinja(PLAIN_CHATML, conversation, BOS, EOS).endswith("assistant\nhalf \n")
    assert render_jinja(TEMPLATES["Llama-3"], conversation, BOS, EOS).endswith("half")
