"""A prompt that differs from the tokenizer's in one character, token or BOS is found, and the difference is named."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ollamake import prompt_check
from ollamake.conversations import CONVERSATIONS, Conversation, assistant, system, user
from ollamake.demo_text import CHAT_TEMPLATE, END_OF_TEXT, train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.prompt_check import PromptCheck, Renderer, stop_fault, text_difference

BOS = "<|endoftext|>"
WITH_BOS = "{{ bos_token }}" + CHAT_TEMPLATE
HELLO = Conversation("hello", (user("Hello, 道路"),))
SYSTEM = Conversation("system", (system("Be brief."), user("Hi")))
TURNS = Conversation("turns", (user("Hi"), assistant("Hello."), user("More")))
CONTINUED = Conversation("continued", (user("Hi"), assistant("Hello, I")), continues=True)
TOOLS = Conversation("tools", (user("Hi"),), tools=({"type": "function", "function": {"name": "f"}},))
BASIC = (HELLO, SYSTEM, TURNS, CONTINUED)


@pytest.fixture(scope="module")
def trained() -> Any:
    return train_tokenizer(["Hello, 道路 Be brief. Hi More", "Hello Hello Hi Hi user assistant system\n"])


@pytest.fixture
def tokenizer(trained: Any) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token=BOS, eos_token="<|im_end|>")
    made.chat_template = CHAT_TEMPLATE
    return made


class Served:
    """Stands in for a server and for llama.cpp on a GGUF that both do right, but for what a test changes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, adds_bos: bool = False, system: str | None = None) -> None:
        self.tokenizer, self.adds_bos, self.system = tokenizer, adds_bos, system
        self.change_text: Callable[[str], str] = lambda text: text
        self.change_ids: Callable[[list[int]], list[int]] = lambda ids: ids
        """Of what llama.cpp gives."""
        self.change_evaluated: Callable[[list[int]], list[int]] = lambda ids: ids
        """Of what the server has evaluated, BOS included."""
        self.answered = [7]
        self.counted: list[str] = []
        self.rendered: list[list[dict[str, Any]]] = []

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        self.rendered.append(messages)
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        continues = messages[-1]["role"] == "assistant"
        text = str(
            self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                tokenize=False,
                add_generation_prompt=not continues,
                continue_final_message=continues,
            )
        )
        return self.change_text(text.removeprefix(BOS) if self.adds_bos else text)

    def ids(self, text: str) -> list[int]:
        bos = [self.tokenizer.bos_token_id] if self.adds_bos else []
        return bos + list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def gguf_ids(self, text: str) -> list[int]:
        return self.change_ids(self.ids(text))

    def count_and_ids(self, prompt: str) -> tuple[list[int], int]:
        self.counted.append(prompt)
        evaluated = self.change_evaluated(self.ids(prompt))
        return evaluated[self.adds_bos :] + self.answered, len(evaluated)

    def check(self, deviations: Mapping[str, str] | None = None, counts: bool = True) -> PromptCheck:
        renderer = Renderer("stand-in 1.0", self.render, self.count_and_ids if counts else None)
        return PromptCheck(self.tokenizer, renderer, self.gguf_ids, self.adds_bos, self.system, deviations or {})


def one(served: Served, conversation: Conversation = HELLO, **options: Any) -> tuple[str, str]:
    (found,) = served.check(**options).run([conversation])
    assert found["name"] == conversation.name
    return found["status"], found["detail"]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("prompt", [None, "Be brief."])
def test_prompts_that_are_equal(tokenizer: PreTrainedTokenizerFast, adds_bos: bool, prompt: str | None) -> None:
    tokenizer.chat_template = WITH_BOS if adds_bos else CHAT_TEMPLATE
    served = Served(tokenizer, adds_bos, prompt)
    assert served.check().run(BASIC) == [{"name": c.name, "status": "equal", "detail": ""} for c in BASIC]
    # What is sent has no system prompt put before it: the server does that.
    assert served.rendered == [list(conversation.messages) for conversation in BASIC]
    assert len(served.counted) == len(BASIC)


