"""The one record from which Modelfile, API request and store entry are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ollamake.generation_defaults import ORIGIN
from ollamake.record_seal import read_record


@dataclass(frozen=True)
class CreateRequest:
    """What a model is in Ollama, but for the digest of its weights."""

    name: str
    file: str
    """Name of the GGUF, without folder."""
    system: str | None = None
    template: str | None = None
    license: Sequence[str] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Where template and parameters come from, for the comments of the Modelfile: `template` or a parameter -> words."""
    adapter: str | None = None
    """Name of the adapter's GGUF, without folder, where one is added to the weights while they run."""
    adapter_blob: tuple[str, int] | None = None
    """sha256 (hexadecimal) and size of that GGUF, once they are known."""

    def as_json(self) -> dict[str, Any]:
        """Return the record as it is written to create_request.json; nothing that is None or empty."""
        return {key: value for key, value in asdict(self).items() if value not in (None, (), [], {})}

    def as_api(self, digest: str) -> dict[str, Any]:
        """Return the body of POST /api/create for weights of this sha256 (hexadecimal, no prefix)."""
        body: dict[str, Any] = {"model": self.name, "files": {self.file: f"sha256:{digest}"}, "stream": False}
        if self.adapter is not None and self.adapter_blob is not None:
            body["adapters"] = {self.adapter: f"sha256:{self.adapter_blob[0]}"}
        for key in ("system", "template"):
            # Ollama takes an empty text for "unchanged"; for a new model that is none, which it is.
            if getattr(self, key):
                body[key] = getattr(self, key)
        if self.license:
            body["license"] = list(self.license)
        if self.parameters:
            body["parameters"] = self.parameters
        return body


def compose_request(
    spec: Mapping[str, Any],
    file: str,
    template: Mapping[str, Any],
    defaults: Mapping[str, Any],
    planned: tuple[int, str] | None = None,
    adapter: str | None = None,
) -> CreateRequest:
    """Return the request for a model, each parameter from whoever may say it, the user first.

    ``spec`` is what the user configured: name, system, license, parameters; ``template`` the record of prompt_template;
    ``defaults`` what generation_config.json gives; ``planned`` the tokens of num_ctx by the plan, and why so many;
    ``file`` and ``adapter`` are the names of the GGUFs.
    """
    parameters: dict[str, Any] = {}
    origins = {"template": template["origin"]}
    for name, value in spec["parameters"].items():
        parameters[name], origins[name] = value, "the configuration"
    for name, value in defaults.items():
        if name not in parameters:
            parameters[name], origins[name] = value, ORIGIN
    if planned is not None and "num_ctx" not in parameters:
        parameters["num_ctx"], origins["num_ctx"] = planned
    end = template["end_of_turn"]
    if end is not None and "stop" not in spec["parameters"]:
        stop = parameters.setdefault("stop", [])
        if end not in stop:
            # First, since it is what a model writes after each answer.
            parameters["stop"] = [end, *stop]
            origins["stop"] = " and ".join(["the end of a turn in the chat template", *([ORIGIN] if stop else [])])
    return CreateRequest(
        name=spec["name"],
        file=file,
        system=spec["system"],
        template=template["template"],
        license=tuple(spec["license"]),
        parameters=parameters,
        origins=origins,
        adapter=adapter,
    )


def read_create_request(path: Path) -> CreateRequest:
    """Read create_request.json."""
    record = read_record(path)
    return CreateRequest(**record | {"license": tuple(record.get("license", ()))})


def request_of_marker(marker: dict[str, Any]) -> tuple[CreateRequest, str]:
    """Return what a registration marker says was asked for, and the sha256 of its weights (hexadecimal)."""
    body = marker["request"]
    (file, digest), *_ = body["files"].items()
    adapter, blob = next(iter(body.get("adapters", {}).items()), (None, None))
    request = CreateRequest(
        name=marker["name"],
        file=file,
        system=body.get("system"),
        template=body.get("template"),
        license=tuple(body.get("license", ())),
        parameters=body.get("parameters", {}),
        adapter=adapter,
        adapter_blob=None if blob is None else (blob.removeprefix("sha256:"), marker["adapter"]["size"]),
    )
    return request, digest.removeprefix("sha256:")
