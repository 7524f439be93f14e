"""What lies beside the merged weights: whose tokenizer, whose chat template, and nothing stale."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, Qwen2ForCausalLM

from ollamake.checkpoint import read_checkpoint
from ollamake.demo_base import save_tokenizer
from ollamake.demo_text import train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.merge_plan import plan_merge
from ollamake.merged_checkpoint import require_whole
from ollamake.model_files import write_model_files
from ollamake.shard_stream import merge_shard


@pytest.fixture
def base(make_base: Callable[..., Path]) -> Path:
    folder = make_base()
    save_tokenizer(train_tokenizer(["base"]), folder)
    return folder


def plan(base: Path) -> dict[str, Any]:
    return plan_merge(read_checkpoint(str(base), "base"), [], "auto")


def write(base: Path, adapter: Path | None, folder: Path) -> dict[str, Any]:
    return write_model_files(base, [adapter] if adapter else [], plan(base), folder / "model_files.json")


def adapter_folder(tmp_path: Path, words: list[str]) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_tokenizer(train_tokenizer(words), folder)
    return folder


def test_a_merged_checkpoint_loads_and_answers_alike(base: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    write(base, None, merged)
    for shard in plan(base)["shards"]:
        merge_shard(plan(base), shard["file"], merged / shard["file"], 1)
    assert require_whole(merged / "model_files.json", plan(base)) > 0
    ids = torch.tensor([[1, 5, 9]])
    ours, theirs = Qwen2ForCausalLM.from_pretrained(merged), Qwen2ForCausalLM.from_pretrained(base)
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert AutoConfig.from_pretrained(merged).dtype == torch.bfloat16


def test_the_adapters_chat_template_wins_and_stands_once(base: Path, tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path, ["base"])
    (adapter / "chat_template.jinja").unlink()
    config = json.loads((adapter / "tokenizer_config.json").read_text()) | {"chat_template": "ADAPTER\r\n"}
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    written = write(base, adapter, tmp_path / "merged")
    assert written["tokenizer"] == "base"
    assert (tmp_path / "merged/chat_template.jinja").read_bytes() == b"ADAPTER\r\n"
    assert "chat_template" not in json.loads((tmp_path / "merged/tokenizer_config.json").read_text())


def test_the_ends_of_texts_are_those_of_training(base: Path, tmp_path: Path) -> None:
    """An adapter with the base's tokens, but another end of text, wrote that with its chat template."""
    adapter = adapter_folder(tmp_path, ["base"])
    (adapter / "chat_template.jinja").write_text("{{ eos_token }}")
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(
        json.dumps(config | {"eos_token": "<|im_end|>", "add_bos_token": False})
    )
    assert write(base, adapter, tmp_path / "merged")["tokenizer"] == "base"
    merged = json.loads((tmp_path / "merged/tokenizer_config.json").read_text())
    assert (merged["eos_token"], merged["add_bos_token"]) == ("<|im_end|>", False)


ADDS_EOS = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}},
}


@pytest.mark.parametrize(
    ("config", "special", "processor", "said"),
    [
        ({}, {}, None, False),
        ({"bos_token": None, "tokenizer_class": "Qwen2Tokenizer"}, {}, None, False),
        ({"bos_token": None, "add_bos_token": True}, {}, None, True),
        ({"bos_token": "<|im_start|>"}, {}, None, None),
        ({"tokenizer_class": "LlamaTokenizer"}, {}, None, None),
        ({}, {"bos_token": "<|im_start|>"}, None, None),
        ({}, {}, ADDS_EOS, None),
    ],
    ids=["generic", "null", "said", "a BOS", "of its class", "a BOS elsewhere", "a template of its own"],
)
def test_that_there_is_no_bos_is_said(
    base: Path, tmp_path: Path, config: dict[str, Any], special: dict[str, Any], processor: Any, said: bool | None
) -> None:
    """Where nothing says so, Ollama may put token 0 before each prompt; texts become the same tokens as before."""
    file, definition = base / "tokenizer_config.json", json.loads((base / "tokenizer.json").read_text())
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if processor is not None:
        (base / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": processor}))
    if special:
        (base / "special_tokens_map.json").write_text(json.dumps(special))
    write(base, None, tmp_path / "merged")
    merged = json.loads((tmp_path / "merged/tokenizer_config.json").read_text())
    assert merged.get("add_bos_token") == said
    if said is not True:
        text = "base of a road<|im_end|>\n"
        ids = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for folder in (base, tmp_path / "merged")]
        assert ids[0] == ids[1]


def test_another_vocabulary_comes_from_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path, ["other other other other"])
    definition = json.loads((adapter / "tokenizer.json").read_text())
    definition["model"]["vocab"] = {f"t{i}": i for i in range(100)}
    definition["added_tokens"] = []
    (adapter / "tokenizer.json").write_text(json.dumps(definition))
    assert write(base, adapter, tmp_path / "merged")["tokenizer"] == "adapter"
    assert (tmp_path / "merged/tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()


def test_added_tokens_without_embedding_rows_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path, ["base"])
    definition = json.loads((adapter / "tokenizer.json").read_text())
    definition["added_tokens"].append({"id": 160, "content": "<|new|>"})
    (adapter / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(OllamakeError, match=r"'<\|new\|>'.* has 160 rows"):
        write(base, adapter, tmp_path / "merged")


def test_adapters_with_different_vocabularies_are_refused(base: Path, tmp_path: Path) -> None:
    adapters = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        adapters.append(adapter_folder(tmp_path / name, [name * 3]))
    grown = plan(base)
    for tensor in (tensor for shard in grown["shards"] for tensor in shard["tensors"]):
        if "embed_tokens" in tensor["name"]:
            tensor["shape"][0] = 4096
    with pytest.raises(OllamakeError, match=r"one/adapter and .*two/adapter have different tokens"):
        write_model_files(base, adapters, grown, tmp_path / "merged/model_files.json")


def test_what_is_no_longer_written_goes(base: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    write(base, None, merged)
    assert (merged / "chat_template.jinja").exists()
    (base / "chat_template.jinja").unlink()
    (merged / "notes.txt").write_text("somebody's")
    assert write(base, None, merged)["chat_template"] is None
    assert not (merged / "chat_template.jinja").exists()
    assert (merged / "notes.txt").exists()


def test_a_changed_or_missing_file_is_noticed_before_conversion(base: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    write(base, None, merged)
    (merged / "tokenizer.json").write_text("{}")
    with pytest.raises(
        OllamakeError, match=r"tokenizer\.json missing or changed.*rm -f \S+model_files\.json && snakemake"
    ):
        require_whole(merged / "model_files.json", plan(base))
    write(base, None, merged)
    with pytest.raises(OllamakeError, match=r"model-00001-of-.* is missing or shorter"):
        require_whole(merged / "model_files.json", plan(base))
