"""The one record from which Modelfile, API request and store entry are made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CreateRequest:
    """What a model is in Ollama, but for the digest of its weights."""

    name: str
    file: str
    """Name of the GGUF, without folder."""
    system: str | None = None
    template: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the record as it is written to create_request.json; nothing that is None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def as_api(self, digest: str) -> dict[str, Any]:
        """Return the body of POST /api/create for weights of this sha256 (hexadecimal, no prefix)."""
        body: dict[str, Any] = {"model": self.name, "files": {self.file: f"sha256:{digest}"}, "stream": False}
        for key in ("system", "template"):
            # Ollama takes an empty text for "unchanged"; for a new model that is none, which it is.
            if getattr(self, key):
                body[key] = getattr(self, key)
        if self.parameters:
            body["parameters"] = self.parameters
        return body


def read_create_request(path: Path) -> CreateRequest:
    """Read create_request.json."""
    return CreateRequest(**json.loads(path.read_text(encoding="utf-8")))
