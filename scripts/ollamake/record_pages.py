"""Two pages of the report that show records in full: how a model is prompted, and as what it is registered."""

from __future__ import annotations

import json

from ollamake.html_page import code, element, page, sha256, table
from ollamake.overview import Build, moment, place

_STATUS = {
    "equal": "equal, text and tokens",
    "refused": "refused by both",
    "deviates": "differs in a known way",
    "differs": "differs",
}


def prompts_page(build: Build) -> str:
    """Return the page of a template check: every test conversation with what came out, and the TEMPLATE."""
    check, template = build.template_check, build.template
    rows = [
        (
            one["name"],
            element(
                "span",
                _STATUS.get(one["status"], one["status"]),
                {"equal": "good", "differs": "bad"}.get(one["status"], ""),
            ),
            element("pre", one["detail"]) if "\n" in one["detail"] else one["detail"],
        )
        for one in check["conversations"]
    ]
    end = check["end_of_turn"]
    parts = [
        element("h1", f"How {build.model} is prompted"),
        element(
            "p",
            f"{check['name']}: each conversation as {check['renderer'] or 'nothing here'} renders it, against the tokenizer's"
            " chat template. A model that is prompted otherwise than in training rambles.",
            "lead",
        ),
        element("p", f"The token that ends an answer: {end}." if end else "Which token ends an answer is not known."),
        table("Test conversations", ("conversation", "result", "remark"), rows),
    ]
    if template.get("template"):
        parts += [
            element("h2", "TEMPLATE"),
            element("p", str(template.get("origin") or "")),
            element("pre", template["template"]),
        ]
    return page(f"{build.model}: prompts", parts)


def registrations_page(build: Build) -> str:
    """Return the page of the registration markers: name, place, digests, parameters, system prompt and license."""
    parts = [
        element("h1", f"{build.model} in Ollama"),
        element(
            "p",
            "What was asked of Ollama and read back from it afterwards. A model that somebody deletes, renames or replaces"
            " no longer has this digest; snakemake verify compares all of it anew.",
            "lead",
        ),
    ]
    for marker in build.registrations:
        request = marker["request"]
        rows = [
            ("where", place(marker)),
            ("when", moment(marker["time"])),
            ("digest of the manifest", sha256(marker["manifest_digest"])),
            ("sha256 of the weights", sha256(marker["gguf"]["sha256"])),
            ("file", code(marker["gguf"]["file"])),
        ]
        for name, value in sorted(request.get("parameters", {}).items()):
            rows.append((name, code(json.dumps(value, ensure_ascii=False))))
        parts += [
            element("h2", marker["name"]),
            table("What the registration marker says", ("property", "value"), rows),
        ]
        for key, title in (("system", "System prompt"), ("license", "License")):
            text = request.get(key)
            if text:
                parts += [
                    element("h3", title),
                    element("pre", "\n".join(text) if isinstance(text, list) else text, "prose"),
                ]
    return page(f"{build.model}: registrations", parts)
