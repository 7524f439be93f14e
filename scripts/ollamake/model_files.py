"""Everything beside the weights of a merged checkpoint: config, index, tokenizer, chat template.

The tokenizer is the base's unless the adapter brought one with another vocabulary; the chat template is the adapter's if
it brought one, since it is what training saw. It is written once, as chat_template.jinja: transformers and llama.cpp
prefer that file, and two copies could differ.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ollamake.atomic_write import write_bytes, write_json
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.json_object import parse_json, read_json_object
from ollamake.safetensors_header import tensor_bytes
from ollamake.source_files import MODEL_FILES
from ollamake.tensor_names import EMBEDDING

log = logging.getLogger("ollamake")

TEMPLATE_FILE = "chat_template.jinja"
_NOT_TOKENIZER = ("config.json", "generation_config.json", TEMPLATE_FILE, "chat_template.json")
TOKENIZER_FILES = tuple(name for name in MODEL_FILES if name not in _NOT_TOKENIZER)
"""What is copied of the folder whose tokenizer belongs to the merged weights."""
_ENDS = ("bos_token", "eos_token", "add_bos_token", "add_eos_token")
_NO_BOS_UNLESS_NAMED = ("PreTrainedTokenizerFast", "TokenizersBackend")
_DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def write_model_files(base: Path, adapters: Sequence[Path], plan: Mapping[str, Any], manifest: Path) -> dict[str, Any]:
    """Write the files beside ``manifest`` (model_files.json) and return what it holds.

    The manifest has ``files`` (name -> size, sha256), ``chat_template`` (its file's name or None) and ``tokenizer`` ("base"
    or "adapter"). Files that an earlier run wrote and that are no longer produced are removed. Raises
    OllamakeError if the adapter's tokenizer has tokens for which the merged embedding has no row.
    """
    tokenizer = tokenizer_owner(base, adapters, plan)
    contents: dict[str, bytes] = {
        name: (tokenizer / name).read_bytes() for name in TOKENIZER_FILES if (tokenizer / name).is_file()
    }
    if (base / "generation_config.json").is_file():
        contents["generation_config.json"] = (base / "generation_config.json").read_bytes()
    contents["config.json"] = _as_json(merged_config(base, plan))
    contents["model.safetensors.index.json"] = _as_json(_index(plan))
    templates = [template for folder in (*adapters, base) if (template := chat_template_of(folder)) is not None]
    template = templates[0] if templates else None
    if "tokenizer_config.json" in contents:
        read_json_object(tokenizer / "tokenizer_config.json")  # says what is wrong with it
        trained = next((folder for folder in (*adapters, base) if chat_template_of(folder) is not None), tokenizer)
        config = _without_template(contents["tokenizer_config.json"])
        contents["tokenizer_config.json"] = _without_bos(_as_trained(config, trained, tokenizer), tokenizer)
    if template is not None:
        contents[TEMPLATE_FILE] = template.encode("utf-8")
    _remove_earlier(manifest.parent, contents.keys())
    for name, content in contents.items():
        write_bytes(manifest.parent / name, content)
    result = {
        "files": {
            name: {"size": len(content), "sha256": sha256_of(manifest.parent / name)}
            for name, content in contents.items()
        },
        "chat_template": TEMPLATE_FILE if template is not None else None,
        "tokenizer": "base" if tokenizer == base else "adapter",
    }
    write_json(manifest, result)
    return result


def merged_config(base: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base's config.json with the dtype that most of the merged weights have."""
    config = read_json_object(base / "config.json")
    sizes: dict[str, int] = {}
    for tensor in _tensors(plan):
        sizes[tensor["stored"]] = sizes.get(tensor["stored"], 0) + tensor_bytes(tensor["stored"], tensor["shape"])
    dtype = _DTYPE_NAMES.get(max(sizes, key=lambda name: sizes[name], default=""))
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    config.pop("quantization_config", None)  # float8 weights are dequantized by the merge
    for key, value in plan["config"].items():
        text = config.get("text_config")
        if isinstance(text, dict) and key in text:
            text[key] = value
        if key in config or not isinstance(text, dict) or key == "tie_word_embeddings":
            config[key] = value
    return config


def _index(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(tensor_bytes(t["stored"], t["shape"]) for t in _tensors(plan))},
        "weight_map": {tensor["name"]: shard["file"] for shard in plan["shards"] for tensor in shard["tensors"]},
    }


