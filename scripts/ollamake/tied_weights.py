"""Which parameters an architecture can tie, as transformers' model classes say: output head -> input embedding, and others."""

from __future__ import annotations

import ast
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("ollamake")

_ATTRIBUTE = "_tied_weights_keys"
_TIE_NOTHING = frozenset({"PreTrainedModel", "GenerationMixin", "nn.Module", "Module"})
"""Base classes in which the attribute is None or missing."""


def tied_weights(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Return name in memory -> name of the parameter that it is tied to, of the architecture of a config.json.

    That is ``_tied_weights_keys`` of the model's class, which says what *can* be tied; no model is made. None for an
    architecture that the installed transformers does not know. The class's source is read where it stands there in plain
    words, since to import it takes five seconds and a GB; else it is imported.
    """
    names = [str(name) for name in config.get("architectures") or ()]
    for name in names:
        found = _in_source(name, str(config.get("model_type", "")))
        if found is not None:
            return found
    return _imported(names, str(config.get("model_type", "")))


def _in_source(class_name: str, model_type: str) -> dict[str, str] | None:
    """Return what the class says in transformers' source, or None if its file or the attribute is not to be found so."""
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None or not model_type.replace("-", "_").isidentifier():
        return None
    folder = model_type.replace("-", "_")
    for name in (folder, folder.removesuffix("_text")):
        file = Path(package.origin).parent / "models" / name / f"modeling_{name}.py"
        if file.is_file():
            tree = ast.parse(file.read_text(encoding="utf-8"))
            return _stated({node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}, class_name)
    return None


def _stated(classes: Mapping[str, ast.ClassDef], name: str) -> dict[str, str] | None:
    """Return the attribute of a class or of the nearest of its bases that has it; None if that is not a plain table."""
    if name in _TIE_NOTHING:
        return {}
    if name not in classes:
        return None
    for node in classes[name].body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == _ATTRIBUTE for target in node.targets):
            try:
                return _cleaned(ast.literal_eval(node.value))
            except ValueError:
                return None
    for base in classes[name].bases:
        of_base = _stated(classes, ast.unparse(base))
        if of_base is None or of_base:
            return of_base
    return {}


def _imported(names: list[str], model_type: str) -> dict[str, str] | None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for name in (*names, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)):
        try:
            return _cleaned(getattr(getattr(transformers, str(name)), _ATTRIBUTE, None))
        except (AttributeError, ImportError) as error:
            log.debug("transformers has no %s: %s", name, error)
    return None


def _cleaned(ties: object) -> dict[str, str]:
    if not isinstance(ties, Mapping):
        return {}
    return {str(key).strip("^$"): str(value).strip("^$") for key, value in ties.items()}
