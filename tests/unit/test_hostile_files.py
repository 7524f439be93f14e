"""Files of a stranger's model: names that lead out of its folder, links to what is the user's, JSON that is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollamake.atomic_write import write_text
from ollamake.checkpoint import read_checkpoint
from ollamake.demo_base import save_tokenizer
from ollamake.demo_text import train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.generation_defaults import generation_parameters, special_tokens
from ollamake.json_object import MOST_BYTES, read_json_object
from ollamake.merge_plan import plan_merge
from ollamake.model_files import write_model_files
from ollamake.source_files import merges_through_peft, reads_across_shards, source_files
from ollamake.text_tokens import load_tokenizer

SECRET = "the key that opens everything"

NAMES = {
    "above": "../model.safetensors",
    "absolute": "/etc/passwd",
    "below": "sub/model.safetensors",
    "the folder above": "..",
    "the folder": ".",
    "nothing": "",
    "of Windows": "..\\model.safetensors",
    "with a zero": "a\0.safetensors",
    "of two lines": "a\nb.safetensors",
    "backwards": "a\u202esrosnetefas.exe",
    "with an escape": "a\x1b[2J.safetensors",
    "half a character": "a\ud800.safetensors",
    "endless": "a" * 300 + ".safetensors",
    "a number": 7,
}


def base_of(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ({"config": "{}"} | files).items():
        (folder / f"{name}.json").write_text(text)
    return folder


@pytest.mark.parametrize("case", NAMES)
def test_shards_outside_of_the_folder(tmp_path: Path, case: str) -> None:
    base = base_of(tmp_path / "base")
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": NAMES[case]}}))
    with pytest.raises(OllamakeError) as found:
        source_files("base", str(base), "models.m.base")
    assert "names files outside its folder" in str(found.value) or "surrogates not allowed" in str(found.value)
    assert str(found.value).isprintable()
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize(
    "index",
    [
        "[]", "null", "7", '{"weight_map": []}', '{"weight_map": {"a": []}}', '{"weight_map": {"a": {}, "b": 1}}', "[" * 99_999,
        '{"weight_map": {"a": "b", "c": 1}}', '{"weight_map": ' + '{"a":' * 300 + "1" + "}" * 301, "\ufeff{}", "{" + "9" * 9000,
    ],
)  # fmt: skip
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    base = base_of(tmp_path / "base")
    (base / "model.safetensors.index.json").write_text(index)
    with pytest.raises(OllamakeError, match=r"^models\.m\.base: .*index\.json is not an index"):
        source_files("base", str(base), "models.m.base")


def test_links_out_of_a_repository_are_not_read_into_a_model(tmp_path: Path) -> None:
    """A repository that was cloned may have them; what they lead to would be the model's chat template."""
    (tmp_path / "id_rsa").write_text(SECRET)
    base = base_of(tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for name in ("chat_template.jinja", "tokenizer_config.json", "merges.txt"):
        for target in ("../id_rsa", str(tmp_path / "id_rsa")):
            (base / name).symlink_to(target)
            with pytest.raises(
                OllamakeError, match=rf"^models\.m\.base: .*{name} is a link to .*id_rsa, outside"
            ) as found:
                source_files("base", str(base), "models.m.base")
            assert SECRET not in str(found.value)
            (base / name).unlink()
    (base / "chat_template.jinja").symlink_to("/proc/self/environ")
    with pytest.raises(OllamakeError, match="is a link to"):
        source_files("base", str(base), "models.m.base")


def test_links_that_people_and_caches_make_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "hub/models--org--name"
    snapshot = cache / "snapshots" / ("0" * 40)
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")):
        blob = cache / "blobs" / (f"{number:040x}" if number else f"{number:064x}")
        blob.write_text("{}")
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    assert len(source_files("base", str(snapshot), "models.m.base")[1]) == 3
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (base / name).symlink_to(snapshot / name)  # a link to a link
    (tmp_path / "other").mkdir()
    (tmp_path / "other/vocab.json").write_text("{}")
    (base / "vocab.json").symlink_to(tmp_path / "other/vocab.json")
    (base / "first.jinja").write_text("")
    (base / "chat_template.jinja").symlink_to("first.jinja")
    assert len(source_files("base", str(base), "models.m.base")[1]) == 4
    (tmp_path / "linked").symlink_to(base)
    assert len(source_files("base", str(tmp_path / "linked"), "models.m.base")[1]) == 4


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    os.mkfifo(base / "model.safetensors")
    with pytest.raises(OllamakeError, match="has none of"):
        source_files("base", str(base), "models.m.base")
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(OllamakeError, match="has none of"):
        source_files("base", str(base), "models.m.base")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "ours").symlink_to("theirs")
    write_text(tmp_path / "ours", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "ours").is_symlink()


