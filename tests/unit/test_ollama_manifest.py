"""Manifest, config and parameters have the bytes that a server of each version writes."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamake.create_request import CreateRequest
from ollamake.ollama_manifest import (
    NEWEST,
    Manifest,
    ManifestForm,
    file_type_name,
    form_of_version,
    go_json,
    human_number,
    manifest_of,
    small_blobs,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)

WEIGHTS = "ab" * 32
RECORD = {"sha256": WEIGHTS, "size": 1234, "architecture": "qwen2", "parameters": 494_032_768, "file_type": 19}
REQUEST = CreateRequest(
    "m:q8_0",
    "m.gguf",
    system="道路\r\n",
    template="<|im_start|>{{ .Prompt }}",
    license=("MIT", "Apache-2.0"),
    parameters={"temperature": 1.0, "top_k": 20, "stop": ["<|im_end|>", "a&b"]},
    origins={"stop": "the configuration"},
)


def digest_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def test_json_as_go_writes_it() -> None:
    """The expected bytes are the output of Go's json.NewEncoder for the same value."""
    value = {
        "s": '<>&\u2028道\b\f\n\t"\\\x01😀',
        "a": [1.0, 0.1, 1e-5, 1.5e-6, 1e-7, 2.5e-10, 1e20, 1e21, 1.5e22, 123456.789],
    }
    expected = (
        '{"a":[1,0.1,0.00001,0.0000015,1e-7,2.5e-10,100000000000000000000,1e+21,1.5e+22,123456.789],'
        '"s":"\\u003c\\u003e\\u0026\\u2028道\\b\\f\\n\\t\\"\\\\\\u0001😀"}\n'
    )
    assert go_json(value) == expected.encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0, "-0"),
        (0.0, "0"),
        (-1.0, "-1"),
        (1e-6, "0.000001"),
        (9.5e-7, "9.5e-7"),
        (-1e-7, "-1e-7"),
        (1e-10, "1e-10"),
        (1.2345678901234567e20, "123456789012345670000"),
        (1e100, "1e+100"),
        (True, "true"),
        (None, "null"),
        (7, "7"),
        ("\x7f\u2029", '"\x7f\\u2029"'),
        ((), "[]"),
        ({}, "{}"),
    ],
)
def test_single_values(value: Any, text: str) -> None:
    assert go_json(value) == f"{text}\n".encode()


def test_keys_are_sorted_where_go_has_a_map_and_kept_where_it_has_a_struct() -> None:
    assert go_json({"b": {"d": 1, "c": 2}, "a": 3}) == b'{"a":3,"b":{"c":2,"d":1}}\n'
    assert go_json({"b": {"d": 1, "c": 2}, "a": 3}, keep_order=True) == b'{"b":{"d":1,"c":2},"a":3}\n'


@given(JSON)
def test_what_is_written_reads_back_as_the_same(value: Any) -> None:
    written = go_json(value)
    # As Go reads it, and JavaScript: every number is a float.
    assert json.loads(written, parse_int=float) == value
    assert not set(b"<>&") & set(written)
    assert written.count(b"\n") == 1


@pytest.mark.parametrize(
    ("version", "form"),
    [
        ("0.17.4", ManifestForm(source_path=True, root_filesystem=True, all_file_types=False)),
        ("0.29.9", ManifestForm(source_path=True, root_filesystem=True, all_file_types=False)),
        ("0.30.0", ManifestForm(source_path=False, root_filesystem=True, all_file_types=True)),
        ("0.32.6-rc1", ManifestForm(source_path=False, root_filesystem=True, all_file_types=True)),
        ("0.32.7", NEWEST),
        ("0.33.0", NEWEST),
        ("0.100.2", NEWEST),
        ("1.0.0", NEWEST),
        ("0.0.0", NEWEST),
        ("", NEWEST),
        ("devel", NEWEST),
        (None, NEWEST),
    ],
)
def test_forms_by_version(version: str | None, form: ManifestForm) -> None:
    assert form_of_version(version) == form


PARAMS = '{"stop":["\\u003c|im_end|\\u003e","a\\u0026b"],"temperature":1,"top_k":20}\n'
TEXTS = ["<|im_start|>{{ .Prompt }}", "道路\r\n", "MIT", "Apache-2.0", PARAMS]
KINDS = ["template", "system", "license", "license", "params"]


