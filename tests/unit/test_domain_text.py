"""The text for calibration and evaluation: its tokens are those of transformers, and what cannot be used is refused in words."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import prepare_text as script
from ollamake import domain_text, text_files
from ollamake.demo_base import save_tokenizer
from ollamake.demo_text import CHAT_TEMPLATE, train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.perplexity_faults import require_enough_chunks
from ollamake.record_seal import read_record

LINES = [f"{n}. The design speed is {40 + n} km/h; 最小曲線半径は{100 + 7 * n}mです。" for n in range(200)]
TEXT = "\n".join(LINES) + "\n"
KEY = "models.m.quality"


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer([*LINES, "user\nassistant\n"])


@pytest.fixture
def folder(tmp_path: Path, trained: Tokenizer) -> Path:
    """A merged checkpoint's small files."""
    merged = tmp_path / "merged"
    merged.mkdir()
    save_tokenizer(trained, merged)
    (merged / "model_files.json").write_text(json.dumps({"chat_template": "chat_template.jinja", "files": {}}))
    return merged


@pytest.fixture
def prepare(tmp_path: Path, folder: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the script on files and returns its record; the text is in ``tmp_path`` / out.txt."""

    def prepared(
        *files: Path,
        chunks: int | str = "all",
        context: int = 32,
        purpose: str = "evaluation",
    ) -> dict[str, Any]:
        kinds = {
            flag: [str(file) for file in files if (file.suffix == ".jsonl") is chat]
            for flag, chat in (("--text", False), ("--chat", True))
        }
        arguments = ["--purpose", purpose, "--key", KEY, "--model-files", str(folder / "model_files.json")]
        for flag, group in kinds.items():
            arguments += [flag, *group] if group else []
        arguments += ["--chunks", str(chunks), "--context", str(context), "--output", str(tmp_path / "out.txt")]
        script.main([*arguments, "--record", str(tmp_path / "out.json")])
        record: dict[str, Any] = read_record(tmp_path / "out.json")
        return record

    return prepared


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def chat(folder: Path, count: int = 20, name: str = "chat.jsonl", system: str | None = None) -> Path:
    lines = []
    for n in range(count):
        messages = [{"role": "system", "content": system}] if system else []
        messages += [
            {"role": "user", "content": f"Speed {n} of chat {name}?"},
            {"role": "assistant", "content": f"設計速度は{n}です、{name}。"},
        ]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    return write(folder, name, "\n".join(lines) + "\n")


def by_transformers(folder: Path, text: str, special: bool) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(
        text, add_special_tokens=False, split_special_tokens=not special, verbose=False
    )["input_ids"]
    return ids


def written(tmp_path: Path) -> str:
    return (tmp_path / "out.txt").read_bytes().decode()


def test_the_record_of_plain_text(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    one, two = write(tmp_path, "a.txt", TEXT), write(tmp_path, "b.txt", "Second text, 二番目の文章 without a line end")
    tokens = len(by_transformers(folder, TEXT + two.read_text() + "\n", special=False))
    assert prepare(one, two) == {
        "purpose": "evaluation",
        "sources": [
            {"file": str(file), "kind": "text", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "units": 1}
            for file in (one, two)
        ],
        "context": 32,
        "tokens": tokens,
        "chunks": tokens // 32,
        "cut": False,
        "parse_special": False,
        "unknown_tokens": 0,
        "sha256": hashlib.sha256((tmp_path / "out.txt").read_bytes()).hexdigest(),
        "warnings": [],
    }
    assert written(tmp_path) == TEXT + two.read_text() + "\n"


def test_texts_come_first_and_chat_is_rendered_as_by_transformers(
    tmp_path: Path, folder: Path, prepare: Callable[..., Any]
) -> None:
    talk = chat(tmp_path, 30, system="Be brief.")
    pair = write(tmp_path, "pair.jsonl", json.dumps({"question": "One?", "answer": "道"}))
    text = write(tmp_path, "a.txt", "A text.")
    record = prepare(talk, text, pair)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversations = [json.loads(line)["messages"] for line in talk.read_text().splitlines()]
    conversations.append([{"role": "user", "content": "One?"}, {"role": "assistant", "content": "道"}])
    expected = "A text.\n" + "".join(tokenizer.apply_chat_template(one, tokenize=False) for one in conversations)
    assert written(tmp_path) == expected
    assert record["tokens"] == len(by_transformers(folder, expected, special=True))
    assert record["parse_special"] is True
    assert [(one["kind"], one["units"]) for one in record["sources"]] == [("text", 1), ("chat", 30), ("chat", 1)]
    assert not expected.endswith("assistant\n")


def test_conversations_whose_end_nothing_marks_stand_in_lines_of_their_own(
    tmp_path: Path, folder: Path, prepare: Callable[..., Any]
) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}")
    prepare(chat(tmp_path, 30))
    assert written(tmp_path).count("。 \nuser: ") == 29
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    prepare(chat(tmp_path, 30))
    assert written(tmp_path).count("。<|im_end|>Speed") == 29


def test_the_same_conversations_are_the_same_text_tomorrow(
    tmp_path: Path, folder: Path, prepare: Callable[..., Any]
) -> None:
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}\n" + CHAT_TEMPLATE)
    prepare(chat(tmp_path))
    assert written(tmp_path).startswith("2025-01-01<|im_start|>")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_and_crlf(tmp_path: Path, prepare: Callable[..., Any], mark: bytes) -> None:
    files = [write(tmp_path, f"{n}.txt", mark + TEXT.replace("\n", "\r\n").encode()) for n in "ab"]
    prepare(*files)
    assert written(tmp_path) == TEXT * 2


@pytest.mark.parametrize("kind", ["text", "chat"])
@pytest.mark.parametrize("chunks", [1, 2, 5, 17])
@pytest.mark.parametrize("context", [16, 64])
def test_the_cut_is_behind_the_first_line_or_conversation_that_is_enough(
    tmp_path: Path, folder: Path, prepare: Callable[..., Any], kind: str, chunks: int, context: int
) -> None:
    file = write(tmp_path, "a.txt", TEXT * 3) if kind == "text" else chat(tmp_path, 400)
    record = prepare(file, chunks=chunks, context=context, purpose="calibration")
    text = written(tmp_path)
    wanted = math.ceil(1.05 * max(chunks, 2) * context)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    units = TEXT.splitlines(keepends=True) * 3
    if kind == "chat":
        talks = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
        units = [tokenizer.apply_chat_template(one, tokenize=False) for one in talks]
    options = {"add_special_tokens": False, "split_special_tokens": kind == "text"}
    counts = [len(tokenizer(unit, **options)["input_ids"]) for unit in units]
    enough = next(n for n, total in enumerate(itertools.accumulate(counts), start=1) if total >= wanted)
    assert text == "".join(units[:enough])
    assert record["tokens"] == sum(counts[:enough])
    assert (record["chunks"], record["cut"]) == (chunks, True)
    assert record["sources"][0]["units"] == (enough if kind == "chat" else 1)


def test_a_text_that_is_just_enough_is_not_cut(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    file = write(tmp_path, "a.txt", TEXT)
    tokens = len(by_transformers(folder, TEXT, special=False))
    assert not prepare(file, chunks=tokens // 32 + 1)["cut"]
    assert prepare(file, chunks=tokens // 32 + 1)["chunks"] == tokens // 32
    assert prepare(file, chunks=tokens // 32 // 2)["cut"]


def test_a_source_that_is_not_reached_is_warned_of(tmp_path: Path, prepare: Callable[..., Any]) -> None:
    record = prepare(write(tmp_path, "a.txt", TEXT), chat(tmp_path), chunks=20)
    assert [one["units"] for one in record["sources"]] == [1, 0]
    assert (record["cut"], record["parse_special"]) == (True, True)
    (warning,) = record["warnings"]
    assert warning.startswith(f"nothing of {tmp_path / 'chat.jsonl'} is used: what comes before it makes the 20 chunks")


@pytest.mark.parametrize("separator", ["", " ", "。", ". "])
def test_a_text_in_one_line_is_cut_all_the_same(tmp_path: Path, prepare: Callable[..., Any], separator: str) -> None:
    words = separator.join(f"設計速度{number}" for number in range(40_000))
    record = prepare(write(tmp_path, "a.txt", words), chunks=40)
    assert (record["chunks"], record["cut"]) == (40, True)
    assert 1.05 * 40 * 32 <= record["tokens"] < 1.1 * 40 * 32
    assert words.startswith(written(tmp_path))


def sentencepiece_like(kind: str) -> Tokenizer:
    """Return a tokenizer like Llama 2's ("llama": BPE with byte fallback) or T5's ("unigram", without)."""
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator(LINES, trainer)
        return tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, max_token_length=8)
    trained.train_from_iterator([line[:28] for line in LINES], trainer)
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(one) for one in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


ALPHABET = ["a", " ", "  ", "\n", "\n\n", ".", "'s", "道路", "設計速度", "9", "12", "🙂", "é", "\t", "!?", "the speed"]


@pytest.mark.parametrize("kind", ["byte-level", "llama"])
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(ALPHABET), min_size=30, max_size=120), piece=st.integers(12, 60))
@example(parts=["a"] * 10 + ["the speed"] + ["a"] * 19, piece=12)
def test_tokens_of_pieces_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, trained: Tokenizer, kind: str, parts: list[str], piece: int
) -> None:
    """Where a piece ends at a line end or a blank, which the pieces here have within reach, nothing is joined or torn."""
    folder = tmp_path_factory.mktemp("pieces")
    tokenizer = trained if kind == "byte-level" else sentencepiece_like("llama")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "model_files.json").write_text('{"chat_template": null}')
    text = "a " + "".join(part + "\nword" if n % 5 == 0 else part for n, part in enumerate(parts)) + "\n"
    write(folder, "a.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain_text, "PIECE", piece)
        arguments = ["--model-files", str(folder / "model_files.json"), "--output", str(folder / "out.txt")]
        arguments += ["--record", str(folder / "out.json"), "--text", str(folder / "a.txt"), "--chunks", "all"]
        script.main(["--purpose", "calibration", "--key", KEY, "--context", "2", *arguments])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer)(text, add_special_tokens=False, verbose=False)
    assert (folder / "out.txt").read_bytes().decode() == text
    found = read_record(folder / "out.json")["tokens"]
    slack = 0 if kind == "byte-level" else len(text) // piece
    assert abs(found - len(whole["input_ids"])) <= slack


def test_a_tokenizer_that_only_sentencepiece_has(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    (folder / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(folder / "tokenizer"), vocab_size=400, byte_fallback=True,
        model_type="bpe", minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    record = prepare(write(tmp_path, "a.txt", TEXT))
    trained = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert record["tokens"] == pytest.approx(len(trained.encode(TEXT)), abs=1)
    assert record["unknown_tokens"] == 0
    # Bytes of a language that it has not been trained on.
    record = prepare(write(tmp_path, "b.txt", "".join(map(chr, range(0xAC00, 0xAC00 + 2000)))))
    assert "of the tokens are single bytes" in " ".join(record["warnings"])


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(OllamakeError, match=r"tokenizer\.json cannot be loaded as a tokenizer"):
        prepare(write(tmp_path, "a.txt", TEXT))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(OllamakeError, match="transformers cannot load the tokenizer in"):
        prepare(write(tmp_path, "a.txt", TEXT))


def test_truncation_that_a_tokenizer_was_saved_with_cuts_no_text(
    tmp_path: Path, folder: Path, prepare: Callable[..., Any], trained: Tokenizer
) -> None:
    file = write(tmp_path, "a.txt", TEXT)
    tokens = prepare(file)["tokens"]
    saved = Tokenizer.from_str(trained.to_str())
    saved.enable_truncation(16)
    saved.enable_padding(length=100_000)
    saved.save(str(folder / "tokenizer.json"))
    assert prepare(file)["tokens"] == tokens


def test_special_tokens_in_plain_text_are_plain_without_chat_and_special_with_it(
    tmp_path: Path, folder: Path, prepare: Callable[..., Any]
) -> None:
    marked = TEXT + "<|im_start|>user\nHi<|im_end|>\n<|im_start|><s>\n"
    file = write(tmp_path, "a.txt", marked)
    record = prepare(file)
    assert record["tokens"] == len(by_transformers(folder, marked, special=False))
    assert record["warnings"] == [
        "models.m.quality.text: the plain text has special tokens of the model literally: '<|im_start|>' (2 times),"
        " '<|im_end|>' (1 times); they are read as plain text, not as these tokens."
    ]
    record = prepare(file, chat(tmp_path, 1))
    assert record["tokens"] == len(by_transformers(folder, written(tmp_path), special=True))
    (warning,) = record["warnings"]
    assert warning.startswith("models.m.quality.text and .chat: ")
    assert warning.endswith(
        "parsed as these special tokens, since there is chat beside it, and the whole text is read so."
    )


def test_markers_of_the_template_are_no_special_tokens_in_plain_text(
    tmp_path: Path, prepare: Callable[..., Any]
) -> None:
    assert prepare(write(tmp_path, "a.txt", TEXT), chat(tmp_path))["warnings"] == []


def word_level(folder: Path) -> None:
    words = {"<unk>": 0, **{f"w{n}": n + 1 for n in range(50)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_unknown_tokens(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    word_level(folder)
    words = " ".join(f"w{n % 50}" for n in range(990))
    record = prepare(write(tmp_path, "a.txt", words + " 道 路" * 5))
    assert (record["tokens"], record["unknown_tokens"]) == (1000, 10)
    (warning,) = record["warnings"]
    assert warning.startswith(
        "models.m.quality.text: the tokenizer does not know 10 of the 1000 tokens of the text (1 %),"
    )
    assert "道 (U+9053)" in warning
    assert "路 (U+8DEF)" in warning
    with pytest.raises(
        OllamakeError, match=r"^models\.m\.quality\.text: .* 12 of the 1002 tokens of .* 道 \(U\+9053\)"
    ):
        prepare(write(tmp_path, "a.txt", words + " 道 路" * 6))


def test_unknown_characters_of_a_unigram_vocabulary(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    sentencepiece_like("unigram").save(str(folder / "tokenizer.json"))
    with pytest.raises(OllamakeError, match=r"does not know .* of the text \(.*%\), such as 한 \(U\+D55C\), 국 "):
        prepare(write(tmp_path, "a.txt", "한 국 어 " * 200))


def test_a_language_that_the_tokenizer_hardly_knows(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    hangul = "".join(map(chr, range(0xAC00, 0xAC00 + 600)))
    record = prepare(write(tmp_path, "a.txt", hangul))
    assert record["tokens"] == len(by_transformers(folder, hangul + "\n", special=False))
    (warning,) = record["warnings"]
    share = int(
        warning.split(" % of the tokens are single bytes: the tokenizer hardly knows this language")[0].split()[-1]
    )
    assert share > 90
    sentencepiece_like("llama").save(str(folder / "tokenizer.json"))
    (warning,) = prepare(write(tmp_path, "a.txt", hangul))["warnings"]
    assert "100 % of the tokens are single bytes" in warning
    assert prepare(write(tmp_path, "a.txt", "The design speed is 40 km/h.\n" * 200))["warnings"] == []


def test_few_chunks(tmp_path: Path, prepare: Callable[..., Any]) -> None:
    file = write(tmp_path, "a.txt", TEXT)
    assert prepare(file, chunks=20)["warnings"] == []
    (warning,) = prepare(file, chunks=19, context=32)["warnings"]
    # 0.67 / sqrt(19 * 32 / 512) and 1.5 / sqrt(...)
    assert (
        "19 chunks of 32 tokens are few, so the error bars are wide: about ±61 % of the mean KL divergence" in warning
    )
    assert "±1.4 percent points of the same top token (1 sigma). Set models.m.quality.chunks to 20 or more." in warning
    (warning,) = prepare(write(tmp_path, "b.txt", TEXT[:1500]), chunks=100)["warnings"]
    assert warning.endswith("Give more text.")
    assert prepare(file, chunks=50, purpose="calibration")["warnings"] == []
    (warning,) = prepare(file, chunks=49, purpose="calibration")["warnings"]
    assert "49 chunks of 32 tokens are few for an importance matrix; 100 to 300 are usual." in warning


@pytest.mark.parametrize("context", [512, 4096])
def test_too_short(tmp_path: Path, folder: Path, prepare: Callable[..., Any], context: int) -> None:
    text = TEXT[:1000]
    file = write(tmp_path, "a.txt", text)
    tokens = len(by_transformers(folder, text + "\n", special=False))
    with pytest.raises(OllamakeError) as error:
        prepare(file, context=context)
    needed, largest = math.ceil(2 * context * 1.05), int(tokens / 1.05) // 64 * 32
    missing = math.ceil((needed - tokens) * 1001 / tokens)
    assert str(error.value) == (
        f"models.m.quality.text: the text is too short: it has {tokens} tokens, and {needed} are needed (2 chunks of"
        f" {context}, and 5 % in case llama.cpp counts less). Give about {missing} characters more, or set"
        f" models.m.quality.context to {largest}, the largest multiple of 32 that would do."
    )
    assert not (tmp_path / "out.txt").exists()
    assert prepare(file, context=largest)["chunks"] >= 2
    with pytest.raises(OllamakeError, match=r"characters more\. No smaller context of 32 or more would do\."):
        prepare(write(tmp_path, "b.txt", "Hi"), context=context)


@pytest.mark.parametrize(
    ("purpose", "context", "chunks", "needed"),
    [
        ("calibration", 32, 2, 64),
        ("evaluation", 32, 7, 236),
        ("evaluation", 64, 4, 269),
        ("evaluation", 96, 3, 303),
        ("evaluation", 256, 2, 538),
    ],
)
def test_the_least_text_that_will_do(
    tmp_path: Path, folder: Path, prepare: Callable[..., Any], purpose: str, context: int, chunks: int, needed: int
) -> None:
    """To measure on, it must make the 100 scored tokens of which llama-perplexity makes statistics: half of each chunk.

    A twentieth more is asked for, so that it still does if llama.cpp's tokenizer makes a few tokens less of it.
    """
    word_level(folder)
    asked = {"purpose": purpose, "context": context}
    assert prepare(write(tmp_path, "a.txt", "w1 " * needed), **asked)["chunks"] == chunks
    with pytest.raises(OllamakeError, match=f"it has {needed - 1} tokens, and {needed} are needed \\({chunks} chunks"):
        prepare(write(tmp_path, "a.txt", "w1 " * (needed - 1)), **asked)
    if purpose == "evaluation":
        require_enough_chunks(context, int(needed / 1.05) // context, tmp_path)


@pytest.mark.parametrize(
    ("context", "chunks", "needed", "larger"), [(32, 6, 7, 64), (64, 3, 4, 96), (96, 2, 3, 128), (128, 1, 2, 224)]
)
def test_too_few_chunks_to_measure_on(
    tmp_path: Path, prepare: Callable[..., Any], context: int, chunks: int, needed: int, larger: int
) -> None:
    """llama-perplexity would refuse them after the merge."""
    file = write(tmp_path, "a.txt", TEXT)
    said = (
        rf"^models\.m\.quality\.chunks: {chunks} chunks of {context} .* Ask for {needed} chunks or more, or raise"
        rf" models\.m\.quality\.context to {larger} or more\.$"
    )
    with pytest.raises(OllamakeError, match=said):
        prepare(file, chunks=chunks, context=context)
    assert prepare(file, chunks=chunks, context=larger)["chunks"] == chunks
    with pytest.raises(OllamakeError, match="makes no statistics"):
        require_enough_chunks(larger - 32, chunks, file)
    with pytest.raises(OllamakeError, match="makes no statistics"):
        require_enough_chunks(context, chunks, file)
    assert prepare(file, chunks=needed, context=context)["chunks"] == needed
    assert prepare(file, chunks=chunks, context=context, purpose="calibration")["chunks"] == chunks


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", None, r"quality\.text: .*a\.txt does not exist"),
        ("a.txt", b" \n", r"quality\.text: .*a\.txt has nothing but white space"),
        ("a.txt", TEXT.encode("cp932"), r"quality\.text: .*a\.txt is not UTF-8 at byte 32 .* looks like Shift_JIS"),
        ("a.txt", b"\x00\x01\x02", r"quality\.text: .*a\.txt is a binary file"),
        ("a.jsonl", b"{", r"quality\.chat: .*a\.jsonl:1: not JSON"),
        ("a.jsonl", b"", r"quality\.chat: .*a\.jsonl has no conversations"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, prepare: Callable[..., Any], name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(OllamakeError, match=rf"^models\.m\.{words}"):
        prepare(tmp_path / name)
    assert not (tmp_path / "out.txt").exists()


def test_a_chat_template_that_refuses(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    refuses = "{% if messages[0].content == 'Speed 70 of chat chat.jsonl?' %}{{ raise_exception('no 70') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refuses + CHAT_TEMPLATE)
    with pytest.raises(
        OllamakeError,
        match=r"^models\.m\.quality\.chat: .*chat\.jsonl:71: the chat template refuses .*: no 70\. Change it",
    ):
        prepare(chat(tmp_path, 100))
    (folder / "chat_template.jinja").write_text("{% for n in range(100000) %}{{ 'x' * 1000 }}{% endfor %}")
    with pytest.raises(OllamakeError, match=r"chat\.jsonl:1: the chat template refuses .*writes more than 1000000"):
        prepare(chat(tmp_path))


def test_a_chat_template_that_does_not_end(
    tmp_path: Path, folder: Path, prepare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ollamake.jinja_rendering.MAX_SECONDS", 1)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loops)
    with pytest.raises(OllamakeError, match=r"quality\.chat: .*chat\.jsonl:1-20: .* did not end within 1 seconds"):
        prepare(chat(tmp_path, 20))


def test_no_chat_template(tmp_path: Path, folder: Path, prepare: Callable[..., Any]) -> None:
    (folder / "model_files.json").write_text(json.dumps({"chat_template": None, "files": {}}))
    assert prepare(write(tmp_path, "a.txt", TEXT))["parse_special"] is False
    with pytest.raises(OllamakeError, match=r"^models\.m\.quality\.chat: the model has no chat template"):
        prepare(write(tmp_path, "a.txt", TEXT), chat(tmp_path))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 100 MB."""
    path = tmp_path_factory.mktemp("large") / "large.txt"
    block = "".join(f"w{n % 50} w{n % 49} w{n % 47} w{n % 43}\n" for n in range(60_000)).encode()
    with path.open("wb") as file:
        while file.tell() < 100e6:
            file.write(block)
    return path


def test_of_a_large_text_no_more_is_read_than_is_needed(
    folder: Path, large: Path, prepare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[int] = []
    decode = text_files._decode

    def counted(decoder: Any, block: bytes, *rest: Any) -> str:
        blocks.append(len(block))
        return decode(decoder, block, *rest)

    monkeypatch.setattr(text_files, "_decode", counted)
    tracemalloc.start()
    record = prepare(large, chunks=100, context=512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (record["chunks"], record["cut"]) == (100, True)
    assert record["tokens"] < 1.06 * 51_200
    assert sum(blocks) <= 2 * text_files.BLOCK
    assert peak < 40e6


def test_a_large_text_is_used_as_a_whole_in_little_memory(
    tmp_path: Path, folder: Path, large: Path, prepare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with large.open("rb") as file:
        part = write(tmp_path, "part.txt", file.read(30_000_000))
    # A tokenizer that costs nothing: what is measured here is reading, cutting into pieces and writing.
    monkeypatch.setattr(
        domain_text,
        "load_tokenizer",
        lambda folder, parse_special: domain_text.TextTokenizer(
            lambda text: [1] * text.count("w"), lambda text: [], ("<s>",), None, frozenset()
        ),
    )
    tracemalloc.start()
    record = prepare(part, context=512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not record["cut"]
    assert (tmp_path / "out.txt").read_bytes().removesuffix(b"\n") == part.read_bytes().removesuffix(b"\n")
    assert record["tokens"] == part.read_bytes().count(b"w")
    # Half of it is for the sha256 of the file, which is read in larger blocks.
    assert peak < 20e6
