"""A Go template is given only where it says the same as the tokenizer's Jinja."""

import pytest
from jinja2 import TemplateError

from ollamake.chat_template import FAMILIES, render_jinja, template_family
from ollamake.demo_text import CHAT_TEMPLATE

PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nHello.<|im_end|>\n{% endif %}" + PLAIN
LLAMA_3 = (
    "{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PLAIN])
def test_chatml_in_any_spelling(template: str) -> None:
    assert template_family(template) is FAMILIES["ChatML"]


@pytest.mark.parametrize(
    "template",
    [
        WITH_DEFAULT_SYSTEM,
        LLAMA_3,
        PLAIN.replace("{{ message.content }}", "{{ message.content | trim }}"),
        PLAIN.replace("<|im_end|>\n", "<|im_end|>"),
        PLAIN.replace("{{ message.content }}", "{{ message.content | e }}"),
        "{{ raise_exception('no system role') }}",
        "{% for %}",
    ],
)
def test_anything_else_is_left_to_ollama(template: str) -> None:
    assert template_family(template) is None


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(TemplateError):
        render_jinja("{{ messages.__class__.__mro__[1].__subclasses__() }}", [])
    assert template_family("{{ ''.__class__.__base__.__subclasses__() }}") is None
