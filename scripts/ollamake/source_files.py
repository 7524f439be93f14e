"""Which files of a user's folder a model is made from, told from names alone when the workflow is read."""

from __future__ import annotations

import json
from pathlib import Path

from ollamake.errors import OllamakeError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_INDEX = "model.safetensors.index.json"
BASE_SINGLE = "model.safetensors"

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
)
"""What may lie beside the weights and goes into a merged checkpoint; of an adapter folder only the tokenizer's part."""


def source_files(kind: str, folder: str, key: str) -> tuple[list[str], list[str]]:
    """Return (weight files, small files) of a base or adapter folder, as paths below ``folder``, in order.

    ``kind`` is "base" or "adapter", ``key`` the configuration key that messages name. Only names and the base's index
    are read. Raises OllamakeError when the folder is not one of that kind.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise OllamakeError(
            f"{key}: the folder {folder!r} {what} (looked from {Path.cwd()})."
            + (_nearby(path) if kind == "adapter" else "")
            + f" {_EXPECTED[kind]}"
        )
    weights = _base_weights(path, key) if kind == "base" else _adapter_weights(path, key)
    first = ["adapter_config.json"] if kind == "adapter" else []
    small = [name for name in (*first, *MODEL_FILES) if (path / name).is_file()]
    if kind == "base" and (path / BASE_INDEX).is_file():
        small.append(BASE_INDEX)
    return [f"{folder}/{name}" for name in weights], [f"{folder}/{name}" for name in small]


_EXPECTED = {
    "base": "It must be the folder of the base model, with config.json and .safetensors files.",
    "adapter": f"It must be a PEFT adapter: a folder with adapter_config.json and {ADAPTER_WEIGHTS}.",
}


def _base_weights(folder: Path, key: str) -> list[str]:
    if not (folder / "config.json").is_file():
        raise OllamakeError(f"{key}: {str(folder)!r} has no config.json. {_EXPECTED['base']}")
    index = folder / BASE_INDEX
    if index.is_file():
        return _indexed_weights(folder, index, key)
    if (folder / BASE_SINGLE).is_file():
        return [BASE_SINGLE]
    others = sorted(file.name for pattern in ("*.bin", "*.gguf", "*.safetensors") for file in folder.glob(pattern))
    found = f" It has {', '.join(others[:4])}, which cannot be merged as they are." if others else ""
    raise OllamakeError(
        f"{key}: {str(folder)!r} has neither {BASE_SINGLE} nor {BASE_INDEX}.{found} {_EXPECTED['base']}"
        " A model in another format becomes one with transformers' save_pretrained()."
    )


def _indexed_weights(folder: Path, index: Path, key: str) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise OllamakeError(
            f"{key}: {index} is not an index of safetensors files ({error}); expected JSON with `weight_map`."
            " Fetch the file again."
        ) from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise OllamakeError(f"{key}: {index} names files outside its folder: {outside[:3]}. Nothing of it is read.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise OllamakeError(
            f"{key}: {index} names {len(names)} shards, of which {len(missing)} are not there:"
            f" {', '.join(missing[:5]) or 'it names none'}. Complete the download."
        )
    return names


def _adapter_weights(folder: Path, key: str) -> list[str]:
    missing = [name for name in ("adapter_config.json", ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if not missing:
        return [ADAPTER_WEIGHTS]
    if (folder / "adapter_model.bin").is_file():
        raise OllamakeError(
            f"{key}: {str(folder)!r} has its weights as adapter_model.bin. Load it once with peft and save it with"
            " save_pretrained(), which writes adapter_model.safetensors."
        )
    raise OllamakeError(
        f"{key}: {str(folder)!r} has no {' and no '.join(missing)}.{_nearby(folder)} {_EXPECTED['adapter']}"
    )


def _nearby(folder: Path) -> str:
    """Name folders with an adapter beside or below a folder that is none: a checkpoint, or a typing error."""
    below = sorted(folder.glob("*/adapter_config.json")) if folder.is_dir() else []
    beside = sorted(folder.parent.glob("*/adapter_config.json")) if folder.parent.is_dir() else []
    names = [str(file.parent) for file in (below or beside)[:4]]
    return f" Adapters nearby: {', '.join(names)}." if names else ""
