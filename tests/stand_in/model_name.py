"""Names of models as Ollama parses them (types/model/name.go, internal/modelref/modelref.go)."""

from __future__ import annotations

import re
from typing import NamedTuple

_PATTERNS = {
    "host": r"\w[\w.:-]{0,349}",
    "namespace": r"\w[\w-]{0,79}",
    "model": r"\w[\w.-]{0,79}",
    "tag": r"\w[\w.-]{0,79}",
}
_DEFAULTS = ("registry.ollama.ai", "library")


class InvalidName(Exception):
    """No name that Ollama takes."""


class NoName(Exception):
    """Nothing was given."""


class OfTheCloud(Exception):
    """The tag says that the model runs at ollama.com."""


class Name(NamedTuple):
    """A whole name, in the order of its manifest's path."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def shortest(self) -> str:
        """The name as it is shown: without the parts that are the default, but always with its tag."""
        if self.host.lower() != _DEFAULTS[0]:
            return str(self)
        path = self.model if self.namespace.lower() == _DEFAULTS[1] else f"{self.namespace}/{self.model}"
        return f"{path}:{self.tag}"

    @property
    def is_valid(self) -> bool:
        """Whether Ollama takes every part."""
        return all(re.fullmatch(_PATTERNS[part], text, re.ASCII) for part, text in zip(self._fields, self, strict=True))


def parsed_name(text: str) -> Name:
    """Return the name with Ollama's defaults filled in. Raises InvalidName."""
    head, slash, last = text.rpartition("/")
    model, _, tag = last.rpartition(":") if ":" in last else (last, "", "latest")
    path = f"{head}{slash}{model}".rsplit("/", 2)
    name = Name(*_DEFAULTS[: 3 - len(path)], *path, tag)  # type: ignore[call-arg]
    if not name.is_valid:
        raise InvalidName
    return name


def referred_name(text: str) -> Name:
    """Return the name of a model that is asked for: `:local` is no tag there. Raises NoName, InvalidName, OfTheCloud."""
    if not text.strip():
        raise NoName
    path, _, tag = text.strip().rpartition(":")
    if tag.lower() == "cloud" or tag.lower().endswith("-cloud"):
        raise OfTheCloud
    return parsed_name(path if tag.lower() == "local" and path else text.strip())
