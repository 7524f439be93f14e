"""A Modelfile read back by the rules of Ollama's own parser says what is registered, or says that it cannot."""

import unicodedata
from pathlib import PurePosixPath
from typing import Any

import pytest

from ollamake.create_request import CreateRequest
from ollamake.modelfile import modelfile_text

GGUF = PurePosixPath("../../gguf/m.gguf")
QUOTES = '"""'


def parse(text: str) -> dict[str, list[str]]:
    """Read a Modelfile by the rules of parser/parser.go (no continuation of unquoted values is needed here)."""
    commands: dict[str, list[str]] = {}
    rest = text
    while rest:
        line, _, after = rest.partition("\n")
        if not line.strip() or line.startswith("#"):
            rest = after
            continue
        command, _, value = rest.partition(" ")
        if command == "PARAMETER":
            name, _, value = value.partition(" ")
            command = f"PARAMETER {name}"
        if value.startswith('"""'):
            end = next(
                i for i in range(3, len(value)) if value[i : i + 4] in ('"""\n', '"""') and value[i + 3 : i + 4] != '"'
            )
            content, rest = value[3:end], value[end + 4 :]
            content = "".join(c for c in content if c in " \t\n\r" or unicodedata.category(c)[0] in "LMNPS")
        else:
            content, _, rest = value.partition("\n")
        commands.setdefault(command, []).append(content)
    return commands


@pytest.mark.parametrize(
    "system",
    [
        "道路設計の専門家として回答します。",
        "two\nlines\n\n",
        '"quoted" at both "ends"',
        "  leading and trailing  ",
        "\n# no comment\nFROM nowhere\n",
        'in """ the middle',
        "emoji 🙂",
        "CR\r\nLF",
    ],
)
def test_round_trip(system: str) -> None:
    parameters: dict[str, Any] = {"temperature": 0.1, "stop": ["<|im_end|>", "END OF"], "use_mmap": True}
    request = CreateRequest("m:q8_0", "m.gguf", system, "{{ .System }}\n{{ .Prompt }}", ("MIT\n", system), parameters)
    assert parse(modelfile_text(request, GGUF)) == {
        "FROM": ["../../gguf/m.gguf"],
        "SYSTEM": [system],
        "TEMPLATE": ["{{ .System }}\n{{ .Prompt }}"],
        "PARAMETER temperature": ["0.1"],
        "PARAMETER stop": ["<|im_end|>", "END OF"],
        "PARAMETER use_mmap": ["true"],
        "LICENSE": ["MIT\n", system],
    }


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        ("全角　スペース", "U+3000"),
        ("family 👨‍👩‍👧", "U+200D"),
        ('a line ends in """\nhere', '"""'),
        ("x" * 100_001, "100001 characters"),
    ],
)
def test_what_the_grammar_cannot_hold_is_said_and_left_out(
    system: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = modelfile_text(CreateRequest("m:q8_0", "m.gguf", system), GGUF)
    assert "SYSTEM" not in parse(text)
    comment = next(line for line in text.splitlines() if "SYSTEM" in line)
    assert comment.startswith("#")
    assert reason in comment
    assert reason in caplog.text


def test_a_license_or_a_stop_text_that_the_grammar_cannot_hold_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    request = CreateRequest("m:q8_0", "m.gguf", license=("MIT", "許諾　条件"), parameters={"stop": ["a", "　"]})
    text = modelfile_text(request, GGUF)
    assert parse(text) == {"FROM": [str(GGUF)], "LICENSE": ["MIT"], "PARAMETER stop": ["a"]}
    left_out = [line for line in text.splitlines() if "left out" in line]
    assert [line.split(" is ")[0] for line in left_out] == ["# PARAMETER stop", "# LICENSE"]
    assert all("U+3000" in line for line in left_out)
    assert "LICENSE" in caplog.text


def test_comments_say_where_template_and_parameters_come_from() -> None:
    origins = {"template": "proven", "stop": "the base", "temperature": "the configuration"}
    parameters = {"temperature": 0.5, "stop": ["a", "b"]}
    text = modelfile_text(CreateRequest("m:q8_0", "m.gguf", "S", "T", (), parameters, origins), GGUF)
    assert (
        text
        == f"""\
# m:q8_0, written by ollamake, which registers it through Ollama's API.
# By hand: ollama create m:q8_0 -f Modelfile

FROM {GGUF}
SYSTEM {QUOTES}S{QUOTES}

# template: proven
TEMPLATE {QUOTES}T{QUOTES}

# stop: the base
PARAMETER stop {QUOTES}a{QUOTES}
PARAMETER stop {QUOTES}b{QUOTES}

# temperature: the configuration
PARAMETER temperature 0.5
"""
    )


def test_it_is_said_why_there_is_no_template() -> None:
    text = modelfile_text(CreateRequest("m:q8_0", "m.gguf", origins={"template": "none: Ollama guesses"}), GGUF)
    assert "# template: none: Ollama guesses" in text.splitlines()
    assert parse(text) == {"FROM": [str(GGUF)]}


def test_origins_of_what_is_not_asked_for_are_not_said() -> None:
    text = modelfile_text(CreateRequest("m", "m.gguf", origins={"temperature": "somebody"}), GGUF)
    assert "somebody" not in text
