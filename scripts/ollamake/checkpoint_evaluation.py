"""How far a bitsandbytes checkpoint is from the merged weights, both run by transformers on the CPU.

The chunks and the scored tokens are those of llama-perplexity, so that the figures stand beside those of the GGUFs. The merged
weights are run in float32, which holds each of them; the checkpoint as it says itself, in the dtypes that it is served in.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ollamake.bitsandbytes_shard import require_merged
from ollamake.checkpoint_statistics import TokenFigures
from ollamake.errors import OllamakeError
from ollamake.merged_checkpoint import recorded_shards
from ollamake.perplexity_faults import require_enough_chunks
from ollamake.perplexity_output import nonfinite_figures, scored_tokens
from ollamake.perplexity_reference import EvaluationText
from ollamake.progress import progress_bar
from ollamake.proven_inputs import Recorded
from ollamake.text_tokens import load_tokenizer


def text_chunks(folder: Path, text: EvaluationText, bos: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (what is read, what is scored) [chunks, context]: a BOS takes the place of each first token that is read.

    ``folder``: of the tokenizer; ``bos``: the token that llama.cpp puts before a text, None if it puts none. As perplexity()
    does it, with one before the whole text too. Raises OllamakeError if the text is too short or the token is not there.
    """
    context = text.record["context"]
    tokenizer = load_tokenizer(folder, text.record["parse_special"])
    ids = tokenizer.ids(text.path.read_bytes().decode("utf-8"))
    first = None if bos is None else _id_of(folder, bos)
    if first is not None:
        ids = [first, *ids]
    chunks = min(len(ids) // context, text.record["chunks"])
    require_enough_chunks(context, chunks, text.path)
    scored = torch.tensor(ids[: chunks * context]).view(chunks, context)
    read = scored.clone()
    if first is not None:
        read[:, 0] = first
    return read, scored


def compare_checkpoints(
    merged: Path,
    checkpoint: Path,
    text: EvaluationText,
    bos: str | None,
    dtype: torch.dtype | str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """Return the figures of the model in ``checkpoint`` against the one in ``merged``, both folders of safetensors.

    Named as results/M/quality/TYPE.json names them, with ``context``, ``chunks`` and ``tokens`` (scored ones). ``dtype`` is what
    the checkpoint is loaded in, by itself what its config.json says; ``threads`` are torch's from then on.

    Raises OllamakeError for a text that is too short, if transformers cannot load one of them, or if a figure is not finite.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    read, scored = text_chunks(merged, text, bos)
    reference, measured = _load(merged, torch.float32), _load(checkpoint, dtype)
    chunks, context = read.shape
    first = context // 2
    figures = TokenFigures()
    with torch.no_grad(), progress_bar(chunks, f"comparing {checkpoint.name}", unit=" chunks") as bar:
        for ids, said in zip(read, scored, strict=True):
            logits = (_logits(model, ids, context - first)[:-1] for model in (reference, measured))
            figures.add(*logits, said[first + 1 :])
            bar.update(1)
    result = figures.figures()
    if names := nonfinite_figures(result):
        raise OllamakeError(
            f"{checkpoint}: NaN or infinity in {', '.join(names)} when transformers runs it against {merged}. In NF4 another"
            " bitsandbytes.compute_dtype may hold what the model computes: bfloat16 or float32."
        )
    assert figures.tokens == scored_tokens(context, chunks)
    return {"context": context, "chunks": chunks, "tokens": figures.tokens} | result


def about_checkpoint(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the figures of a checkpoint are of, by its record and the libraries here."""
    named = {name: record[name] for name in ("bits_per_weight", "weights_sha256")}
    return named | {"size": record["bytes"], "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that the figures are of."""
    return {name: version(name) for name in ("bitsandbytes", "torch", "transformers")}


def require_same_weights(record: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise OllamakeError if a file of a checkpoint is missing, or has another size than its record says."""
    for name, entry in record["files"].items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != entry["size"]:
            raise OllamakeError(
                f"{file} is missing or has another size than when it was written ({entry['size']} bytes). Delete"
                f" {checkpoint.with_suffix('.json')} and run again: what is missing is made anew."
            )


def recorded_files(record_file: Path, record: Mapping[str, Any]) -> list[Recorded]:
    """Return the files of a checkpoint by its record; the small ones are made again with the record.

    Raises OllamakeError if one is missing, or has another size than its record says.
    """
    folder = record_file.with_suffix("")
    require_same_weights(record, folder)
    return [
        Recorded(folder / name, entry["sha256"], () if name.endswith(".safetensors") else (record_file,))
        for name, entry in record["files"].items()
    ]


def recorded_merged(record: Mapping[str, Any], merged: Path, merge_records: Path) -> list[Recorded]:
    """Return the merged shards of a checkpoint by the records of their merges. Raises OllamakeError if one is not there."""
    shards = [merged / name for name in record["files"] if name.endswith(".safetensors")]
    for shard in shards:
        require_merged(shard)
    return recorded_shards(merged, (merge_records / f"{shard.stem}.json" for shard in shards))


def _load(folder: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, local_files_only=True, device_map={"": "cpu"}
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise OllamakeError(f"transformers cannot load {folder}: {error}") from error
    return model.eval()


def _logits(model: PreTrainedModel, ids: torch.Tensor, last: int) -> torch.Tensor:
    """Return the logits of the last tokens of a chunk, [last, vocabulary]."""
    named = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": last} if "logits_to_keep" in named else {}
    logits: torch.Tensor = model(ids[None], use_cache=False, **options).logits
    return logits[0, -last:]


def _id_of(folder: Path, token: str) -> int:
    (found, *rest) = load_tokenizer(folder, parse_special=True).ids(token) or (math.nan,)
    if rest or not isinstance(found, int):
        raise OllamakeError(
            f"{folder}: llama.cpp puts {token!r} before a text, which is no token of the tokenizer there. Leave"
            " bitsandbytes.evaluate false for this model."
        )
    return found
