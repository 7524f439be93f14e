"""The configuration: checked against its schema, defaults filled in, typed.

The schema (config/schemas/config.schema.yaml, JSON Schema 2020-12) is the one description of every key; its messages
are rewritten here for people: the key's path, what was expected, what was found and the nearest thing that exists.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, FormatChecker, ValidationError

from ollamake.errors import OllamakeError
from ollamake.ollama_name import registered_name
from ollamake.ollama_parameters import checked_parameters
from ollamake.quantization_types import QUANTIZATION_TYPES

_FORMATS = FormatChecker(formats=())


@_FORMATS.checks("quantization")
def _is_quantization(value: object) -> bool:
    return value in QUANTIZATION_TYPES


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter's folder and the weight with which its update is added."""

    path: str
    weight: float


@dataclass(frozen=True)
class Model:
    """One model to build; paths are relative to the working directory, or absolute."""

    name: str
    base: str
    adapters: tuple[WeightedAdapter, ...]
    quantizations: tuple[str, ...]
    system: str | None
    parameters: dict[str, Any]
    registered_names: dict[str, str]
    """Quantization -> name in Ollama."""


@dataclass(frozen=True)
class Configuration:
    """The whole configuration with defaults filled in; fields are the schema's keys."""

    models: dict[str, Model]
    dtype: str
    target: str
    host: str | None
    llama_cpp: str | None
    threads: int | None
    keep_merged: bool
    keep_unquantized: bool


