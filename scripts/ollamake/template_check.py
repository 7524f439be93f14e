"""The check of a registered model's prompts: what serves it is found, asked, and the result said in words."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ollamake.chat_template import ChosenTemplate, choose_template
from ollamake.errors import OllamakeError
from ollamake.llama_server import LlamaServer, llama_server
from ollamake.ollama_server import PATIENCE, OllamaServer
from ollamake.prompt_check import DEVIATES, DIFFERS, EQUAL, Messages, PromptCheck, Renderer, Tools, stop_fault
from ollamake.prompt_template import special_texts
from ollamake.store_server import server_of

log = logging.getLogger("ollamake")

_CONTEXT = 4096
"""Tokens in which every conversation fits."""


def check_template(
    marker: Mapping[str, Any],
    template: Mapping[str, Any],
    record: Mapping[str, Any],
    folder: Path,
    gguf: Path,
    tokenize: Path,
    serve: Path | None,
    stops: bool,
    patience: float = PATIENCE,
) -> dict[str, Any]:
    """Check one model and return what was found: renderer, conversations, end of turn, warnings.

    ``marker`` is its registration's, ``template`` its record of prompt_template, ``record`` its GGUF's, ``folder`` has its
    tokenizer, ``tokenize`` is llama-tokenize, ``serve`` llama-server or None. Where something differs: raises OllamakeError
    with the differences if ``stops``, else they are warned of.
    """
    stop = marker["request"].get("parameters", {}).get("stop", [])
    ends = (record["tokenizer"] or {}).get("end_tokens", {})
    faults = [fault for fault in [stop_fault(template["end_of_turn"], ends, stop)] if fault is not None]
    result: dict[str, Any] = {"name": marker["name"], "end_of_turn": template["end_of_turn"], "renderer": None}
    result["evaluated"] = 0
    conversations: list[dict[str, str]] = []
    tokenizer, unchecked = None, ""
    try:
        tokenizer = _tokenizer(folder)
    except OllamakeError as error:
        if stops:
            raise
        unchecked = str(error)
    if tokenizer is not None and tokenizer.chat_template is None:
        unchecked = "the tokenizer has no chat template, so there is nothing to compare Ollama's prompts with"
    elif tokenizer is not None:
        with _renderer(marker, template, str(tokenizer.chat_template), folder, gguf, serve, patience) as renderer:
            unchecked = (
                "how the model is prompted has not been checked: there is no TEMPLATE that is proven, and nothing here that"
                " serves the model. Put `ollama` or `llama-server` on PATH and run again with --forcerun check_template."
            )
            if renderer is not None:
                unchecked, result["renderer"] = "", renderer.name
                check = PromptCheck(
                    tokenizer,
                    renderer,
                    lambda text: llama_cpp_ids(tokenize, gguf, text),
                    template["adds_bos"],
                    marker["request"].get("system"),
                    template["deviations"],
                )
                conversations = check.run()
                result["evaluated"] = check.evaluated
    differing = [one for one in conversations if one["status"] == DIFFERS]
    faults += [f"{one['name']}: {one['detail']}" for one in differing]
    for one in conversations:
        log.info("%-40s %s %s", one["name"], one["status"], one["detail"] if one["status"] != DIFFERS else "")
    if faults and stops:
        raise OllamakeError(_message(marker["name"], result["renderer"], faults, template["policy"]))
    if conversations and not any(one["status"] == EQUAL for one in conversations):
        reasons = dict.fromkeys(one["detail"] for one in conversations if one["status"] == DEVIATES)
        unchecked = "; ".join(["not one conversation is as in training", *reasons])
    unknown_end = "with which token an answer ends cannot be told from the chat template, so it has not been checked"
    warnings = [*faults, *([unchecked] if unchecked else [])]
    warnings += [unknown_end] if conversations and template["end_of_turn"] is None else []
    for warning in warnings:
        log.warning("%s", warning)
    equal = sum(one["status"] == EQUAL for one in conversations)
    deviating = sum(one["status"] == DEVIATES for one in conversations)
    log.info(
        "%d of %d conversations are equal, text and tokens%s; rendered by %s, tokens of %d from there, too",
        equal,
        len(conversations),
        f", {deviating} deviate as said above" if deviating else "",
        result["renderer"],
        result["evaluated"],
    )
    return result | {"conversations": conversations, "warnings": warnings}


def llama_cpp_ids(program: Path, gguf: Path, text: str) -> list[int]:
    """Return the token ids of a text by a GGUF's tokenizer, with the BOS that it puts before them; reads no weights."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompt"
        file.write_bytes(text.encode("utf-8"))
        command = [str(program), "-m", str(gguf), "-f", str(file), "--ids", "--no-escape", "--log-disable"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    try:
        return [int(number) for number in json.loads(lines[-1])]
    except (IndexError, ValueError, TypeError) as error:
        raise OllamakeError(
            f"{program} cannot tokenize with {gguf} (exit code {done.returncode}):\n{done.stderr.strip()[-1000:]}"
        ) from error


def _tokenizer(folder: Path) -> Any:
    # Imported late: it takes seconds, and the other functions here do without.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # what stands in a stranger's files may bring about any
        raise OllamakeError(f"transformers cannot load the tokenizer in {folder}: {error}") from error


@contextmanager
def _renderer(
    marker: Mapping[str, Any],
    template: Mapping[str, Any],
    jinja: str,
    folder: Path,
    gguf: Path,
    serve: Path | None,
    patience: float,
) -> Iterator[Renderer | None]:
    """Yield what prompts the model, or None.

    The server that has it, or one on the store; without any Ollama, what says the same as the proven TEMPLATE; without that,
    llama-server, by which Ollama 0.30 and later renders the chat template in the GGUF.
    """
    system = marker["request"].get("system")
    if marker["target"] == "server" or shutil.which("ollama"):
        with server_of(marker, patience) as server:
            yield _served(server, marker["name"], marker["request"].get("parameters", {}).get("num_ctx"))
    elif template["family"] is not None:
        chosen = choose_template(jinja, *special_texts(folder), template["adds_bos"])
        yield None if chosen is None else _twin(chosen, system)
    elif serve is not None and template["policy"] != "own":
        with llama_server(serve, gguf) as server:
            yield _native(server, system)
    else:
        yield None


def _served(server: OllamaServer, name: str, num_ctx: int | None) -> Renderer:
    # In a smaller context the long conversation would be shortened.
    options = {"num_ctx": _CONTEXT} if num_ctx is not None and num_ctx < _CONTEXT else {}

    def render(messages: Messages, tools: Tools) -> str:
        return server.rendered(name, messages, tools, options)

    def count_and_ids(prompt: str) -> tuple[list[int], int]:
        return server.token_ids(name, prompt, options)

    return Renderer(f"Ollama {server.version()} ({server.address})", render, count_and_ids)


def _twin(chosen: ChosenTemplate, system: str | None) -> Renderer:
    def render(messages: Messages, tools: Tools) -> str:
        if tools:
            raise OllamakeError("this TEMPLATE does not support tools")
        return chosen.turns.render(_with_system(messages, system))

    return Renderer(f"the registered TEMPLATE ({chosen.family})", render, None)


def _native(server: LlamaServer, system: str | None) -> Renderer:
    def render(messages: Messages, tools: Tools) -> str:
        return server.rendered(_with_system(messages, system), tools)

    def count_and_ids(prompt: str) -> tuple[list[int], int]:
        ids = server.token_ids(prompt)
        return [], len(ids)

    return Renderer("llama-server, from the chat template in the GGUF", render, count_and_ids)


def _with_system(messages: Messages, system: str | None) -> Messages:
    """Put the registered system prompt before a conversation without one, as Ollama does."""
    return (
        messages
        if not system or messages[0]["role"] == "system"
        else [{"role": "system", "content": system}, *messages]
    )


def _message(name: str, renderer: str | None, faults: list[str], policy: str) -> str:
    remedies = {
        "auto": "No TEMPLATE is known that says what the chat template says; Ollama 0.30 and later can render that itself",
        "gguf": "Ollama before 0.30 does not render the chat template in a GGUF: use ollama.template: auto, or a newer Ollama",
        "own": "The TEMPLATE in ollama.template says something else",
    }
    remedy = remedies[policy]
    if not any("the text:" in fault for fault in faults):
        remedy = "The text is right: what differs is the tokenizer in the GGUF, or the end of an answer"
    return (
        f"{name} is not prompted as in training ({renderer or 'nothing rendered'}):\n  "
        + "\n  ".join(faults)
        + f"\nA model that is prompted otherwise answers worse and rambles. {remedy}. The model stays registered;"
        " ollama.template_differs: warn builds all the same."
    )
