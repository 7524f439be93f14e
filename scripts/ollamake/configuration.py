"""The configuration: checked against its schema, defaults filled in, typed.

The schema (config/schemas/config.schema.yaml, JSON Schema 2020-12) is the one description of every key.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ollamake.bitsandbytes_configuration import NO_BITSANDBYTES, BitsAndBytes, bitsandbytes_of
from ollamake.configuration_faults import configuration_faults
from ollamake.errors import OllamakeError
from ollamake.hardware import checked_settings
from ollamake.ollama_name import registered_name
from ollamake.ollama_parameters import checked_parameters
from ollamake.placeholders import is_missing
from ollamake.published_quality import CANDIDATES
from ollamake.quality_configuration import (
    NOT_MEASURED,
    DomainText,
    Quality,
    calibration_of,
    quality_of,
    refuse_without_imatrix,
    score_limit,
)
from ollamake.quantization_types import UNQUANTIZED
from ollamake.rag_configuration import RagConfiguration, rag_of, refuse_shared_keys
from ollamake.served_base import with_served_bases
from ollamake.serving_configuration import Serving, serving_of
from ollamake.shared_names import refuse_shared_names
from ollamake.source_files import is_hub_id, normal_path
from ollamake.weighted_adapter import WeightedAdapter, adapters_of

AUTO = "auto"
"""What the plan decides: `quantizations: auto`, `num_ctx: auto`."""

_UNQUANTIZED = {"auto": "F16", "float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""What the fine-tune is before quantization, by `merge.dtype`."""

AUTOMATIC = (*sorted(UNQUANTIZED), *CANDIDATES)
"""The types that the plan may choose."""


@dataclass(frozen=True)
class Answers:
    """The questions for a model, and what else is asked the same."""

    questions: str | None
    min_score: float
    limit_key: str
    """The key that `min_score` is from: models.M.quality.min_answers where that is set, else models.M.answers.min_score."""
    on_fail: str
    """What too low a score does: `stop`, or `warn` if quality.on_fail says so of quality.min_answers."""
    max_tokens: int
    unquantized: str | None
    """The type of the fine-tune before quantization, where that is built only to be asked, too."""
    base: tuple[str, str | None] | None
    """Name and quantization of the model without adapter, where that is asked, too; None for the one that its plan chooses."""


@dataclass(frozen=True)
class Model:
    """One model to build; paths are relative to the working directory, or absolute."""

    name: str
    base: str
    adapters: tuple[WeightedAdapter, ...]
    quantizations: tuple[str, ...]
    """Without the one that is chosen by the plan, if `is_automatic`."""
    system: str | None
    template: str
    """`auto`, `gguf` or a TEMPLATE."""
    template_differs: str
    license: tuple[str, ...]
    parameters: dict[str, Any]
    registered_names: dict[str, str]
    """Quantization -> name in Ollama; of an automatic model for every type that may be chosen."""
    answers: Answers
    calibration: DomainText
    """What the importance matrix is computed from."""
    quality: Quality
    rag: RagConfiguration | None = None
    serving: Serving | None = None
    measured_base: str | None = None
    """Name of the model that is this one's base, where it is measured against the fine-tune."""
    compare: tuple[str, ...] = ()
    """What `answers.compare` says."""
    is_derived: bool = False
    """Whether it is only built for a comparison: it is not in the user's file."""
    is_automatic: bool = False
    """Whether the plan chooses the quantization."""
    plans_num_ctx: bool = True
    """Whether the plan gives `num_ctx`."""
    bitsandbytes: BitsAndBytes = NO_BITSANDBYTES
    serves_adapter: bool = False
    served_base: str | None = None
    """Name of the model without adapter whose GGUFs are used where `serves_adapter`; its own, if Ollama has them."""
    from_ollama: str | None = None
    """Name of the model in Ollama whose weights are used where `serves_adapter`, if it is one."""


