"""The shape of a model: its configuration and the names, dtypes and shapes of its tensors, without a single weight.

It comes from a folder, from the hub (resources/shapes/ORG/REPO.json), or with ollamake (config/shapes/ORG/REPO.yaml). In
the latter names are condensed: ``layers.{0..63}.mlp`` stands for the 64 names with every number from 0 to 63.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ollamake.atomic_write import write_json
from ollamake.checkpoint import read_checkpoint
from ollamake.damage import DamagedFile
from ollamake.errors import OllamakeError
from ollamake.record_seal import read_record
from ollamake.safetensors_header import BITS

MAX_TENSORS = 1_000_000
"""Ten times what DeepSeek-V3 has; a range that gives more is a typing error."""

_RANGE = re.compile(r"\{(0|[1-9]\d*)\.\.(0|[1-9]\d*)\}")
_KEYS = {"source": str, "metadata_bytes": (int, type(None)), "config": dict, "tensors": dict}
_SHIPPED, _CACHED = ".yaml", ".json"

_MEASURED = (
    (0, 0), (32_000, 718_206), (32_768, 740_674), (100_352, 3_541_332), (102_400, 3_758_978), (128_256, 7_823_569),
    (131_072, 7_864_338), (151_936, 5_933_558), (152_064, 5_934_912), (256_000, 6_029_071), (262_208, 6_513_311),
)  # fmt: skip
"""Size of the vocabulary -> bytes of a GGUF's KV section: the figures of config/shapes, from published GGUFs."""
_SIZE_UNSAID = 262_208
"""Vocabulary of a config.json that leaves it to transformers: Gemma 3 (transformers' Gemma3TextConfig)."""


@dataclass(frozen=True)
class Shape:
    """A model without its weights."""

    name: str
    """Hub id, or a folder's name."""
    source: str
    """URL or path that this is known from."""
    config: dict[str, Any]
    """config.json; of a shape that comes with ollamake its relevant keys."""
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    """(name, safetensors dtype, shape), in the order of the names."""
    metadata_bytes: int | None
    """Bytes of a GGUF's KV section where known; else ``estimated_metadata_bytes`` is near."""