def test_all_conversations_of_the_check_can_be_rendered_for_a_usual_template(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = {one["name"]: one["status"] for one in Served(tokenizer).check().run()}
    assert list(found) == [conversation.name for conversation in CONVERSATIONS]
    assert {name for name, status in found.items() if status != "equal"} == {
        conversation.name for conversation in CONVERSATIONS if conversation.tools
    }


def test_one_character_more_is_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    served.change_text = lambda text: text.replace("道路", "道路 ")
    status, detail = one(served)
    assert status == "differs"
    assert detail.startswith("the text:\n")
    assert "    -Hello, 道路<|im_end|>\\n\n" in detail
    assert "    +Hello, 道路 <|im_end|>\\n" in detail
    assert served.counted == []


def test_a_line_end_that_is_missing_is_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    served.change_text = lambda text: text.removesuffix("\n")
    status, detail = one(served)
    assert status == "differs"
    assert "    -<|im_start|>assistant\\n\n    +<|im_start|>assistant" in detail


def test_a_default_system_prompt_of_the_servers_is_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    served.change_text = lambda text: "<|im_start|>system\nYou are Qwen<|im_end|>\n" + text
    status, detail = one(served)
    assert status == "differs"
    assert "    +You are Qwen<|im_end|>\\n" in detail


def test_a_system_prompt_that_the_server_does_not_put_before_is_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer, system="Be brief.")
    check = served.check()
    served.system = None
    statuses = [found["status"] for found in check.run([HELLO, SYSTEM])]
    assert statuses == ["differs", "equal"]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_bos_too_many_in_the_text_is_shown(tokenizer: PreTrainedTokenizerFast, adds_bos: bool) -> None:
    tokenizer.chat_template = WITH_BOS if adds_bos else CHAT_TEMPLATE
    served = Served(tokenizer, adds_bos)
    served.change_text = lambda text: BOS + text
    status, detail = one(served)
    assert status == "differs"
    assert f"    +{BOS}<|im_start|>user" in detail