def _tensors(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [tensor for shard in plan["shards"] for tensor in shard["tensors"]]


def tokenizer_owner(base: Path, adapters: Sequence[Path], plan: Mapping[str, Any]) -> Path:
    """Return the folder whose tokenizer belongs to the merged weights.

    Raises OllamakeError if the adapter's has tokens for which the merged embedding has no row, or two adapters' differ.
    """
    owners = [adapter for adapter in adapters if _brings_tokenizer(base, adapter, plan)]
    others = [owner for owner in owners[1:] if vocabulary(owner) != vocabulary(owners[0])]
    if others:
        raise OllamakeError(
            f"the tokenizers of the adapters {owners[0]} and {others[0]} have different tokens, so their embeddings cannot"
            " be added. Merge one of them."
        )
    return owners[0] if owners else base


def _brings_tokenizer(base: Path, adapter: Path, plan: Mapping[str, Any]) -> bool:
    if not (adapter / "tokenizer.json").is_file():
        return False
    if not (base / "tokenizer.json").is_file():
        return True
    theirs, ours = vocabulary(adapter), vocabulary(base)
    if theirs == ours:
        return False
    rows = embedding_rows(plan)
    added = sorted(theirs.keys() - ours.keys(), key=lambda token: theirs[token])
    highest = max(theirs.values(), default=-1)
    if rows is not None and highest >= rows:
        raise OllamakeError(
            f"the tokenizer of the adapter {adapter} has {len(added)} tokens that the base's has not"
            f" ({', '.join(map(repr, added[:4]))}), up to id {highest}, but the merged embedding has {rows} rows."
            " An adapter with added tokens must bring the resized embeddings: train with"
            " modules_to_save=[embed_tokens, lm_head], or save with save_embedding_layers=True."
        )
    return True


def vocabulary(folder: Path) -> dict[str, int]:
    """Return token -> id of a tokenizer.json, added tokens included. Raises OllamakeError for a file that is none."""
    file = folder / "tokenizer.json"
    definition = read_json_object(file)
    try:
        tokens = definition.get("model", {}).get("vocab") or {}
        if isinstance(tokens, list):  # Unigram: [token, score] in the order of ids
            tokens = {entry[0]: number for number, entry in enumerate(tokens)}
        tokens = tokens | {token["content"]: token["id"] for token in definition.get("added_tokens") or []}
        if strange := [(token, number) for token, number in tokens.items() if type(number) is not int or number < 0]:
            raise ValueError(f"token and id {str(strange[0])[:100]}")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise OllamakeError(f"{file} is not a tokenizer of Hugging Face's: {error}. Fetch it again.") from error
    return tokens


def embedding_rows(plan: Mapping[str, Any]) -> int | None:
    """Return how many rows the merged input embedding has; None where it is not known by its name."""
    rows = [
        tensor["shape"][0]
        for tensor in _tensors(plan)
        if EMBEDDING.search(tensor["name"]) and len(tensor["shape"]) == 2
    ]
    return rows[0] if len(rows) == 1 else None


def chat_template_of(folder: Path) -> str | None:
    """Return a folder's chat template from where transformers would take it: its own file, else tokenizer_config.json."""
    if (folder / TEMPLATE_FILE).is_file():
        try:
            return (folder / TEMPLATE_FILE).read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise OllamakeError(f"{folder / TEMPLATE_FILE} is no text in UTF-8: {error}. Fetch it again.") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json_object(folder / name).get("chat_template")
            if isinstance(template, list):  # several named ones: [{"name": ..., "template": ...}]
                named = [entry for entry in template if isinstance(entry, dict)]
                template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
            if isinstance(template, str):
                return template
    return None


def _without_template(content: bytes) -> bytes:
    config = parse_json(content)
    if "chat_template" not in config:
        return content
    del config["chat_template"]
    return _as_json(config)


def _as_trained(content: bytes, trained: Path, tokenizer: Path) -> bytes:
    """Return a tokenizer_config.json with the beginning and end of texts of the folder whose chat template is used.

    Training wrote them with that template; the tokens themselves are the same, or the tokenizer would be that folder's.
    """
    file = trained / "tokenizer_config.json"
    if trained == tokenizer or not file.is_file():
        return content
    config, theirs = parse_json(content), read_json_object(file)
    said = {key: theirs[key] for key in _ENDS if key in theirs and theirs[key] != config.get(key)}
    if not said:
        return content
    log.info("%s: taken from %s, which has the chat template", ", ".join(said), trained)
    return _as_json(config | said)


def _without_bos(content: bytes, tokenizer: Path) -> bytes:
    """Return a tokenizer_config.json that says that nothing is put before a text, where there is no BOS to put there.

    Qwen's own tokenizers say so, others do not. Without it the GGUF does not say so either, and Ollama up to 0.29 then puts
    token 0 before every prompt of some families that it runs itself (0.17.4: model/models/qwen3/model.go, for one).
    """
    config = parse_json(content)
    if config.get("add_bos_token") is not None or not (tokenizer / "tokenizer.json").is_file():
        return content
    unnamed = None if config.get("tokenizer_class") in _NO_BOS_UNLESS_NAMED else "the default of its class"
    if config.get("bos_token", unnamed) is not None:
        return content
    special = tokenizer / "special_tokens_map.json"
    if special.is_file() and read_json_object(special).get("bos_token") is not None:
        return content
    processor = read_json_object(tokenizer / "tokenizer.json").get("post_processor") or {}
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else [processor]
    # A template says itself what is put where; with `add_bos_token` given, transformers 5 would write another one in its place.
    if any(not isinstance(step, dict) or step.get("type", "ByteLevel") != "ByteLevel" for step in steps or ()):
        return content
    return _as_json(config | {"add_bos_token": False})


def _remove_earlier(folder: Path, produced: Any) -> None:
    """Remove what an earlier configuration wrote here and this one does not: a stale chat template would be used."""
    for name in (*MODEL_FILES, TEMPLATE_FILE):
        if name not in produced:
            (folder / name).unlink(missing_ok=True)


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