def golden(form: str) -> tuple[str, str]:
    """Return config and manifest, spelled out, as a server of that form writes them."""
    digests = [WEIGHTS, *map(digest_of, TEXTS)]
    config = (
        '{"model_format":"gguf","model_family":"qwen2","model_families":["qwen2"],"model_type":"494.03M",'
        f'"file_type":"{"unknown" if form == "0.17.4" else "IQ2_XXS"}","architecture":"amd64","os":"linux"'
    )
    if form != "0.33.0":
        config += ',"rootfs":{"type":"layers","diff_ids":[' + ",".join(f'"sha256:{one}"' for one in digests) + "]}"
    config += "}\n"
    source = ',"from":"/models/blobs/sha256-x"' if form == "0.17.4" else ""
    layers = [
        f'{{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{WEIGHTS}","size":1234{source}}}',
        *(
            f'{{"mediaType":"application/vnd.ollama.image.{kind}","digest":"sha256:{digest_of(text)}",'
            f'"size":{len(text.encode())}}}'
            for kind, text in zip(KINDS, TEXTS, strict=True)
        ),
    ]
    manifest = (
        '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
        '"config":{"mediaType":"application/vnd.docker.container.image.v1+json",'
        f'"digest":"sha256:{digest_of(config)}","size":{len(config)}}},"layers":[{",".join(layers)}]}}\n'
    )
    return config, manifest


@pytest.mark.parametrize("version", ["0.17.4", "0.31.0", "0.33.0"])
def test_every_byte_of_manifest_and_blobs(version: str) -> None:
    config, expected = golden(version)
    manifest = manifest_of(REQUEST, RECORD, form_of_version(version), "/models/blobs/sha256-x")
    assert manifest.content == expected.encode()
    assert manifest.digest == digest_of(expected)
    assert manifest.blobs == {digest_of(text): text.encode() for text in (*TEXTS, config)}


def test_a_source_path_that_is_not_known_is_not_said() -> None:
    assert b'"from"' not in manifest_of(REQUEST, RECORD, form_of_version("0.17.4")).content


def test_nothing_but_weights() -> None:
    manifest = manifest_of(CreateRequest("m", "m.gguf", system="", parameters={}), RECORD, NEWEST)
    assert [layer["digest"] for layer in json.loads(manifest.content)["layers"]] == [f"sha256:{WEIGHTS}"]
    assert len(manifest.blobs) == 1
    assert small_blobs(CreateRequest("m", "m.gguf")) == []


def test_the_same_text_twice_is_two_layers_of_one_blob() -> None:
    manifest = manifest_of(CreateRequest("m", "m.gguf", system="S", license=("S", "S")), RECORD, NEWEST)
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in json.loads(manifest.content)["layers"]]
    assert kinds == ["model", "system", "license", "license"]
    assert len(manifest.blobs) == 2


def test_where_a_parameter_comes_from_is_no_part_of_the_model() -> None:
    one, two = (
        manifest_of(CreateRequest("m", "m.gguf", parameters={"top_k": 1}, origins=origins), RECORD, NEWEST)
        for origins in ({}, {"top_k": "the configuration"})
    )
    assert one == two == Manifest(one.content, one.blobs)


def test_numbers_of_parameters_are_written_as_a_server_has_read_them() -> None:
    """Go decodes each into a float64."""
    request = CreateRequest("m", "m.gguf", parameters={"seed": 2**60, "top_k": 20, "use_mmap": True})
    assert small_blobs(request) == [("params", b'{"seed":1152921504606847000,"top_k":20,"use_mmap":true}\n')]


@pytest.mark.parametrize(
    ("number", "name", "old_name"),
    [
        (None, "unknown", "unknown"),
        (0, "unknown", "unknown"),
        (1, "F16", "F16"),
        (7, "Q8_0", "Q8_0"),
        (15, "Q4_K_M", "Q4_K_M"),
        (30, "IQ4_XS", "unknown"),
        (36, "TQ1_0", "unknown"),
        (32, "BF16", "BF16"),
        (4, "unknown", "unknown"),
        (999, "unknown", "unknown"),
    ],
)
def test_file_types(number: int | None, name: str, old_name: str) -> None:
    assert file_type_name(number) == name
    assert file_type_name(number, form_of_version("0.17.4")) == old_name


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (1000, "1K"),
        (1499, "1K"),
        (90_000, "90K"),
        (494_032_768, "494.03M"),
        (5 * 10**6, "5M"),
        (999_999_999, "1000.00M"),
        (7_615_616_512, "7.6B"),
        (3 * 10**9, "3B"),
    ],
)
def test_human_number(count: int, text: str) -> None:
    assert human_number(count) == text