def test_a_bos_that_is_put_before_a_prompt_that_was_trained_without_is_named(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    status, detail = one(Served(tokenizer, adds_bos=True))
    assert status == "differs"
    assert detail.startswith(f"the GGUF's tokenizer puts 0='{BOS}' before every prompt")
    assert "set add_bos_token to false" in detail


def test_a_bos_that_is_not_put_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = WITH_BOS
    served = Served(tokenizer, adds_bos=True)
    served.change_ids = lambda ids: ids[1:]
    status, detail = one(served)
    assert status == "differs"
    assert f"from number 0 on 0='{BOS}'" in detail


def test_one_token_that_differs_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    served.change_ids = lambda ids: [*ids[:3], 3, *ids[4:]]
    ids = served.ids(served.render(list(HELLO.messages), None))
    assert ids[3] != 3
    status, detail = one(served)
    assert status == "differs"
    first = f"{ids[3]}={tokenizer.convert_ids_to_tokens(ids[3])!r}"
    found = f"3={tokenizer.convert_ids_to_tokens(3)!r}"
    expected = f"the tokens by llama.cpp: {len(ids)} expected, {len(ids)} found; from number 3 on {first} "
    assert detail.startswith(expected)
    assert f"is expected and {found} " in detail


def test_tokens_in_another_order_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    served.change_ids = lambda ids: [ids[0], ids[2], ids[1], *ids[3:]]
    status, detail = one(served)
    assert status == "differs"
    assert "from number 1 on" in detail


def test_tokens_that_are_cut_off_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    served.change_ids = lambda ids: ids[:-1]
    status, detail = one(served)
    assert status == "differs"
    assert detail.endswith("is expected and nothing found")


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_server_that_evaluates_one_token_more_is_named(tokenizer: PreTrainedTokenizerFast, adds_bos: bool) -> None:
    tokenizer.chat_template = WITH_BOS if adds_bos else CHAT_TEMPLATE
    served = Served(tokenizer, adds_bos)
    served.change_evaluated = lambda ids: [0, *ids]
    count = len(served.ids(served.render(list(HELLO.messages), None)))
    status, detail = one(served)
    assert status == "differs"
    assert detail.startswith(f"stand-in 1.0 evaluates {count + 1} tokens, the tokenizer gives {count} (")


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("place", [1, 4, -2])
def test_a_server_whose_tokens_differ_is_named(tokenizer: PreTrainedTokenizerFast, adds_bos: bool, place: int) -> None:
    tokenizer.chat_template = WITH_BOS if adds_bos else CHAT_TEMPLATE
    served = Served(tokenizer, adds_bos)

    def changed(ids: list[int]) -> list[int]:
        ids = list(ids)
        ids[place] = 3
        return ids

    served.change_evaluated = changed
    status, detail = one(served)
    assert status == "differs"
    assert detail.startswith("the tokens by stand-in 1.0: ")


def test_the_last_token_of_a_prompt_may_have_joined_with_what_was_answered(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    served = Served(tokenizer)
    served.change_evaluated = lambda ids: [*ids[:-1], 3]
    served.answered = []
    assert one(served) == ("equal", "")


def test_a_server_that_tells_no_ids_is_counted_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    served.count_and_ids = lambda prompt: ([], len(served.ids(prompt)))  # type: ignore[method-assign]
    assert one(served) == ("equal", "")
    served.count_and_ids = lambda prompt: ([], len(served.ids(prompt)) - 1)  # type: ignore[method-assign]
    assert one(served)[0] == "differs"


def test_a_renderer_that_evaluates_nothing_is_not_asked_to(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    assert one(served, counts=False) == ("equal", "")
    assert served.counted == []


def test_a_slow_server_is_not_asked_to_evaluate_every_prompt_but_each_is_compared(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(prompt_check.time, "monotonic", lambda: clock[0])
    served = Served(tokenizer)

    def slow(ids: list[int]) -> list[int]:
        clock[0] += 16
        return ids

    served.change_evaluated = slow
    check = served.check()
    assert {found["status"] for found in check.run([HELLO, SYSTEM, TURNS, HELLO])} == {"equal"}
    assert len(served.counted) == check.evaluated == 2
    served.change_ids = lambda ids: ids[:-1]
    assert check.run([TURNS])[0]["status"] == "differs"


def test_a_difference_that_is_known_is_a_deviation_and_equality_stays_equality(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    served = Served(tokenizer)
    served.change_text = lambda text: text + " " if "道路" in text else text
    found = served.check({"hello": "the reason", "system": "another"}).run([HELLO, SYSTEM])
    assert [(one["status"], one["detail"]) for one in found] == [("deviates", "the reason"), ("equal", "")]


def test_what_the_chat_template_refuses_is_not_asked_of_the_server(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system here') }}" + CHAT_TEMPLATE
    served = Served(tokenizer)
    assert one(served) == ("refused", "by the chat template: no system here")
    assert served.rendered == []


def test_a_registered_system_prompt_that_the_chat_template_refuses_is_said(tokenizer: PreTrainedTokenizerFast) -> None:
    """Gemma 2 has no system role; nothing that is rendered can be compared then, and it must not look as if it had been."""
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    tokenizer.chat_template = refusal + CHAT_TEMPLATE
    served = Served(tokenizer)
    assert one(served) == ("equal", "")
    assert one(served, SYSTEM) == ("refused", "by the chat template: no system here")
    render = served.render

    def with_system(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        first, *more = messages
        return render([{**first, "content": f"Be brief.\n\n{first['content']}"}, *more], tools)

    check = served.check()
    check.system, check.renderer = "Be brief.", Renderer("stand-in 1.0", with_system, None)
    (found,) = check.run([HELLO])
    assert found["status"] == "deviates"
    assert "no system role" in found["detail"]
    check.renderer = Renderer("stand-in 1.0", lambda messages, tools: "WRONG", None)
    (found,) = check.run([HELLO])
    assert found["status"] == "differs"


def test_tools_of_a_chat_template_without_any_are_not_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    served = Served(tokenizer)
    assert one(served, TOOLS) == ("refused", "the chat template has no tools")
    assert served.rendered == []


def with_tools(tokenizer: PreTrainedTokenizerFast, error: str) -> tuple[Served, Callable[[], tuple[str, str]]]:
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
    served = Served(tokenizer)

    def refuses(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        raise OllamakeError(error)

    served.render = refuses  # type: ignore[method-assign]
    return served, lambda: one(served, TOOLS)


def test_tools_that_a_server_refuses_for_the_model_are_not_offered(tokenizer: PreTrainedTokenizerFast) -> None:
    _, run = with_tools(tokenizer, "m does not support tools")
    status, detail = run()
    assert status == "not offered"
    assert "no wrong prompt comes of them" in detail


def test_another_failure_of_a_server_is_a_failure(tokenizer: PreTrainedTokenizerFast) -> None:
    served, run = with_tools(tokenizer, "out of memory")
    with pytest.raises(OllamakeError, match="out of memory"):
        run()
    _ = served
    served.render = with_tools(tokenizer, "m does not support tools")[0].render  # type: ignore[method-assign]
    with pytest.raises(OllamakeError, match="does not support tools"):
        one(served, HELLO)


def test_tools_that_a_server_writes_in_its_own_way_are_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
    served = Served(tokenizer)
    assert one(served, TOOLS) == ("equal", "")
    served.change_text = lambda text: text.replace('"type": "function"', '"type":"function"')
    status, detail = one(served, TOOLS)
    assert status == "deviates"
    assert detail.startswith("Ollama writes tools in its own way: ")
    assert '"type":"function"' in detail


def test_a_bos_of_the_template_stays_where_nobody_puts_one(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = WITH_BOS
    assert one(Served(tokenizer, adds_bos=False)) == ("equal", "")


def test_control_characters_and_white_space_are_made_visible() -> None:
    difference = text_difference("a\tb\r\nsame\n", "a b\u3000\nsame\n")
    assert "-a\\tb\\r\\n" in difference
    assert "+a b\\u3000\\n" in difference
    assert " same\\n" in difference


def test_a_long_difference_is_cut() -> None:
    difference = text_difference("".join(f"{number}\n" for number in range(100)), "x" * 1000)
    assert len(difference.splitlines()) <= 40
    assert max(map(len, difference.splitlines())) <= 304


@pytest.mark.parametrize(
    ("end", "end_tokens", "stop"),
    [
        (None, {}, []),
        ("<|im_end|>", {"<|im_end|>": 2}, []),
        ("<|im_end|>", {END_OF_TEXT: 0}, ["<|im_end|>"]),
    ],
)
def test_a_model_that_stops(end: str | None, end_tokens: dict[str, int], stop: list[str]) -> None:
    assert stop_fault(end, end_tokens, stop) is None


@pytest.mark.parametrize(
    ("end_tokens", "stop", "words"),
    [
        ({}, [], ("(it has none)", "(which is empty)")),
        ({END_OF_TEXT: 0, "</s>": 1}, ["END"], (f"({END_OF_TEXT}, </s>)", "(END)")),
    ],
)
def test_a_model_that_would_not_stop(end_tokens: dict[str, int], stop: list[str], words: tuple[str, str]) -> None:
    fault = stop_fault("<|im_end|>", end_tokens, stop)
    assert fault is not None
    assert "ends an answer with '<|im_end|>'" in fault
    assert all(word in fault for word in words)
    assert "Add it to ollama.parameters.stop" in fault
