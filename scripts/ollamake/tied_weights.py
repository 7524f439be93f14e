"""Which parameters an architecture can tie, as transformers' model classes say: output head -> input embedding, and others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("ollamake")


def tied_weights(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Return name in memory -> name of the parameter that it is tied to, of the architecture of a config.json.

    That is ``_tied_weights_keys`` of the model's class, which says what *can* be tied; no model is made. None for an
    architecture that the installed transformers does not know.
    """
    # Imported here: it takes seconds, and is asked only where the usual names do not tell.
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = [*(config.get("architectures") or ()), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type")))]
    for name in names:
        try:
            ties = getattr(getattr(transformers, str(name)), "_tied_weights_keys", None)
        except (AttributeError, ImportError) as error:
            log.debug("transformers has no %s: %s", name, error)
            continue
        return {key.strip("^$"): value.strip("^$") for key, value in ties.items()} if isinstance(ties, Mapping) else {}
    return None
