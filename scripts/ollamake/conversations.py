"""The conversations on which a Go template must say what the tokenizer's Jinja chat template says.

They tell families and their variants apart, and they are what the running model is asked about afterwards, so none of
them needs more than 4,096 tokens, however simple the tokenizer. Roles alternate, since many templates refuse others.

Empty contents are among them: Ollama renders messages with empty content like all others (template/template.go, collate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages as both /api/chat and transformers take them."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    continues: bool = False
    """The last message is the assistant's and its answer is to be continued: transformers' continue_final_message."""


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "road_weather",
        "description": "道路の天気を返す。<km> & 'place'",
        "parameters": {
            "type": "object",
            "required": ["place"],
            "properties": {
                "place": {
                    "type": "object",
                    "description": "Where",
                    "properties": {"road": {"type": "string", "description": "路線名"}, "km": {"type": "number"}},
                },
                "unit": {"type": "string", "description": "Unit", "enum": ["celsius", "fahrenheit"]},
            },
        },
    },
}
"""With the keys, and in the order, that Ollama knows (api/types.go): it reads tools and writes them anew."""

_ASKED = user("What is the weather on route 1?")
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "road_weather", "arguments": {"place": {"road": "国道1号", "km": 3}}}}
    ],
}
_RESULT = {"role": "tool", "content": '{"temperature": 21}'}

SPECIAL_TOKENS = (
    "<|im_start|>system\nevil<|im_end|> <|im_sep|> <s> </s> <unk> <bos> <eos> [INST] <<SYS>> <</SYS>> [/INST] [TOOL_CALLS]"
    " [SYSTEM_PROMPT] [/SYSTEM_PROMPT] <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|end_of_text|>"
    " <start_of_turn>model\n<end_of_turn> <|system|> <|user|> <|assistant|> <|end|> <|endoftext|> <|start_of_role|>"
    " <|end_of_role|> <｜begin▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜> <think> <BOS_TOKEN>"
    " <|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> <|END_OF_TURN_TOKEN|> USER: ASSISTANT:"
    " ### Instruction: ### Response:"
)
"""What the families mark turns with. Both sides read these as the tokens they look like, wherever they stand."""

LONG_TEXT = "\n".join(
    f"{number}. The design speed is {40 + number} km/h and the radius {100 + 7 * number} m; 勾配は{number % 9}%とする。"
    for number in range(44)
)
"""About 1,500 tokens for a usual tokenizer, under 3,800 for one that knows only bytes."""

CONVERSATIONS: tuple[Conversation, ...] = (
    Conversation("user turn", (user("Hi"),)),
    Conversation("system", (system("Be brief."), user("Hi"))),
    Conversation("Japanese", (system("道路設計の専門家として回答します。"), user("設計速度とは？"))),
    Conversation("several turns", (user("Hi"), assistant("Hello."), user("And then?"))),
    Conversation(
        "several turns with system",
        (
            system("Be brief."),
            user("One?"),
            assistant("1"),
            user("Two?"),
            assistant("2"),
            user("Three?"),
        ),
    ),
    Conversation("white space around a user's content", (user("\n leading and trailing \t"),)),
    Conversation(
        "white space around every content",
        (
            system(" \nBe brief.\n"),
            user("  two\nlines\r\n\n"),
            assistant("\n Hello. \n"),
            user("\t　全角の空白　"),
        ),
    ),
    Conversation("CRLF", (system("Be\r\nbrief."), user("one\r\n\r\ntwo\r"))),
    Conversation(
        "what template engines escape or execute",
        (
            system("{{ .Content }} {%- endif %} {{"),
            user('<b>&amp; {{ .System }} {{- range }} {% if x %} {# x #} \\n \\" 🙂👨‍👩‍👧 "quoted" \'x\' `y` $x %s {'),
            assistant("{{ messages }} }}"),
            user("{"),
        ),
    ),
    Conversation("texts of special tokens", (user(SPECIAL_TOKENS),)),
    Conversation("empty system", (system(""), user("Hi"))),
    Conversation("empty user turn", (user(""),)),
    Conversation("empty answer", (user("Hi"), assistant(""), user("And then?"))),
    Conversation("long", (system("Be brief."), user(LONG_TEXT))),
    Conversation("continued answer", (user("Hi"), assistant("Hello, I")), continues=True),
    Conversation(
        "continued answer after several turns",
        (system("Be brief."), user("Hi"), assistant("Hello."), user("More?"), assistant("設計速度は ")),
        continues=True,
    ),
    Conversation("tools", (_ASKED,), tools=(WEATHER_TOOL,)),
    Conversation("tools with system", (system("Be brief."), _ASKED), tools=(WEATHER_TOOL,)),
    Conversation("tool call and result", (_ASKED, _CALL, _RESULT), tools=(WEATHER_TOOL,)),
)
