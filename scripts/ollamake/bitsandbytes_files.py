"""Everything beside the quantized shards of a bitsandbytes checkpoint, and the record of the whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import BitsAndBytesConfig

from ollamake.atomic_write import write_bytes
from ollamake.bitsandbytes_treatment import TreatedCheckpoint
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.merged_checkpoint import read_model_files
from ollamake.safetensors_header import tensor_bytes
from ollamake.source_files import MODEL_FILES

INDEX = "model.safetensors.index.json"


def write_bitsandbytes_files(
    manifest: Path,
    shards: Sequence[Mapping[str, Any]],
    treated: TreatedCheckpoint,
    settings: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Write config, index and tokenizer to ``folder`` and return the record of the checkpoint.

    ``manifest``: model_files.json of the merged checkpoint. ``shards``: the records of quantize_shard. ``settings``: arguments
    of BitsAndBytesConfig. The record has ``files`` (name -> size, sha256), ``weights_sha256`` (of the sha256 of all shards),
    ``parameters``, ``bytes``, ``bits_per_weight`` and ``merged_bytes`` of all tensors, ``quantization_config`` as it stands in
    config.json, what was skipped and left out, and ``warnings``. Files that an earlier run wrote there and that belong to it
    no more are removed. Raises OllamakeError if the merged files have changed since they were written, or if a shard lies
    there that is not the recorded one.
    """
    quantization = json.loads(json.dumps(BitsAndBytesConfig(**settings).to_dict()))
    contents = _merged_files(manifest)
    config = json.loads(contents["config.json"])
    contents["config.json"] = _as_json(config | {"quantization_config": quantization})
    tensors = {name: (shard["file"], tensor) for shard in shards for name, tensor in shard["tensors"].items()}
    size = sum(tensor_bytes(tensor["dtype"], tensor["shape"]) for _, tensor in tensors.values())
    merged_size = json.loads(contents[INDEX])["metadata"]["total_size"]
    contents[INDEX] = _as_json(
        {"metadata": {"total_size": size}, "weight_map": {name: file for name, (file, _) in sorted(tensors.items())}}
    )
    _require_shards(folder, shards)
    _remove_earlier(folder, {*contents, *(shard["file"] for shard in shards)})
    for name, content in contents.items():
        write_bytes(folder / name, content)
    files = {shard["file"]: {"size": shard["size"], "sha256": shard["sha256"]} for shard in shards}
    for name in sorted(contents):
        files[name] = {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    parameters = sum(shard["parameters"] for shard in shards)
    experts = {name: tensors[name][1] for name in treated.kept_experts if name in tensors}
    return {
        "files": files,
        "weights_sha256": sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
        "parameters": parameters,
        "bytes": size,
        "bits_per_weight": round(8 * size / parameters, 3),
        "merged_bytes": merged_size,
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "quantization_config": quantization,
        "quantized": sum(len(shard["quantized"]) for shard in shards),
        "skipped_modules": list(treated.kept_layers),
        "left_out": sorted(name for shard in shards for name in shard["left_out"]),
        "warnings": _warnings(size, experts),
    }


def _merged_files(manifest: Path) -> dict[str, bytes]:
    """Return name -> content of the files beside the merged weights."""
    return {name: (manifest.parent / name).read_bytes() for name in read_model_files(manifest)["files"]}


def _require_shards(folder: Path, shards: Sequence[Mapping[str, Any]]) -> None:
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["size"]:
            raise OllamakeError(
                f"{path} is missing or has another size than when it was written ({shard['size']} bytes). Delete it and run"
                " again; only that shard is quantized anew."
            )


def _remove_earlier(folder: Path, produced: set[str]) -> None:
    """Remove files of an earlier build: a stale chat template would be used, shards in another count would be fetched."""
    for path in [*(folder / name for name in MODEL_FILES), *folder.glob("model-*-of-*.safetensors")]:
        if path.name not in produced:
            path.unlink(missing_ok=True)


def _warnings(size: int, experts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not experts:
        return []
    bytes_of_experts = sum(tensor_bytes(tensor["dtype"], tensor["shape"]) for tensor in experts.values())
    return [
        f"The experts of this mixture are not quantized: {bytes_of_experts / 1e9:.2f} GB of {size / 1e9:.2f} GB. transformers 5"
        " stacks them in parameters that are no linear layers, which bitsandbytes does not take. A GGUF has them quantized."
    ]


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
