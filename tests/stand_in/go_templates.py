"""Ollama's TEMPLATEs, parsed and rendered by a Go program that is built when one is first needed.

Go is on every machine that runs these tests, because the real Ollama is built with it. The program is kept in the
machine's temporary folder under the digest of its source, so that it is built once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("go_template.go")
BARE_PROMPT = "{{ .Prompt }}"
"""What Ollama renders a model by that has no template at all."""


class TemplateRefused(Exception):
    """Go does not parse or execute the template; the text is Go's."""


class NoGo(RuntimeError):
    """There is no Go to play a template with."""


@dataclass(frozen=True)
class Variables:
    """What a template refers to, which says what a model can do."""

    names: frozenset[str]
    thinking_tags: tuple[str, str]

    @property
    def capabilities(self) -> list[str]:
        """Tools, insert and thinking, as far as the template has them (server/images.go)."""
        found = [kind for name, kind in (("tools", "tools"), ("suffix", "insert")) if name in self.names]
        return [*found, "thinking"] if all(self.thinking_tags) else found


@cache
def variables(template: str) -> Variables:
    """Return what a template refers to. Raises TemplateRefused if Go does not parse it."""
    if template == BARE_PROMPT:
        return Variables(frozenset({"prompt", "response"}), ("", ""))
    answer = _asked({"template": template})
    return Variables(frozenset(answer["variables"] or []), (answer["opening"], answer["closing"]))


def render(template: str, messages: list[dict[str, Any]], tools: Any = None, think: bool | str | None = None) -> str:
    """Return a conversation as the template writes it. Raises TemplateRefused."""
    question = {"template": template, "render": True, "messages": messages, "tools": tools, "think": bool(think)}
    level = think if isinstance(think, str) else ""
    text = _asked(question | {"think_level": level, "is_think_set": think is not None})["text"]
    return str(text)


def _asked(question: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run([_program()], input=json.dumps(question), capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise TemplateRefused(answer["error"])
    return answer


@cache
def _program() -> Path:
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    program = Path(tempfile.gettempdir()) / f"ollama-stand-in-{os.getuid()}" / f"go_template-{digest}"
    if not program.exists():
        go = shutil.which("go")
        if go is None:
            raise NoGo("the stand-in needs `go` on PATH to play a TEMPLATE")
        program.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            built = Path(folder) / "built"
            environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GO111MODULE": "off"}
            subprocess.run([go, "build", "-o", built, SOURCE.name], cwd=SOURCE.parent, env=environment, check=True)
            built.replace(program)
    return program
