"""Whatever a server or a store holds otherwise than asked is named, and nothing else is."""

import errno
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from played_server import PlayedServer, playing

from ollamake.create_request import CreateRequest
from ollamake.file_digest import sha256_of
from ollamake.ollama_manifest import NEWEST, form_of_version, go_json, manifest_of, small_blobs
from ollamake.ollama_server import OllamaServer, ShownModel
from ollamake.ollama_store import OllamaStore
from ollamake.verification import (
    _from_go,
    blob_damage,
    predicted_digest,
    server_differences,
    shown_differences,
    store_differences,
)

REQUEST = CreateRequest(
    "m:q8_0",
    "m.gguf",
    system="S\r\n",
    template="T",
    license=("MIT", "BSD"),
    parameters={"temperature": 1.0, "top_k": 20, "use_mmap": True, "stop": ["<a>\n", "b"]},
)
SHOWN = ShownModel(
    weights="ab" * 32,
    weights_path="/b/sha256-ab",
    system="S\r\n",
    template="T",
    license="MIT\nBSD",
    parameters={"temperature": ["1"], "top_k": ["20"], "use_mmap": ["true"], "stop": ['"b"', '"<a>\\n"']},
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("-1", -1),
        ("1e-07", 1e-7),
        ("1e+06", 1e6),
        ("true", True),
        ("false", False),
        ('"<|im_end|>"', "<|im_end|>"),
        ('""', ""),
        (r'"a\nb\t\"c\\"', 'a\nb\t"c\\'),
        (r'"\x00\u3000\U0001f642"', "\x00\u3000🙂"),
        (r'"\a\b\f\r\v"', "\x07\x08\x0c\r\x0b"),
        (r'"\\x41"', r"\x41"),
        (r'"\\\x41"', r"\A"),
        (r'"\\\\x41 \\u0041 \\U00000041 \\a"', r"\\x41 \u0041 \U00000041 \a"),
        ('`raw \\n "x"`', 'raw \\n "x"'),
        ("``", ""),
        ('"終わり"', "終わり"),
        ('["a" "b"]', '["a" "b"]'),
    ],
)
def test_go_literals(text: str, value: Any) -> None:
    assert _from_go(text) == value
    assert type(_from_go(text)) is type(value)


def test_what_is_shown_as_asked_is_no_difference() -> None:
    assert list(shown_differences(REQUEST, SHOWN.weights or "", SHOWN)) == []


@pytest.mark.parametrize(
    ("shown", "difference"),
    [
        ({"weights": "cd"}, f"weights: asked for sha256 {'ab' * 32}, it has cd"),
        ({"weights": None}, f"weights: asked for sha256 {'ab' * 32}, it has None"),
        ({"system": "S\n"}, r"system: asked for 'S\r\n', it has 'S\n'"),
        ({"template": "T "}, "template: asked for 'T', it has 'T '"),
        ({"template": ""}, "template: asked for 'T', it has ''"),
        ({"license": "MIT"}, r"license: asked for ['MIT', 'BSD'], it has 'MIT'"),
    ],
)
def test_each_difference_of_texts_is_named(shown: dict[str, Any], difference: str) -> None:
    assert list(shown_differences(REQUEST, SHOWN.weights or "", replace(SHOWN, **shown))) == [difference]


@pytest.mark.parametrize(
    ("name", "literals"),
    [
        ("temperature", ["1.1"]),
        ("temperature", None),
        ("top_k", ["2"]),
        ("use_mmap", ["false"]),
        ("use_mmap", ["1"]),
        ("stop", ['"b"']),
        ("stop", ['"b"', '"<a>"']),
        ("stop", ['"b"', '"b"', '"<a>\\n"']),
    ],
)
def test_each_difference_of_parameters_is_named(name: str, literals: list[str] | None) -> None:
    parameters = {**SHOWN.parameters, name: literals}
    if literals is None:
        del parameters[name]
    found = list(shown_differences(REQUEST, SHOWN.weights or "", replace(SHOWN, parameters=parameters)))
    assert found == [f"{name}: asked for {REQUEST.parameters[name]!r}, it has {literals!r}"]


def test_parameters_that_were_not_asked_for_are_named() -> None:
    shown = replace(SHOWN, parameters={**SHOWN.parameters, "num_ctx": ["4096"], "min_p": ["0.1"]})
    assert list(shown_differences(REQUEST, SHOWN.weights or "", shown)) == [
        "min_p: not asked for, it has ['0.1']",
        "num_ctx: not asked for, it has ['4096']",
    ]


def test_stop_texts_of_the_servers_own_belong_to_a_template_of_its_own() -> None:
    without = replace(REQUEST, template=None, parameters={})
    shown = replace(SHOWN, template="chosen by the server", parameters={"stop": ['"<|im_end|>"']})
    assert list(shown_differences(without, SHOWN.weights or "", shown)) == []
    with_ours = list(
        shown_differences(replace(without, template="T"), SHOWN.weights or "", replace(shown, template="T"))
    )
    assert with_ours == ["stop: not asked for, it has ['\"<|im_end|>\"']"]