@pytest.mark.parametrize("text", ["[" * 99_999, "[1]", "{", '{"a": "\\udc00"}', '{"a": ' + "9" * 5000 + "}"])
def test_a_configuration_that_is_none(tmp_path: Path, text: str) -> None:
    base = base_of(tmp_path / "base", config=text)
    (base / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert not reads_across_shards(str(base / "config.json"))
    assert not merges_through_peft(str(base / "config.json"))
    with pytest.raises(OllamakeError, match=r"config\.json"):
        read_checkpoint(str(base), "models.m.base")


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_part_of_a_configuration_that_is_none(tmp_path: Path, part: str) -> None:
    """Found by the ten minutes."""
    base = base_of(tmp_path / "base", config=json.dumps({part: True, "tie_word_embeddings": True}))
    (base / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(OllamakeError, match=rf"config\.json: expected a JSON object in {part}"):
        read_checkpoint(str(base), "models.m.base")


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 10**12},
        {"num_hidden_layers": 10**400},
        {"text_config": {"n_routed_experts": 1e18}},
        {"n_layer": float("nan")},
    ],
)
def test_numbers_that_would_be_counted_to(tmp_path: Path, config: dict[str, Any]) -> None:
    base = base_of(tmp_path / "base", config=json.dumps(config))
    (base / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(OllamakeError, match=r"config\.json: .* is .*, which no model has"):
        read_checkpoint(str(base), "models.m.base")


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(100 * MOST_BYTES)
    with pytest.raises(OllamakeError, match="it is larger than 200 MB"):
        read_json_object(tmp_path / "config.json")


SMALL: dict[str, list[Any]] = {
    "tokenizer.json": [
        [], {"model": []}, {"model": {"vocab": [[], "a", 1]}}, {"model": {"vocab": {"a": "b"}}}, {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": {}}, "added_tokens": [1]}, {"model": {"vocab": {}}, "added_tokens": {"a": 1}},
        {"model": {"vocab": 5}},
        {"model": {"vocab": {}}, "added_tokens": [{"content": [], "id": 1}]},
    ],
    "tokenizer_config.json": [[], "text", {"chat_template": 5}, {"chat_template": [1, {"name": "default"}]}, {"bos_token": []}],
    "special_tokens_map.json": [[], {"bos_token": 5}],
    "chat_template.json": [[], {"chat_template": {}}],
    "generation_config.json": [[], {"eos_token_id": [[1]], "stop_strings": 5}, {"eos_token_id": {"a": 1}, "stop_strings": [[]]}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SMALL.items() for value in values])
def test_small_files_are_used_or_refused(tmp_path: Path, make_base: Callable[..., Path], name: str, value: Any) -> None:
    """No defect of such a file is anything but an OllamakeError."""
    base = make_base()
    save_tokenizer(train_tokenizer(["base"]), base)
    for owner in ("adapter", "base"):
        folder = {"base": base, "adapter": tmp_path / "adapter"}[owner]
        if not folder.exists():
            folder.mkdir()
            save_tokenizer(train_tokenizer(["base"]), folder)
        (folder / name).write_text(json.dumps(value))
        plan = plan_merge(read_checkpoint(str(base), "base"), [], "auto")
        for work in (
            lambda p=plan: write_model_files(base, [tmp_path / "adapter"], p, tmp_path / "merged/model_files.json"),
            lambda f=folder: special_tokens(f),
            lambda f=folder: load_tokenizer(f, parse_special=True),
            lambda f=folder: generation_parameters(f / "generation_config.json", {1: "</s>"}),
        ):
            try:
                work()
            except OllamakeError as error:
                assert str(tmp_path) in str(error)  # noqa: PT017
