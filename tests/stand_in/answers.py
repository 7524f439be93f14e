"""POST /api/chat and /api/generate (server/routes.go, server/prompt.go, llm/llama_server.go).

Not played: images, logprobs, suffix, renderers and parsers, and what Ollama reads out of the text of a model that it renders
in Go (thoughts, calls of tools). A completion's prompt that is too long is not shortened, llama-server refuses it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from creation import Refused
from go_templates import TemplateRefused, render
from go_text import moment
from loaded_model import Model
from options import WrongType, merged_options
from runners import Runner, RunnerFailed, Runners

Answer = dict[str, Any] | Iterator[dict[str, Any]]
"""One object, or the lines of a stream."""

Message = dict[str, Any]

_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "stop", "repeat_penalty", "repeat_last_n"),
    *("frequency_penalty", "presence_penalty", "typical_p", "seed"),
)
_REPEATS = 30
"""Times that one token may come again before Ollama gives up a completion."""


class Answers:
    """What loaded models say."""

    def __init__(self, runners: Runners) -> None:
        self._runners = runners

    def chat(self, model: Model, request: dict[str, Any]) -> Answer:
        """Answer POST /api/chat. Raises Refused."""
        messages = [_as_message(message) for message in request.get("messages") or []]
        blank: dict[str, Any] = {"model": request["model"], "created_at": _now()}
        blank["message"] = {"role": "assistant", "content": ""}
        if not messages and _is_zero(request.get("keep_alive")):
            self._runners.expire(model)
            return blank | {"done": True, "done_reason": "unload"}
        wanted = ["completion", *(["tools"] if request.get("tools") else [])]
        think = _think(model, request, wanted)
        with ExitStack() as held:
            runner, options = self._held(held, model, request, wanted, "chat")
            if not messages:
                return blank | {"done": True, "done_reason": "load"}
            full = [_as_message(message) for message in model.messages] + messages
            if messages[0]["role"] != "system" and model.system:
                full = [{"role": "system", "content": model.system}, *full]
            full = _without_old_thoughts(model, full)
            chat = _Chat(model, runner, options, full, request, think)
            if request.get("_debug_render_only"):
                debug = {"_debug_info": {"rendered_template": chat.prompt()}}
                return blank | {"message": {"role": "", "content": ""}, "done": False} | debug
            pieces = chat.pieces()
            lines = self._timed(held.pop_all(), pieces, time.time_ns())
            return ({"model": request["model"], "created_at": _now()} | piece for piece in lines)

    def generate(self, model: Model, request: dict[str, Any]) -> Answer:
        """Answer POST /api/generate. Raises Refused."""
        prompt = request.get("prompt") or ""
        blank: dict[str, Any] = {"model": request["model"], "created_at": _now(), "response": ""}
        if not prompt and _is_zero(request.get("keep_alive")):
            self._runners.expire(model)
            return blank | {"done": True, "done_reason": "unload"}
        raw = bool(request.get("raw"))
        if raw and any(request.get(key) for key in ("template", "system", "context")):
            raise Refused(400, "raw mode does not support template, system, or context")
        wanted = ["completion", *(["insert"] if request.get("suffix") else [])]
        think = _think(model, request, wanted)
        with ExitStack() as held:
            runner, options = self._held(held, model, request, wanted, "generate")
            if not prompt:
                return blank | {"done": True, "done_reason": "load"}
            if not raw:
                prompt = self._generate_prompt(model, runner, options, request, think)
            if request.get("_debug_render_only"):
                return blank | {"done": False, "_debug_info": {"rendered_template": prompt}}
            pieces = _completion(runner, options, prompt, request.get("format"))
            lines = self._timed(held.pop_all(), pieces, time.time_ns(), None if raw else (runner, prompt))
            return (
                {"model": request["model"], "created_at": _now(), "response": piece.pop("message")["content"]} | piece
                for piece in lines
            )

    def _held(
        self, held: ExitStack, model: Model, request: dict[str, Any], wanted: list[str], what: str
    ) -> tuple[Runner, dict[str, Any]]:
        """Check what is asked of the model and load it."""
        missing = [kind for kind in wanted if kind not in model.capabilities]
        if "completion" in missing:
            raise Refused(400, f'"{request["model"]}" does not support {what}')
        if missing:
            raise Refused(400, f"{model.name} does not support " + "\n".join(missing))
        if model.config.get("renderer") or model.config.get("parser"):
            raise Refused(500, "the stand-in has no renderers and parsers")
        try:
            options = merged_options(model.options, request.get("options"))
            given = {**model.options, **(request.get("options") or {})}
            automatic = "num_ctx" not in given and os.environ.get("OLLAMA_CONTEXT_LENGTH", "0") == "0"
            holding = self._runners.running(model, options, request.get("keep_alive"), automatic_context=automatic)
            return held.enter_context(holding), options
        except (WrongType, RunnerFailed, ValueError) as error:
            raise Refused(500, str(error)) from error

    def _generate_prompt(
        self, model: Model, runner: Runner, options: dict[str, Any], request: dict[str, Any], think: bool | str | None
    ) -> str:
        system = request.get("system") or model.system
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        context = request.get("context")
        if context is None:
            messages += [_as_message(message) for message in model.messages]
        messages.append({"role": "user", "content": request["prompt"]})
        try:
            before = runner.ask("/detokenize", {"tokens": context})["content"] if context is not None else ""
            if request.get("template"):
                return str(before) + render(request["template"], messages, None, think)
        except (RunnerFailed, TemplateRefused) as error:
            raise Refused(500, str(error)) from error
        # A chat template of llama-server's own choice is for /api/chat alone.
        return str(before) + _Chat(model, runner, options, messages, {}, think, needs_jinja=True).prompt()

    def _timed(
        self,
        held: ExitStack,
        pieces: Iterator[dict[str, Any]],
        start: int,
        whole: tuple[Runner, str] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the pieces, the last with what it took and, for generate, with the tokens of the whole."""
        with held:
            said = ""
            try:
                for piece in pieces:
                    said += piece["message"]["content"]
                    if piece["done"]:
                        counts = piece.pop("counts")
                        if whole is not None:
                            piece["context"] = whole[0].tokens(whole[1] + said)
                        piece |= {"total_duration": time.time_ns() - start, "load_duration": 1} | counts
                    yield piece
            except RunnerFailed as error:
                raise Refused(error.status, str(error)) from error