@dataclass(frozen=True)
class Configuration:
    """The whole configuration with defaults filled in; fields are the schema's keys."""

    models: dict[str, Model]
    dtype: str
    target: str
    host: str | None
    store: str
    timeout: float
    llama_cpp: str | None
    llama_cpp_sdist: str | None
    threads: int | None
    keep_merged: bool
    keep_unquantized: bool
    keep_downloads: bool
    asked: dict[str, Any]
    """What the plan is asked: context, parallel, kv_cache, margin_gib."""
    alternatives: tuple[str, ...]
    """Hub ids of other bases to plan."""
    hardware: dict[str, Any]
    """gpus and ram_gib, null for what is to be detected; disk_gib."""


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
    schema = _read_schema(schema_file)
    raw = _spread_defaults(raw)
    if faults := configuration_faults(raw, schema):
        raise OllamakeError("the configuration has faults:\n  " + "\n  ".join(faults))
    filled = _with_defaults(raw, schema, schema)
    dtype = filled["merge"]["dtype"]
    keep = filled["keep"]
    models = {name: _model(name, model, dtype, keep) for name, model in filled["models"].items()}
    models = with_bases(with_served_bases(models, lambda model: _base_of(model, registered=False)))
    refuse_shared_names(models.values())
    refuse_shared_keys((name, model.rag) for name, model in models.items())
    return Configuration(
        models=models,
        dtype=dtype,
        target=filled["ollama"]["target"],
        host=filled["ollama"]["host"],
        store=os.path.normpath(Path(filled["ollama"]["store"]).expanduser()),
        timeout=float(filled["ollama"]["timeout"]),
        llama_cpp=filled["tools"]["llama_cpp"],
        llama_cpp_sdist=filled["tools"]["llama_cpp_sdist"],
        threads=filled["tools"]["threads"],
        keep_merged=keep["merged"],
        keep_unquantized=keep["unquantized"],
        keep_downloads=keep["downloads"],
        asked={key: value for key, value in filled["plan"].items() if key != "alternatives"},
        alternatives=tuple(map(_alternative, filled["plan"]["alternatives"])),
        hardware=checked_settings(filled["hardware"]),
    )


@cache
def _read_schema(file: Path) -> dict[str, Any]:
    # libyaml, where PyYAML was built with it, is ten times as fast.
    schema: dict[str, Any] = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return schema


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


def with_bases(models: Mapping[str, Model]) -> dict[str, Model]:
    """Add the bases that `answers.compare` and `quality.base` ask for and that are not among the models anyway."""
    result = dict(models)
    for name, model in models.items():
        asked = "base" in model.compare and bool(model.adapters) and model.answers.questions is not None
        measured = model.quality.is_measured and model.quality.base
        if not asked and not measured:
            continue
        base = next((other for other in result.values() if other.base == model.base and not other.adapters), None)
        if base is None or (asked and base.is_derived and not (base.quantizations or base.is_automatic)):
            derived = _base_of(model, registered=asked)
            if base is None and derived.name in result:
                key = "answers.compare: [base]" if asked else "quality.base: true"
                raise OllamakeError(
                    f"models.{derived.name}: this name is taken by the base of models.{name} ({key}), but has"
                    " another base or an adapter. Give it another name."
                )
            base = replace(derived, name=base.name) if base else derived
            result[base.name] = base
        if asked:
            first = None if base.is_automatic else base.quantizations[0]
            result[name] = model = replace(model, answers=replace(model.answers, base=(base.name, first)))
        if measured:
            result[name] = replace(model, measured_base=base.name)
    return result


def _base_of(model: Model, *, registered: bool) -> Model:
    """Return the model without adapters, to compare with: in its first quantization if answers are compared, else unquantized."""
    automatic = model.is_automatic and registered
    quantizations = model.quantizations[:1] if registered and not automatic else ()
    name = f"{model.name}-base"
    key = f"models.{model.name}.answers.compare"
    return replace(
        model,
        name=name,
        adapters=(),
        quantizations=quantizations,
        registered_names={
            quantization: registered_name(name, quantization, [quantization], key)
            for quantization in (AUTOMATIC if automatic else quantizations)
        },
        template_differs="warn",
        answers=replace(model.answers, questions=None, unquantized=None),
        calibration=DomainText(),
        quality=NOT_MEASURED,
        bitsandbytes=NO_BITSANDBYTES,
        rag=None,
        serving=None,
        compare=(),
        is_derived=True,
        is_automatic=automatic,
    )


