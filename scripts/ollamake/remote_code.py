"""Python code that a checkpoint brings (auto_map in its configuration files) is never run, whoever asks transformers for it.

llama.cpp's converter loads tokenizers with trust_remote_code=True, and an auto_map may name any repository of the hub, or any
folder. Imported by the converter's process too, so it imports nothing of this package.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

_AUTO = "transformers.models.auto"


class RemoteCodeRefused(NotImplementedError):
    """Without code that a checkpoint brings it cannot be loaded."""


def forbid_remote_code() -> None:
    """Let transformers take its own classes, whatever its caller trusts, and ask nothing of the hub.

    Where it has none of its own RemoteCodeRefused is raised. To be called before anything loads transformers' Auto classes,
    which take the functions that are replaced here by name.
    """
    assert _AUTO not in sys.modules
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import dynamic_module_utils

    said: set[str] = set()

    def never_trust(_trusted: Any, model: Any, has_local: bool, has_remote: bool, *_more: Any, **_named: Any) -> bool:
        if has_remote and not has_local:
            _refuse()
        if has_remote and str(model) not in said:
            said.add(str(model))
            print(
                "WARNING: the model names Python code of its own (auto_map), which is never run; transformers' class is used",
                file=sys.stderr,
            )
        return False

    def refuse(*_arguments: Any, **_named: Any) -> NoReturn:
        _refuse()

    dynamic_module_utils.resolve_trust_remote_code = never_trust
    dynamic_module_utils.get_class_from_dynamic_module = refuse
    dynamic_module_utils.get_class_in_module = refuse


def _refuse() -> NoReturn:
    raise RemoteCodeRefused(
        "it needs Python code of its own (auto_map in config.json or tokenizer_config.json), which is never run: it could"
        " do anything on this machine. Give a base that transformers loads without trust_remote_code"
    )