def test_a_server_that_shows_the_jinja_of_the_gguf_still_has_our_template() -> None:
    shown = replace(SHOWN, template="{%- for message in messages %}")
    assert list(shown_differences(REQUEST, SHOWN.weights or "", shown)) == []


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def played() -> Iterator[PlayedServer]:
    """A server that has what REQUEST asks for."""
    with playing() as server:
        shown = {
            "modelfile": f"FROM /b/sha256-{SHOWN.weights}\n",
            "system": SHOWN.system,
            "template": SHOWN.template,
            "license": SHOWN.license,
            "parameters": "\n".join(f"{name}  {text}" for name, texts in SHOWN.parameters.items() for text in texts),
        }
        server.answers |= {
            ("GET", "/api/tags"): [(200, {"models": [{"name": "m:q8_0", "digest": "d"}]})],
            ("POST", "/api/show"): [(200, shown)],
            ("HEAD", "/api/blobs"): [(200, None)],
        }
        yield server


def server_finds(
    played: PlayedServer, request: CreateRequest = REQUEST, expected: str | None = None
) -> tuple[list[str], str | None]:
    return server_differences(OllamaServer(played.address), request, SHOWN.weights or "", expected)


def test_a_server_that_has_everything(played: PlayedServer) -> None:
    assert server_finds(played) == ([], "d")
    assert server_finds(played, expected="d") == ([], "d")
    asked = {path.rpartition(":")[2] for method, path, _ in played.requests if method == "HEAD"}
    assert asked == {SHOWN.weights, *(digest_of(content) for _, content in small_blobs(REQUEST))}


def test_a_server_that_has_another_manifest_than_was_registered(played: PlayedServer) -> None:
    assert server_finds(played, expected="e") == (["manifest: e was registered, it now has d"], "d")


def test_a_server_that_does_not_list_the_model(played: PlayedServer) -> None:
    played.answers[("GET", "/api/tags")] = [(200, {"models": [{"name": "m:q4_k_m", "digest": "d"}]})]
    assert server_finds(played) == (["the server does not list it: it was deleted or renamed"], None)


def test_a_server_that_lists_the_model_and_cannot_show_it(played: PlayedServer) -> None:
    played.answers[("POST", "/api/show")] = [(404, {"error": "model not found"})]
    (difference,), digest = server_finds(played)
    assert difference.startswith("a blob of it is not there, or it was just deleted: ")
    assert digest == "d"


@pytest.mark.parametrize("kind", ["weights", "template", "system", "license", "params"])
def test_each_blob_that_a_server_lacks_is_named(played: PlayedServer, kind: str) -> None:
    blobs = {"weights": SHOWN.weights, **{kind: digest_of(content) for kind, content in small_blobs(REQUEST)}}
    played.answers = {("HEAD", f"/api/blobs/sha256:{blobs[kind]}"): [(404, None)], **played.answers}
    assert server_finds(played)[0] == [f"the blob of the {kind} (sha256 {blobs[kind]}) is not there"]


def test_parameters_of_the_servers_own_make_another_blob_of_them(played: PlayedServer) -> None:
    request = CreateRequest("m:q8_0", "m.gguf", parameters={"top_k": 20})
    params = digest_of(b'{"top_k":20}\n')
    played.answers = {("HEAD", f"/api/blobs/sha256:{params}"): [(404, None)], **played.answers}
    show = {"modelfile": f"FROM /b/sha256-{SHOWN.weights}\n", "parameters": 'top_k 20\nstop "<|im_end|>"'}
    played.answers[("POST", "/api/show")] = [(200, show)]
    assert server_finds(played, request)[0] == []
    played.answers[("POST", "/api/show")] = [(200, show | {"parameters": "top_k 20"})]
    assert server_finds(played, request)[0] == [f"the blob of the params (sha256 {params}) is not there"]


RECORD = {"size": 7000, "architecture": "qwen2", "parameters": 2048, "file_type": 7}


@pytest.mark.parametrize("version", ["0.17.4", "0.31.0", "0.33.0"])
def test_the_predicted_digest_is_that_of_the_versions_form(version: str) -> None:
    record = RECORD | {"sha256": "ab" * 32}
    expected = manifest_of(REQUEST, record, form_of_version(version), "/b/sha256-ab").digest
    assert predicted_digest(version, REQUEST, record, SHOWN) == expected
    elsewhere = predicted_digest(version, REQUEST, record, replace(SHOWN, weights_path="/other"))
    assert (elsewhere != expected) == (version == "0.17.4")


@pytest.fixture
def store(tmp_path: Path) -> OllamaStore:
    """A store that has what REQUEST asks for."""
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"weights" * 1000)
    store = OllamaStore(tmp_path / "store")
    manifest = manifest_of(REQUEST, RECORD | {"sha256": sha256_of(gguf)}, NEWEST)
    store.write(REQUEST.name, manifest, gguf, sha256_of(gguf))
    return store