def _model(name: str, filled: Mapping[str, Any], dtype: str, keep: Mapping[str, bool]) -> Model:
    key = f"models.{name}"
    if "base" not in filled:
        raise OllamakeError(
            f"{key}.base: missing. It is the folder of the base model that the adapter was trained on,"
            " for example `base: /data/Qwen2.5-32B-Instruct`."
        )
    answers, ollama = filled["answers"], filled["ollama"]
    if answers["questions"] and is_missing(answers["questions"]):
        raise OllamakeError(
            f"{key}.answers.questions: there is no file {answers['questions']}. Expected one with a question a line;"
            " paths are relative to where Snakemake runs."
        )
    automatic = filled["quantizations"] == AUTO
    quantizations = () if automatic else tuple(filled["quantizations"])
    unquantized = _UNQUANTIZED[dtype] if answers["questions"] and "unquantized" in answers["compare"] else None
    if unquantized in quantizations:
        unquantized = None  # It is among those that the user wants anyway, and judged as they are.
    elif unquantized is not None:
        quantizations += (unquantized,)
    calibration = calibration_of(filled, key)
    for quantization in quantizations:
        refuse_without_imatrix(quantization, f"{key}.quantizations", calibration)
    adapters = adapters_of(filled, key)
    serves_adapter = filled["serve"] == "adapter" and bool(adapters)
    quality = quality_of(
        filled, key, quantizations=quantizations, has_adapter=bool(adapters), has_questions=bool(answers["questions"])
    )
    for quantization in quality.compare:
        refuse_without_imatrix(quantization, f"{key}.quality.compare", calibration)
    # How many there are decides on the name: of an automatic model one is chosen.
    count = (AUTO, *quantizations) if automatic else quantizations
    parameters = dict(ollama["parameters"])
    plans_num_ctx = parameters.get("num_ctx", AUTO) == AUTO
    if parameters.get("num_ctx", AUTO) in (AUTO, None):
        parameters.pop("num_ctx", None)
    texts = [text_of(text, f"{key}.ollama.license") for text in ollama["license"] or ()]
    return Model(
        name=name,
        base=normal_path(filled["base"]),
        adapters=adapters,
        quantizations=quantizations,
        system=text_of(ollama["system"], f"{key}.ollama.system"),
        template=text_of(ollama["template"], f"{key}.ollama.template") or "auto",
        template_differs=ollama["template_differs"],
        license=tuple(text for text in texts if text),
        parameters=checked_parameters(parameters, f"{key}.ollama.parameters"),
        registered_names={
            quantization: registered_name(ollama["name"] or name, quantization, count, f"{key}.ollama.name")
            for quantization in dict.fromkeys(quantizations + (AUTOMATIC if automatic else ()))
        },
        answers=Answers(
            questions=None if answers["questions"] is None else normal_path(answers["questions"]),
            **vars(score_limit(quality, answers["min_score"], key)),
            max_tokens=answers["max_tokens"],
            unquantized=unquantized,
            base=None,
        ),
        calibration=calibration,
        quality=quality,
        bitsandbytes=bitsandbytes_of(filled, key, serves_adapter=serves_adapter, is_measured=quality.is_measured),
        rag=rag_of(filled, key, quantizations),
        serving=serving_of(filled, key, adapters, keep),
        compare=tuple(answers["compare"]),
        is_automatic=automatic,
        plans_num_ctx=plans_num_ctx,
        serves_adapter=serves_adapter,
        from_ollama=ollama["from"],
    )


def text_of(value: str | Mapping[str, str] | None, key: str) -> str | None:
    """Return a text that stands in the configuration, or in the file that it names, to the byte.

    Raises OllamakeError naming ``key`` if the file cannot be read as UTF-8.
    """
    if not isinstance(value, Mapping):
        return value
    path = Path(value["file"]).expanduser()
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OllamakeError(f"{key}.file: {path} cannot be read as UTF-8 text ({error})") from error


def _alternative(base: str) -> str:
    if not is_hub_id(base):
        raise OllamakeError(
            f"plan.alternatives: {base!r} is not an id on the Hugging Face hub (org/name, or org/name@revision). A base that"
            " is here can be planned as a model of its own: give it under `models`."
        )
    return base
