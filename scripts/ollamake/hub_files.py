"""What names a repository of the hub, which of its files a base or an adapter is made of, and what it is without them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ollamake.errors import OllamakeError
from ollamake.hub_faults import PUBLIC_HUB
from ollamake.source_files import ADAPTER_WEIGHTS, BASE_INDEXES, BASE_SINGLES, is_hub_id, is_name_in_folder

CONFIG, INDEX, SINGLE = "config.json", BASE_INDEXES[0], BASE_SINGLES[0]
MOST_OF_CONFIG, MOST_OF_INDEX = 10_000_000, 100_000_000
"""Bytes."""
ADAPTER_CONFIG = "adapter_config.json"
_MOST_SHARDS = 2_000
"""Ten times what DeepSeek-V3 has."""


def parse_reference(reference: str) -> tuple[str, str]:
    """Return (id, revision) of org/name or org/name@revision, "main" where none is given. Raises OllamakeError for others."""
    repo_id, at, revision = reference.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        parts = revision.split("/")
        valid = is_hub_id(reference) and (not at or not any(part in ("", ".") or part[0] == "-" for part in parts))
    if not valid:
        raise OllamakeError(
            f"{reference!r} is not a model's id on the Hugging Face hub. Expected org/name, or org/name@revision with a"
            " branch, tag or commit; of letters, digits, `-`, `_` and `.`, without `..` and `--`."
        )
    return repo_id, revision or constants.DEFAULT_REVISION


def require_base(repo_id: str, commit: str, files: Collection[str]) -> None:
    """Refuse a repository without config.json or safetensors, by what it has instead."""
    if CONFIG in files and (INDEX in files or SINGLE in files):
        return
    others = {
        suffix: sorted(file for file in files if file.endswith(suffix)) for suffix in (".gguf", ".bin", ".safetensors")
    }
    if ADAPTER_CONFIG in files:
        what = "is an adapter. Give the model that it was trained on; its page names it"
    elif others[".gguf"]:
        what = f"has GGUF files ({others['.gguf'][0]}). Give the model that they were made from; its page names it"
    elif CONFIG not in files:
        what = f"has no {CONFIG}. Expected a model as transformers' save_pretrained() writes it"
    elif others[".safetensors"]:
        what = (
            f"has neither {INDEX} nor {SINGLE}, but {', '.join(others['.safetensors'][:3])}. Expected a model as"
            " transformers' save_pretrained() writes it"
        )
    elif others[".bin"]:
        what = (
            f"has its weights as .bin only ({others['.bin'][0]}), whose tensors are not listed at the beginning of the file."
            " Give a revision or another repository with .safetensors, or download it and give the folder as `base`"
        )
    else:
        what = "has no weights (.safetensors)"
    raise _refused(repo_id, commit, what)


def require_adapter(repo_id: str, commit: str, files: Collection[str]) -> str:
    """Return the name of an adapter's weights; refuse a repository that is no adapter, by what it is."""
    found = [name for name in ADAPTER_WEIGHTS if name in files]
    if ADAPTER_CONFIG in files and found:
        return found[0]
    below = sorted(file for file in files if file.endswith(f"/{ADAPTER_CONFIG}"))
    gguf = sorted(file for file in files if file.endswith(".gguf"))
    expected = f"Expected a PEFT adapter: {ADAPTER_CONFIG} and {' or '.join(ADAPTER_WEIGHTS)}"
    if ADAPTER_CONFIG in files:
        what = f"has {ADAPTER_CONFIG}, but neither {' nor '.join(ADAPTER_WEIGHTS)}. {expected}"
    elif below:
        what = (
            f"has its adapter in a folder below ({below[0]}). Download the repository (`hf download {repo_id}`) and give that"
            " folder as `adapter`"
        )
    elif CONFIG in files and any(name in files for name in (*BASE_INDEXES, *BASE_SINGLES)):
        what = "is a full model, not an adapter. Give it as `base`"
    elif gguf:
        what = f"has GGUF files ({gguf[0]}), not an adapter. {expected}"
    else:
        what = f"has no {ADAPTER_CONFIG}. {expected}"
    raise _refused(repo_id, commit, what)


def shards_of(weight_map: Any, files: Collection[str] | None) -> list[str]:
    """Return the names of the shards in an index's ``weight_map``, sorted.

    ``files``: what the repository has, None where that is not known. Raises ValueError for names that are none of files in
    the folder, or of no safetensors.
    """
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{INDEX} has no `weight_map`")
    shards = sorted(set(map(str, weight_map.values())))
    outside = [name for name in shards if not is_name_in_folder(name)]
    if outside:
        raise ValueError(f"{INDEX} names files outside the repository's top folder ({outside[:3]}); none is read")
    if other := [name for name in shards if not name.endswith(".safetensors")]:
        raise ValueError(f"{INDEX} names files that are no .safetensors ({other[:3]})")
    if files is not None and (missing := [name for name in shards if name not in files]):
        raise ValueError(f"{INDEX} names {len(missing)} files that are not there ({', '.join(missing[:3])})")
    if len(shards) > _MOST_SHARDS:
        raise ValueError(f"{INDEX} names {len(shards)} files, more than {_MOST_SHARDS}")
    return shards


def _refused(repo_id: str, commit: str, what: str) -> OllamakeError:
    return OllamakeError(f"{repo_id} {what}. See {PUBLIC_HUB}/{repo_id}/tree/{commit}.")