WEIGHTS = digest_of(b"weights" * 1000)


def store_finds(store: OllamaStore, request: CreateRequest = REQUEST, weights: str = WEIGHTS, **more: Any) -> list[str]:
    return store_differences(store, request, weights, **more)


def test_a_store_that_has_everything(store: OllamaStore) -> None:
    registered = sha256_of(store.manifest_file(REQUEST.name))
    assert store_finds(store) == store_finds(store, expected_manifest=registered, deep=True) == []


def test_a_store_without_the_model(store: OllamaStore) -> None:
    (difference,) = store_finds(store, replace(REQUEST, name="m:q4_k_m"))
    assert difference.startswith("the store does not have it (")
    assert difference.endswith("library/m/q4_k_m): it was deleted or renamed")


def test_a_store_that_has_another_manifest_than_was_registered(store: OllamaStore) -> None:
    now = sha256_of(store.manifest_file(REQUEST.name))
    assert store_finds(store, expected_manifest="e") == [f"manifest: e was registered, it now has {now}"]


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"system": "s"}, ["system", "system"]),
        ({"template": None}, ["template"]),
        ({"license": ("MIT", "BSD", "ISC")}, ["license"]),
        ({"parameters": {"top_k": 1}}, ["params", "params"]),
    ],
)
def test_each_layer_of_a_store_that_differs_is_named(
    store: OllamaStore, change: dict[str, Any], kinds: list[str]
) -> None:
    found = store_finds(store, replace(REQUEST, **change))
    assert [line.partition(":")[0] for line in found] == kinds
    assert all("not asked for" in line or "the store does not name it" in line for line in found)


def test_other_weights_in_a_store_are_named(store: OllamaStore) -> None:
    assert store_finds(store, weights="cd" * 32) == [
        f"model: asked for sha256 {'cd' * 32}, the store does not name it",
        f"model: not asked for, it has sha256 {WEIGHTS}",
    ]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"layers": [{}], "config": {}}', b'{"layers": 5, "config": {}}'])
def test_a_damaged_manifest(store: OllamaStore, content: bytes) -> None:
    store.manifest_file(REQUEST.name).write_bytes(content)
    (difference,) = store_finds(store)
    assert difference.startswith("the manifest is damaged: ")


@pytest.mark.parametrize("kind", ["model", "template", "system", "license", "params", "json"])
@pytest.mark.parametrize("content", [None, b""])
def test_each_blob_that_a_store_lacks_or_has_cut_is_named(store: OllamaStore, kind: str, content: bytes | None) -> None:
    manifest = store.read(REQUEST.name)
    layer = next(
        layer
        for layer in (*manifest["layers"], manifest["config"])
        if layer["mediaType"].endswith(f".{kind}") or (kind == "json" and layer is manifest["config"])
    )
    store.blob_file(layer["digest"]).unlink()
    if content is not None:
        store.blob_file(layer["digest"]).write_bytes(content)
    (difference,) = store_finds(store)
    assert f"({layer['digest']}) is missing or has another size than {layer['size']}" in difference


def test_a_blob_with_other_bytes_is_seen_by_a_deep_look_alone(store: OllamaStore) -> None:
    blob = store.blob_file(WEIGHTS)
    blob.unlink()
    blob.write_bytes(b"Weights" + b"weights" * 999)
    assert store_finds(store) == []
    assert store_finds(store, deep=True) == [
        f"the blob of the model (sha256:{WEIGHTS}) has other bytes than its name says: it is damaged"
    ]


def test_a_store_that_may_not_be_read(store: OllamaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbids(*_: Any) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(OllamaStore, "has_blob", forbids)
    assert store_finds(store) == ["the store cannot be read: [Errno 13] Permission denied"]


def test_the_manifest_need_not_be_of_our_form(store: OllamaStore) -> None:
    """A server that copies or pulls a model writes the manifest anew; every layer is what counts."""
    path = store.manifest_file(REQUEST.name)
    path.write_bytes(json.dumps(json.loads(path.read_bytes()), indent=1).encode())
    assert store_finds(store, deep=True) == []
    assert go_json(json.loads(path.read_bytes()), keep_order=True) != path.read_bytes()


def test_a_damaged_blob_of_a_server_on_this_machine_is_seen(tmp_path: Path) -> None:
    """It is compared with its own name: which weights were asked for is another question."""
    blob = tmp_path / "sha256-x"
    blob.write_bytes(b"weights")
    shown = replace(SHOWN, weights=hashlib.sha256(b"weights").hexdigest(), weights_path=str(blob))
    assert blob_damage(shown) == []
    blob.write_bytes(b"wEights")
    assert "it is damaged" in blob_damage(shown)[0]
    assert blob_damage(replace(shown, weights_path=str(tmp_path / "elsewhere"))) == []
    assert blob_damage(replace(shown, weights_path=None)) == []