def read_shape(path: Path) -> Shape:
    """Read a shape that came with ollamake (.yaml) or was fetched (.json). Raises OllamakeError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.load(text, _StrictLoader) if path.suffix == _SHIPPED else read_record(path)
    except OSError as error:
        raise OllamakeError(f"{path} cannot be read: {error.strerror}") from error
    except DamagedFile as error:
        raise _defective(path, f"it cannot be read ({error.what})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _defective(path, f"it cannot be read ({' '.join(str(error).split())})") from error
    keys = dict(_KEYS) if path.suffix == _SHIPPED else {"name": str, **_KEYS}
    if not isinstance(value, dict) or value.keys() != keys.keys():
        found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise _defective(path, f"expected the keys {', '.join(keys)}, found {found}")
    for key, kind in keys.items():
        if not isinstance(value[key], kind) or isinstance(value[key], bool):
            raise _defective(path, f"`{key}` is {value[key]!r}")
    if value["metadata_bytes"] is not None and value["metadata_bytes"] < 0:
        raise _defective(path, f"`metadata_bytes` is {value['metadata_bytes']}")
    for key, number in _numbers_in_text(value["config"]) if path.suffix == _SHIPPED else ():
        raise _defective(path, f"`config: {key}` is the text {number!r}; in YAML a number is written 1.0e-06")
    name = value.get("name", f"{path.parent.name}/{path.name.removesuffix(_SHIPPED)}")
    return Shape(name, value["source"], value["config"], _tensors(path, value["tensors"]), value["metadata_bytes"])


def write_shape(path: Path, shape: Shape) -> None:
    """Write a shape as JSON that ``read_shape`` reads."""
    tensors = {name: [dtype, *dimensions] for name, dtype, dimensions in shape.tensors}
    keys = {"name": shape.name, "source": shape.source, "metadata_bytes": shape.metadata_bytes, "config": shape.config}
    write_json(path, keys | {"tensors": tensors})


def shape_of_folder(folder: Path) -> Shape:
    """Return the shape of a model in a folder, from config.json and the headers of its weights.

    Raises OllamakeError for what a merge would refuse as ``base``, too: see ``read_checkpoint``.
    """
    if (folder / "config.json").is_file() and not any(
        next(folder.glob(f"*{suffix}"), None) for suffix in (".safetensors", ".safetensors.index.json", ".bin")
    ):
        raise OllamakeError(
            f"base: {str(folder)!r} has config.json, but no .safetensors, whose headers say which tensors the model has."
            " Complete the download, or give the model's id on the Hugging Face hub (org/name) as `base`: there the"
            " headers are read without the weights."
        )
    checkpoint = read_checkpoint(str(folder), "base")
    tensors = ((tensor.name, tensor.dtype, tensor.shape) for shard in checkpoint.shards for tensor in shard.tensors)
    return Shape(folder.resolve().name, str(folder), dict(checkpoint.config), tuple(sorted(tensors)), None)


def shipped_shape(name: str, folder: Path) -> Path | None:
    """Return the file of the shape that comes with ollamake for a hub id, upper and lower case as on the hub."""
    # The list decides, not the disk: some disks take upper and lower case for the same, and a name may climb out.
    return folder / f"{name}{_SHIPPED}" if name in shipped_names(folder) else None


def shipped_names(folder: Path) -> list[str]:
    """Return the hub ids of the shapes in config/shapes."""
    return _names(folder, _SHIPPED)


def cached_names(folder: Path) -> list[str]:
    """Return the hub ids of the shapes that were fetched to resources/shapes."""
    return _names(folder, _CACHED)


def estimated_metadata_bytes(config: Mapping[str, Any]) -> int:
    """Return the bytes of a GGUF's KV section, which is the tokenizer but for some kB, from the size of the vocabulary.

    The families of config/shapes come out within 2 %. Between their sizes it is interpolated, within 3 MB (each family
    told from the others), 0.06 % of a 7B model in Q4_K_M; beyond the largest it grows in proportion, which is a guess.
    Merges take more than half of the section (llama_cpp.md, 1.2), and how many there are does not follow from the vocabulary.
    """
    text = config.get("text_config")
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, Mapping) else None)
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        size = _SIZE_UNSAID
    import numpy as np  # here, since the workflow asks this module only where the shapes are

    sizes, figures = zip(*_MEASURED, strict=True)
    return round(float(np.interp(size, sizes, figures)) * max(1.0, size / sizes[-1]))


def expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a condensed one stands for. Raises ValueError for a brace that is no range, or one from 3 to 2."""
    parts = _RANGE.split(pattern)
    if any("{" in part or "}" in part for part in parts[::3]):
        raise ValueError(f"{pattern!r} has a brace that is no range; one is written {{0..63}}")
    ranges = [range(int(first), int(last) + 1) for first, last in zip(parts[1::3], parts[2::3], strict=True)]
    if not all(ranges):
        raise ValueError(f"{pattern!r} has a range that ends before it begins")
    if math.prod(map(len, ranges)) > MAX_TENSORS:
        raise ValueError(f"{pattern!r} stands for more than {MAX_TENSORS} tensors")
    for numbers in itertools.product(*ranges):
        yield parts[0] + "".join(f"{number}{text}" for number, text in zip(numbers, parts[3::3], strict=True))


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _tensors(path: Path, table: dict[Any, Any]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    found: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for pattern, value in table.items():
        dtype, *shape = value if isinstance(value, list) and value else [None]
        if not isinstance(pattern, str) or not isinstance(dtype, str) or dtype not in BITS:
            raise _defective(path, f"tensor {pattern!r} is {value!r}; expected [dtype, rows, columns]")
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
            raise _defective(path, f"tensor {pattern!r} has the shape {shape!r}")
        try:
            names = list(expanded(pattern)) if path.suffix == _SHIPPED else [pattern]
        except ValueError as error:
            raise _defective(path, str(error)) from error
        for name in names:
            if name in found:
                raise _defective(path, f"tensor {name!r} is there twice, the second time as {pattern!r}")
            found[name] = (name, dtype, tuple(shape))
        if len(found) > MAX_TENSORS:
            raise _defective(path, f"it stands for more than {MAX_TENSORS} tensors")
    if not found:
        raise _defective(path, "it has no tensors")
    return tuple(sorted(found.values()))


def _numbers_in_text(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, value) of texts that are numbers to everybody but YAML 1.1, such as 1e-6."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers_in_text(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and re.fullmatch(r"[-+]?\d[\d.]*[eE][-+]?\d+", value):
        yield key, value


def _names(folder: Path, suffix: str) -> list[str]:
    files = folder.glob(f"*/*{suffix}")
    return sorted(f"{file.parent.name}/{file.name.removesuffix(suffix)}" for file in files)


def _defective(path: Path, what: str) -> OllamakeError:
    mend = (
        "Mend it, or take it from ollamake again." if path.suffix == _SHIPPED else "Delete it to have it fetched again."
    )
    return OllamakeError(f"{path} is not the shape of a model: {what}. {mend}")
