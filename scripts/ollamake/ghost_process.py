"""The process in which llama.cpp's converter makes a GGUF that is all of a model but its weights.

Run as a program, `python ghost_process.py TOKENIZER NAME CONVERTER CHECKPOINT ARGUMENTS...` with "tokenizer" or "none" for
TOKENIZER; like converter_process.py it lets the converter find the modules of its own tree. Beside the converter's output
(sizes.gguf) it writes facts.json and memory.gguf:

facts.json: architecture, metadata (key -> value, without the tokenizer's lists), metadata_bytes (header and key-value
    section), data_start (offset of the first tensor), block_count, tensors ([name, type, shape with rows first]), and
    block_sizes (type -> [elements, bytes] of one block).
memory.gguf: the same model with 256 tokens. llama-fit-params reserves the logits of a whole batch where llama-server
    reserves a row a slot (llama.cpp's tools/server/server-context.cpp:996); with 256 tokens neither is seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 256
_OF_VOCABULARY = ("token_embd.weight", "output.weight", "output.bias", "per_layer_token_embd.weight")


def leave_out_weights(tokenizer: bool, named: str) -> None:
    """Change the converter so that it leaves a hole where the weights would be, and needs no tokenizer if there is none.

    Its tensors are lazy: only writing one computes it, so that without that nothing reads a weight.
    """
    import conversion  # of llama.cpp's tree, as is the next
    from gguf import GGUFWriter

    from ollamake.converter_process import REFUSAL

    def write_hole(writer: Any, *, progress: bool = False) -> None:
        assert len(writer.fout) == 1
        metadata_bytes = writer.fout[0].tell()
        data_start = _write_table_and_hole(writer)
        folder = writer.path.parent
        (folder / "facts.json").write_text(json.dumps(_facts(writer, metadata_bytes, data_start)), encoding="utf-8")
        _write_small_vocabulary(writer, folder / "memory.gguf")

    GGUFWriter.write_tensors_to_file = write_hole
    get_model_class = conversion.get_model_class

    def get_class(architecture: str, mmproj: bool = False) -> Any:
        try:
            model = get_model_class(architecture, mmproj)
        except NotImplementedError:
            # The converter's main would log this, and end without saying more.
            sys.exit(f"{REFUSAL}llama.cpp's converter cannot convert {named}: Model {architecture} is not supported")
        if not tokenizer:
            model.set_vocab = lambda self: None
        return model

    conversion.get_model_class = get_class


def _write_table_and_hole(writer: Any) -> int:
    """Write the tensors' table, make the file as long as with weights, and return where they would begin."""
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    start: int = file.tell()
    alignment = writer.data_alignment
    size = sum(writer.ggml_pad(info.nbytes, alignment) for info in writer.tensors[0].values())
    file.truncate(start + size)
    return start


def _facts(writer: Any, metadata_bytes: int, data_start: int) -> dict[str, Any]:
    from gguf import GGML_QUANT_SIZES

    values = {key: value.value for key, value in writer.kv_data[0].items() if _is_short(key, value.value)}
    return {
        "architecture": writer.arch,
        "metadata": json.loads(json.dumps(values, default=_plain)),
        "metadata_bytes": metadata_bytes,
        "data_start": data_start,
        "block_count": values[f"{writer.arch}.block_count"],
        "tensors": [[name, info.dtype.name, list(info.shape)] for name, info in writer.tensors[0].items()],
        "block_sizes": {kind.name: list(sizes) for kind, sizes in GGML_QUANT_SIZES.items()},
    }


def _is_short(key: str, value: Any) -> bool:
    return not (key.startswith("tokenizer.") and isinstance(value, (list, tuple, bytes, bytearray)))


def _plain(value: Any) -> Any:
    """Return a number of numpy's or torch's as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _write_small_vocabulary(writer: Any, path: Path) -> None:
    from gguf import GGUFValueType
    from gguf.gguf_writer import GGUFWriter, TensorInfo

    small = GGUFWriter(path, writer.arch)
    for key, value in writer.kv_data[0].items():
        if key != "general.architecture" and not key.startswith("tokenizer."):
            small.add_key_value(key, value.value, value.type, value.sub_type)
    # A model without tokenizer has as many tokens as this key says (llama.cpp's src/llama-vocab.cpp:1962).
    small.kv_data[0].pop(f"{writer.arch}.vocab_size", None)
    small.add_key_value(f"{writer.arch}.vocab_size", VOCABULARY, GGUFValueType.UINT32)
    small.add_tokenizer_model("none")
    for name, info in writer.tensors[0].items():
        shape, size = tuple(info.shape), info.nbytes
        if name in _OF_VOCABULARY:
            shape, size = (VOCABULARY, *shape[1:]), size // shape[0] * VOCABULARY
        small.tensors[0][name] = TensorInfo(shape, info.dtype, size)
    small.write_header_to_file()
    small.write_kv_data_to_file()
    _write_table_and_hole(small)
    small.close()


def _main(tokenizer: str, named: str, converter: str, *arguments: str) -> None:
    from ollamake.converter_process import REFUSAL, run_converter

    def prepare() -> None:
        leave_out_weights(tokenizer == "tokenizer", named)

    try:
        run_converter(Path(converter), list(arguments), prepare, named)
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        sys.exit(f"{REFUSAL}llama.cpp's converter cannot convert {named}: {words}")


if __name__ == "__main__":
    # This file's folder is not a package of the converter's; it must not shadow any of its modules.
    sys.path.pop(0)
    sys.path.append(str(Path(__file__).parents[1]))
    _main(*sys.argv[1:])
