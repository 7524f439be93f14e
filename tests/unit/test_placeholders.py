"""What the examples leave open is refused with all of it at once; what fits can be planned before."""

from pathlib import Path

import pytest
import yaml

from ollamake.configuration import read_configuration
from ollamake.errors import OllamakeError
from ollamake.placeholders import is_missing, placeholders, require_no_placeholders

SCHEMA = Path(__file__).parents[2] / "config/schemas/config.schema.yaml"
CONFIG = yaml.safe_load("""
models:
  m:
    base: org/name
    adapters: [{path: /CHANGE/ME/one, weight: 0.5}, {path: mine, weight: 0.5}]
    imatrix: {text: [/CHANGE/ME/text.txt], chunks: 10}
    quality: {chat: [/CHANGE/ME/chat.jsonl]}
    answers: {questions: /CHANGE/ME/questions.jsonl}
    rag: {file: /CHANGE/ME/rag.yaml}
    ollama: {system: "Not /CHANGE/ME"}
ollama: {store: /CHANGE/ME/store}
""")
LEFT = [
    "models.m.adapters[0].path: /CHANGE/ME/one",
    "models.m.imatrix.text[0]: /CHANGE/ME/text.txt",
    "models.m.quality.chat[0]: /CHANGE/ME/chat.jsonl",
    "models.m.answers.questions: /CHANGE/ME/questions.jsonl",
    "models.m.rag.file: /CHANGE/ME/rag.yaml",
    "ollama.store: /CHANGE/ME/store",
]


def test_each_is_named_by_its_key() -> None:
    assert placeholders(CONFIG) == LEFT
    with pytest.raises(OllamakeError) as refused:
        require_no_placeholders(CONFIG, "No base.")
    lines = str(refused.value).splitlines()
    assert lines[0] == "No base."
    assert [line.strip() for line in lines[2:-1]] == LEFT
    require_no_placeholders({"models": {"m": {"base": "/change/me", "adapter": None}}})


def test_they_are_not_missed_before_something_is_built() -> None:
    assert read_configuration(CONFIG, SCHEMA).models["m"].calibration.text == ("/CHANGE/ME/text.txt",)


def test_other_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").touch()
    assert not is_missing("~/there")
    assert is_missing("~/elsewhere")
    assert is_missing(str(tmp_path)), "a folder is not a file"
    assert not is_missing("/CHANGE/ME/anything")