class _Chat:
    """One conversation on its way to llama-server."""

    def __init__(
        self,
        model: Model,
        runner: Runner,
        options: dict[str, Any],
        messages: list[Message],
        request: dict[str, Any],
        think: bool | str | None,
        *,
        needs_jinja: bool = False,
    ) -> None:
        self._model, self._runner, self._options = model, runner, options
        self._request, self._think = request, think
        self._is_native = not model.is_rendered_in_go and bool(model.jinja or not needs_jinja)
        try:
            self._messages = self._that_fit(messages) if request.get("truncate", True) else messages
        except (RunnerFailed, TemplateRefused) as error:
            raise Refused(getattr(error, "status", 500), str(error)) from error

    def prompt(self) -> str:
        """Return the text that the model continues. Raises Refused."""
        try:
            return self._rendered(self._messages)
        except (RunnerFailed, TemplateRefused) as error:
            raise Refused(getattr(error, "status", 500), str(error)) from error

    def pieces(self) -> Iterator[dict[str, Any]]:
        """Yield the answer."""
        if self._is_native:
            body = self._native_body(self._messages) | {"stream": True}
            return _native_pieces(self._runner, body)
        return _completion(self._runner, self._options, self.prompt(), self._request.get("format"))

    def _rendered(self, messages: list[Message]) -> str:
        if self._is_native:
            return str(self._runner.ask("/apply-template", self._native_body(messages))["prompt"])
        return render(self._model.template, messages, self._request.get("tools"), self._think)

    def _that_fit(self, messages: list[Message]) -> list[Message]:
        """Drop messages from the front, but for system's, until the prompt fits into the context."""
        if self._is_native and len(messages) == 1:
            return messages
        room = min(self._options["num_ctx"], self._runner.options["num_ctx"])
        kept = messages
        for start in range(len(messages)):
            kept = [message for message in messages[:start] if message["role"] == "system"] + messages[start:]
            if start == len(messages) - 1 or len(self._runner.tokens(self._rendered(kept))) <= room:
                break
        return kept

    def _native_body(self, messages: list[Message]) -> dict[str, Any]:
        body = {"messages": [_for_llama_server(message) for message in messages]}
        body |= _sent(self._runner, self._options) | {"cache_prompt": True}
        if self._request.get("tools"):
            body["tools"] = self._request["tools"]
        if self._think is not None:
            effort = {"reasoning_effort": self._think} if isinstance(self._think, str) else {}
            body["chat_template_kwargs"] = {"enable_thinking": bool(self._think)} | effort
        wanted = self._request.get("format")
        if wanted == "json":
            body["response_format"] = {"type": "json_object"}
        elif wanted:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "schema", "schema": wanted}}
        return body