def overlay_models(shipped: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the models to build when a user's own file names some.

    Only the models of ``given`` are built: whoever brings a model does not want the demo too. One that names no
    ``base`` is a variation of the shipped model of that name and inherits what it does not say.
    """
    models: dict[str, Any] = {}
    for name, model in given.items():
        if isinstance(model, Mapping) and "base" not in model and isinstance(shipped.get(name), Mapping):
            models[name] = _merged(shipped[name], model)
        else:
            models[name] = copy.deepcopy(model)
    return models


def read_configuration(raw: Mapping[str, Any], schema_file: Path) -> Configuration:
    """Check ``raw`` (parsed YAML) and return it typed.

    Raises OllamakeError with every fault found, one a line, each with the path of its key.
    """
    schema = yaml.safe_load(schema_file.read_text(encoding="utf-8"))
    validator = Draft202012Validator(schema, format_checker=_FORMATS)
    raw = _spread_defaults(raw)
    faults = [
        line
        for error in sorted(validator.iter_errors(raw), key=lambda error: [str(part) for part in error.absolute_path])
        for line in _explain(error, schema)
    ]
    if faults:
        raise OllamakeError("the configuration has faults:\n  " + "\n  ".join(faults))
    filled = _with_defaults(raw, schema, schema)
    models = {name: _model(name, model) for name, model in filled["models"].items()}
    _refuse_shared_names(models.values())
    return Configuration(
        models=models,
        dtype=filled["merge"]["dtype"],
        target=filled["ollama"]["target"],
        host=filled["ollama"]["host"],
        llama_cpp=filled["tools"]["llama_cpp"],
        threads=filled["tools"]["threads"],
        keep_merged=filled["keep"]["merged"],
        keep_unquantized=filled["keep"]["unquantized"],
    )


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` known words that look like ``word``, whatever its case, the likeliest first."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.5)
    return [by_lower[match] for match in matches]


def _spread_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Give every model the keys of ``defaults:`` that it does not say itself.

    The faults of ``defaults:`` itself are left for the schema, which names them once, under ``defaults``.
    """
    raw = copy.deepcopy(dict(raw))
    defaults, models = raw.get("defaults"), raw.get("models")
    if isinstance(defaults, Mapping) and isinstance(models, Mapping):
        known = {key: value for key, value in defaults.items() if key != "name"}
        raw["models"] = {
            name: _merged(known, model) if isinstance(model, Mapping) else model for name, model in models.items()
        }
    return raw


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _with_defaults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Return ``value`` with the defaults of ``schema`` filled in at every depth."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if not isinstance(value, Mapping):
        return value
    filled = dict(value)
    for key, part in schema.get("properties", {}).items():
        if key not in filled and "default" in part:
            filled[key] = copy.deepcopy(part["default"])
        if key in filled:
            filled[key] = _with_defaults(filled[key], part, root)
    others = schema.get("additionalProperties")
    if isinstance(others, Mapping):
        for key in filled.keys() - schema.get("properties", {}).keys():
            filled[key] = _with_defaults(filled[key], others, root)
    return filled


def _model(name: str, filled: Mapping[str, Any]) -> Model:
    key = f"models.{name}"
    if "base" not in filled:
        raise OllamakeError(
            f"{key}.base: missing. It is the folder of the base model that the adapter was trained on,"
            " for example `base: /data/Qwen2.5-32B-Instruct`."
        )
    quantizations = tuple(filled["quantizations"])
    for quantization in quantizations:
        _refuse_without_imatrix(quantization, f"{key}.quantizations")
    ollama = filled["ollama"]
    return Model(
        name=name,
        base=_folder(filled["base"]),
        adapters=_adapters(filled, key),
        quantizations=quantizations,
        system=ollama["system"],
        parameters=checked_parameters(ollama["parameters"], f"{key}.ollama.parameters"),
        registered_names={
            quantization: registered_name(ollama["name"] or name, quantization, quantizations, f"{key}.ollama.name")
            for quantization in quantizations
        },
    )


def _adapters(filled: Mapping[str, Any], key: str) -> tuple[WeightedAdapter, ...]:
    """Return the adapters of a model, from either of the two ways to name them."""
    if filled["adapter"] and filled["adapters"]:
        raise OllamakeError(f"{key}: has both adapter and adapters. Name one in `adapter`, or several in `adapters`.")
    if filled["adapter"]:
        return (WeightedAdapter(_folder(filled["adapter"]), 1.0),)
    adapters = tuple(
        WeightedAdapter(_folder(one["path"]), float(one.get("weight", 1.0))) for one in filled["adapters"] or ()
    )
    odd = [one for one in adapters if not math.isfinite(one.weight) or one.weight == 0]
    if odd:
        raise OllamakeError(
            f"{key}.adapters: the weight of {odd[0].path} is {odd[0].weight}; expected a number other than zero."
        )
    twice = sorted({one.path for one in adapters if [other.path for other in adapters].count(one.path) > 1})
    if twice:
        raise OllamakeError(
            f"{key}.adapters: {', '.join(twice)} stands there twice. Name it once, with the sum of weights."
        )
    return adapters


def _folder(path: str) -> str:
    """Return one spelling of a path: the same folder must be the same input, `./base/` or `base`."""
    return os.path.normpath(Path(path).expanduser())


def _refuse_without_imatrix(quantization: str, key: str) -> None:
    kind = QUANTIZATION_TYPES[quantization]
    if not kind.needs_imatrix:
        return
    others = [
        name
        for name, other in sorted(QUANTIZATION_TYPES.items(), key=lambda item: item[1].bits_per_weight)
        if not other.needs_imatrix and other.bits_per_weight >= kind.bits_per_weight
    ]
    raise OllamakeError(
        f"{key}: {quantization} can only be made with an importance matrix, which ollamake does not compute."
        f" The next larger types that need none: {', '.join(others[:3])}."
    )


def _refuse_shared_names(models: Iterable[Model]) -> None:
    owners: dict[str, str] = {}
    for model in models:
        for quantization, registered in model.registered_names.items():
            owner = f"models.{model.name} ({quantization})"
            if registered in owners:
                raise OllamakeError(
                    f"{owner} and {owners[registered]} would both be registered as {registered!r}."
                    " Give one of them another `ollama.name`, or use {quant} in it."
                )
            owners[registered] = owner


def _explain(error: ValidationError, root: Mapping[str, Any]) -> list[str]:
    """Say one fault of the schema in words; one line a fault."""
    key = _path(error.absolute_path)
    where = f"{key}: " if key else ""
    value = error.instance
    match error.validator:
        case "additionalProperties":
            return [_unknown_key(key, name, error.schema["properties"]) for name in _unknown(error)]
        case "format":
            close = nearest(str(value), QUANTIZATION_TYPES) or sorted(QUANTIZATION_TYPES)
            return [f"{where}{value!r} is not a type of llama-quantize. Did you mean {_either(close)}?"]
        case "enum":
            return [f"{where}expected one of {', '.join(map(str, error.validator_value))}; found {value!r}"]
        case "type":
            expected = error.validator_value
            wanted = " or ".join(expected) if isinstance(expected, list) else expected
            return [f"{where}expected {wanted.replace('object', 'keys with values')}; found {value!r}"]
        case "required":
            return [f"{where}missing key(s): {', '.join(k for k in error.validator_value if k not in value)}"]
        case "pattern":
            return [
                f"{where}{value!r} cannot be a model's name. It names a folder below results/ and a model in Ollama:"
                " lower-case letters a-z, digits, dot, dash and underscore, at most 80, beginning with a letter or digit"
            ]
        case "minProperties" | "minItems":
            return [f"{where}is empty; at least one is needed"]
        case "minLength":
            return [f"{where}is an empty text"]
        case "uniqueItems":
            return [f"{where}the same value stands there twice: {value!r}"]
    return [f"{where}{error.message}"]


def _unknown(error: ValidationError) -> list[str]:
    return [str(name) for name in error.instance if name not in error.schema["properties"]]


def _unknown_key(key: str, name: str, known: Mapping[str, Any]) -> str:
    close = nearest(name, known, count=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(known)}."
    return f"{key + '.' if key else ''}{name}: unknown key. {hint}"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _path(parts: Iterable[str | int]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text