def _native_pieces(runner: Runner, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    with runner.generating:
        for event in runner.events("/v1/chat/completions", body):
            if event.get("error"):
                raise RunnerFailed(f"llama-server chat error: {event['error']}")
            if not event.get("choices"):
                continue
            choice = event["choices"][0]
            delta = choice.get("delta") or {}
            message = {"role": "assistant", "content": delta.get("content") or ""}
            if delta.get("reasoning_content"):
                message["thinking"] = delta["reasoning_content"]
            for part in delta.get("tool_calls") or []:
                call = calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
                call["id"] += part.get("id") or ""
                for key in ("name", "arguments"):
                    call[key] += (part.get("function") or {}).get(key) or ""
            if choice.get("finish_reason"):
                if calls:
                    message["tool_calls"] = [_tool_call(index, calls[index]) for index in sorted(calls)]
                yield _last(message, choice["finish_reason"] == "length", event.get("timings") or {})
                return
            if message["content"] or "thinking" in message:
                yield {"message": message, "done": False}


def _completion(runner: Runner, options: dict[str, Any], prompt: str, wanted: Any) -> Iterator[dict[str, Any]]:
    values = runner.model.gguf.values if runner.model.gguf else {}
    if values.get("tokenizer.ggml.add_bos_token") or values.get("tokenizer.ggml.pre") in ("lfm2", "gemma4"):
        prompt = prompt.removeprefix("<bos>")
    body = _sent(runner, options) | {"prompt": prompt, "stream": True, "cache_prompt": True}
    if wanted:
        body["json_schema"] = {"type": "object"} if wanted == "json" else wanted
    token, repeats = "", 0
    with runner.generating:
        for event in runner.events("/completion", body):
            content = event.get("content") or ""
            repeats = repeats + 1 if content.strip() == token else 0
            token = content.strip()
            if repeats > _REPEATS:
                return
            message = {"role": "assistant", "content": content}
            if event.get("stop"):
                yield _last(message, event.get("stop_type") == "limit", event.get("timings") or {})
                return
            if content:
                yield {"message": message, "done": False}


def _last(message: Message, at_limit: bool, timings: dict[str, Any]) -> dict[str, Any]:
    counts = {
        "prompt_eval_count": timings.get("cache_n", 0) + timings.get("prompt_n", 0),
        "prompt_eval_duration": int(timings.get("prompt_ms", 0) * 1e6),
        "eval_count": timings.get("predicted_n", 0),
        "eval_duration": int(timings.get("predicted_ms", 0) * 1e6),
    }
    counts = {key: value for key, value in counts.items() if value}
    return {"message": message, "done": True, "done_reason": "length" if at_limit else "stop", "counts": counts}


def _sent(runner: Runner, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as llama-server names them; an answer without bound gets one."""
    most = 10 * runner.options["num_ctx"]
    asked = options["num_predict"]
    bounded = most if asked < 0 or asked > most else asked
    sent = {name: options[name] for name in _SAMPLING if options[name] is not None}
    return {"n_predict": bounded, "n_keep": options["num_keep"]} | sent


def _tool_call(index: int, call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.loads(call["arguments"]) if call["arguments"].strip() else {}
    return {"id": call["id"], "function": {"index": index, "name": call["name"], "arguments": arguments}}


def _for_llama_server(message: Message) -> Message:
    converted = {"role": message["role"], "content": message["content"]}
    for theirs, ours in (("tool_call_id", "tool_call_id"), ("name", "tool_name")):
        if message.get(ours):
            converted[theirs] = message[ours]
    if message.get("tool_calls"):
        converted["tool_calls"] = [
            {
                "id": call.get("id", ""),
                "index": call["function"].get("index", 0),
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"].get("arguments") or {}),
                },
            }
            for call in message["tool_calls"]
        ]
    return converted


def _as_message(message: Message) -> Message:
    return message | {"role": str(message.get("role", "")).lower(), "content": message.get("content") or ""}


def _think(model: Model, request: dict[str, Any], wanted: list[str]) -> bool | str | None:
    """Return whether to think: models that can do by default. Raises Refused for one that cannot."""
    think: bool | str | None = request.get("think")
    if "thinking" in model.capabilities:
        wanted.append("thinking")
        return True if think is None else think
    if think:
        raise Refused(400, f'"{request["model"]}" does not support thinking')
    return think


def _without_old_thoughts(model: Model, messages: list[Message]) -> list[Message]:
    """Cut <think> out of the answers before the last question, for two families."""
    if model.config.get("model_family") != "qwen3" and model.name.model != "deepseek-r1":
        return messages
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    thoughts = re.compile(r"^\s*<think>.*?(</think>\s*|$)", re.DOTALL)
    return [
        message | {"content": thoughts.sub("", message["content"])}
        if message["role"] == "assistant" and place < last
        else message
        for place, message in enumerate(messages)
    ]


def _is_zero(keep_alive: Any) -> bool:
    return keep_alive is not None and keep_alive in (0, "0", "0s", "0m", "0h")


def _now() -> str:
    return moment(time.time_ns())
