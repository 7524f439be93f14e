"""The pages of the report: true to the records, one file each, and nothing in a record becomes markup."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docutils.core import publish_parts
from jinja2 import Environment
from merging import merge_all, plan_of
from sample_plan import sample_plan
from sample_quality import base_measurement, sample_quality

import write_overview
import write_page
from ollamake.answers_comparison import compare
from ollamake.build_jobs import costs, jobs_of
from ollamake.errors import OllamakeError
from ollamake.html_page import page, printable
from ollamake.markdown_page import markdown_page
from ollamake.merge_report import merge_report
from ollamake.overview import Build, method, summary
from ollamake.overview_cards import size
from ollamake.overview_page import overview_page
from ollamake.record_pages import prompts_page, registrations_page

HOSTILE = "</pre></style><script>alert('1')</script><img src=x onerror=\"alert(2)\">&lt;"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
VOID = {"meta", "img", "br", "hr"}
SHOWN_ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "ul", "li", "div", "dl", "dt", "dd", "b",
    "table", "caption", "thead", "tbody", "tr", "th", "td", "code", "pre", "span", "figure", "img",
}  # fmt: skip


class Read(HTMLParser):
    """What a reader of HTML that is not ours finds in a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def cells(self) -> list[str]:
        return [word.strip() for word in self.words if word.strip()]


def marker(quant: str, **request: Any) -> dict[str, Any]:
    return {
        "gguf": {
            "file": f"results/m/gguf/m.{quant}.gguf",
            "sha256": quant[-1] * 64,
            "size": {"Q8_0": 8500}.get(quant, 4500),
        },
        "manifest_digest": "d" * 64,
        "name": f"m:{quant.lower()}",
        "request": {
            "parameters": {"num_ctx": 8192, "stop": ["<|im_end|>"]},
            "system": "道路設計の専門家\n二行目",
            **request,
        },
        "target": "server",
        "host": "http://127.0.0.1:11434",
        "server_version": "0.17.4",
        "time": "2026-11-27T07:03:45+00:00",
    }


def gguf(kind: str, size_of_file: int, name: str | None = None) -> dict[str, Any]:
    return {
        "type": kind,
        "file": f"m.{name or kind}.gguf",
        "size": size_of_file,
        "sha256": kind[-1] * 64,
        "bits_per_weight": 8 * size_of_file / 8000,
    }


@pytest.fixture
def build(make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path) -> Build:
    """The records of a model that was really merged, and is said to be quantized and registered."""
    base = make_base()
    plan = plan_of(base, make_adapter(base))
    return Build(
        model="m",
        merge_plan=plan,
        merge_report=merge_report(plan, merge_all(plan, tmp_path / "merged")),
        plan=sample_plan(model="m"),
        inputs={"base": str(base)},
        ggufs=[gguf("F16", 16000, "unquantized"), gguf("Q4_K_M", 4500), gguf("Q8_0", 8500)],
        markers=[marker("Q4_K_M"), marker("Q8_0")],
        template={"origin": "says what the tokenizer's chat template says", "template": "{{ .Prompt }}<|im_end|>"},
        template_check={
            "name": "m:q4_k_m",
            "renderer": "Ollama 0.17.4",
            "evaluated": 8,
            "end_of_turn": "<|im_end|>",
            "warnings": [],
            "conversations": [
                {"name": "user turn", "status": "equal", "detail": ""},
                {"name": "tools", "status": "refused", "detail": "the chat template has no tools"},
            ],
        },
        pictures={"plan": SVG},
    )


def test_every_file_stands_there_with_its_hash(build: Build) -> None:
    text = Read(overview_page(build)).text
    inputs = build.merge_report["inputs"]
    assert len(inputs) >= 3
    for path, entry in inputs.items():
        assert path in text
        assert entry["sha256"] in text
    for record in build.ggufs:
        assert record["file"] in text
        assert record["sha256"] in text
    for one in build.markers:
        assert one["name"] in text
    assert "LoRA, rank 4, alpha 8" in text
    assert "Registered in Ollama" in text
    assert "Ollama 0.17.4 at http://127.0.0.1:11434" in text
    assert "2026-11-27 07:03 UTC" in text
    assert "道路設計の専門家\n二行目" in text


def test_the_summary_names_largest_first(build: Build) -> None:
    said = summary(build)
    assert said.startswith("m (qwen2, 32.76 billion parameters) is ")
    assert "It was quantized to Q8_0 and Q4_K_M and is registered as m:q8_0 and m:q4_k_m in Ollama 0.17.4 at" in said
    bare = replace(build, merge_plan=build.merge_plan | {"adapters": []})
    assert "as it is, without an adapter" in summary(bare)


def test_plan_and_registration_are_told_of_the_types_that_are_registered(build: Build) -> None:
    cells = Read(overview_page(build)).cells()
    fit = cells[cells.index("What fits") :]
    assert "Recommended: Q8_0" in fit
    heads = fit[fit.index("num_ctx registered") + 1 :]
    assert heads[0] == "Q8_0"
    assert heads[1] == "34.82"
    assert heads[heads.index("Q4_K_M") + 1] == "19.85"
    assert "8,192" in heads[heads.index("Q4_K_M") :][:12]


def test_nothing_in_a_record_becomes_markup(build: Build) -> None:
    """Names, prompts, paths, warnings and answers of servers come from files that anybody may have written."""
    hostile = replace(
        build,
        model=HOSTILE,
        inputs={"base": HOSTILE},
        merge_plan=build.merge_plan
        | {
            "adapters": [
                one | {"path": HOSTILE, "config": {"peft_type": HOSTILE, "target_modules": [HOSTILE]}}
                for one in build.merge_plan["adapters"]
            ]
        },
        merge_report=build.merge_report
        | {
            "warnings": [HOSTILE],
            "config_changes": {HOSTILE: HOSTILE},
            "inputs": {HOSTILE: {"size": 1, "sha256": HOSTILE}},
        },
        plan=build.plan | {"name": HOSTILE, "warnings": [HOSTILE], "source": HOSTILE},
        ggufs=[record | {"file": HOSTILE, "sha256": HOSTILE} for record in build.ggufs],
        markers=[
            marker("Q8_0", system=HOSTILE, license=[HOSTILE], parameters={HOSTILE: HOSTILE})
            | {"name": HOSTILE, "host": HOSTILE, "server_version": HOSTILE}
        ],
        template={"origin": HOSTILE, "template": HOSTILE},
        template_check=build.template_check
        | {
            "name": HOSTILE,
            "renderer": HOSTILE,
            "end_of_turn": HOSTILE,
            "warnings": [HOSTILE],
            "conversations": [{"name": HOSTILE, "status": HOSTILE, "detail": f"{HOSTILE}\n{HOSTILE}"}],
        },
        answers={
            "min_score": 0.9,
            "limit_key": HOSTILE,
            "on_fail": "stop",
            "scores": {HOSTILE: {"name": HOSTILE, "right": 1, "asked": 2, "score": 0.5, "passes": False}},
            "failures": [{"label": HOSTILE, "sentence": HOSTILE, "wrong": []}],
        },
        quality=sample_quality(model=HOSTILE, base=base_measurement()) | {"sentences": [HOSTILE]},
    )
    for write, least in ((overview_page, 25), (prompts_page, 8), (registrations_page, 6)):
        html = write(hostile)
        read = Read(html)
        assert {name for name, _ in read.elements} <= SHOWN_ELEMENTS
        attributes = {name for _, given in read.elements for name in given}
        assert attributes <= {"lang", "charset", "name", "content", "class", "scope", "src", "alt"}
        assert read.text.count(HOSTILE) >= least, write
        # Snakemake writes the page into a script of its report, which this would end.
        assert "</script" not in html.lower()
        assert "<!--" not in html


def test_characters_that_turn_or_break_the_text_are_shown_as_such() -> None:
    assert printable("a\0b\x1b[31m\u202ec\r\nd\te\u3000f") == "a\ufffdb\ufffd[31m\ufffdc\nd\te\u3000f"
    assert "\u202e" not in page("\u202e", [])


def test_a_page_is_complete_without_anything_else(build: Build) -> None:
    for html in (overview_page(build), prompts_page(build), registrations_page(build)):
        read = Read(html)
        assert html.startswith("<!doctype html>")
        assert ("html", {"lang": "en"}) in read.elements
        sources = [given["src"] or "" for _, given in read.elements if "src" in given]
        assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
        assert not any({"href", "srcset", "style"} & given.keys() for _, given in read.elements)
        (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
        assert "url(" not in style
        assert "@import" not in style
    (picture,) = [given for name, given in Read(overview_page(build)).elements if name == "img"]
    assert base64.b64decode((picture["src"] or "").partition(",")[2]) == SVG
    assert picture["alt"]


def test_headings_and_tables_are_those_of_an_accessible_page(build: Build) -> None:
    for html in (overview_page(build), prompts_page(build), registrations_page(build)):
        names = [name for name, _ in Read(html).elements]
        levels = [int(name[1]) for name in names if re.fullmatch(r"h\d", name)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        heads = [given.get("scope") for name, given in Read(html).elements if name == "th"]
        assert set(heads) == {"col", "row"}
        assert names.count("caption") == names.count("table") > 0


def test_quality_is_told_where_it_was_measured(build: Build) -> None:
    assert "Not measured: no text was given" in Read(overview_page(build)).text
    cells = Read(overview_page(build)).cells()
    assert cells[cells.index("Recommended by the plan") + 1] == "Q8_0"
    limits = {"max_kld_mean": 0.02}
    quality = sample_quality(("Q8_0", "Q6_K", "Q4_K_M", "Q2_K"), limits, compare=["Q2_K"], base=base_measurement())
    text = Read(overview_page(replace(build, quality=quality))).text
    assert "0.03127 ± 0.00024" in text
    assert "beyond max_kld_mean" in text
    assert "Q2_K (compared only)" in text
    for sentence in quality["sentences"]:
        assert sentence in text
    cells = Read(overview_page(replace(build, quality=quality))).cells()
    assert cells[cells.index("Recommended") + 1] == quality["recommendation"]["type"]
    assert cells[cells.index("Recommended") + 2].endswith("; the plan alone: Q8_0")
    warned = [about for about, _ in replace(build, quality=quality).warnings]
    assert "quality of Q4_K_M" in warned
    assert "quality of Q2_K" not in warned


def answers_of(min_score: float, key: str, on_fail: str) -> dict[str, Any]:
    """Return an answers.json: of 10 questions the base answers none, Q8_0 nine and Q4_K_M seven."""
    right = {"base": 0, "Q8_0": 9, "Q4_K_M": 7}
    asked = {
        label: {"name": f"m:{label.lower()}", "right": count, "asked": 10, "score": count / 10,
                "answers": [{"question": "q", "expect": ["x"], "answer": "y", "right": number < count}
                            for number in range(10)]}
        for label, count in right.items()
    }  # fmt: skip
    return compare("m", asked, ["Q8_0", "Q4_K_M"], min_score, key, on_fail)


def test_answers_are_told_where_they_were_asked(build: Build) -> None:
    assert "Answers" not in Read(overview_page(build)).cells()
    answered = replace(build, answers=answers_of(0.6, "models.m.answers.min_score", "stop"))
    html = overview_page(answered)
    cells = Read(html).cells()
    assert cells[cells.index("Right answers") + 1] == "70%"
    assert cells[cells.index("Right answers") + 2].endswith("answered rightly by Q4_K_M; by the base 0%")
    assert 'class="card good"><dt>Right answers' in html
    shown = cells[cells.index("Answers") :]
    assert shown[1] == "Your own questions at temperature 0; models.m.answers.min_score asks for 60 % right answers."
    assert shown[shown.index("m:q4_k_m") : shown.index("m:q4_k_m") + 5] == ["m:q4_k_m", "7", "10", "70.0%", "enough"]
    # Nothing is demanded of the base.
    assert shown[shown.index("m:base") : shown.index("m:base") + 5] == ["m:base", "0", "10", "0.0%", "Q8_0"]
    assert answered.warnings == build.warnings


def test_too_few_right_answers_are_told_with_the_key_that_asks_for_more(build: Build) -> None:
    answered = replace(build, answers=answers_of(0.8, "models.m.quality.min_answers", "warn"))
    html = overview_page(answered)
    cells = Read(html).cells()
    assert 'class="card bad"><dt>Right answers' in html
    demanded = (
        "models.m.quality.min_answers asks for 80 % right answers; fewer are a warning (models.m.quality.on_fail)"
    )
    assert cells[cells.index("Right answers") + 2].endswith(f"; by the base 0%; {demanded}")
    shown = cells[cells.index("Answers") :]
    assert shown[1].endswith(f"; {demanded}.")
    verdicts = [shown[shown.index(f"m:{kind}") + 4] for kind in ("q8_0", "q4_k_m")]
    assert verdicts == ["enough", "too few"]
    said = "Q4_K_M: 7 of 10 questions answered rightly (70 %); models.m.quality.min_answers asks for 80 %: 1 too few"
    assert [one for one in answered.warnings if one not in build.warnings] == [("answers of Q4_K_M", said)]
    assert said in Read(html).text


def test_prompts_that_differ_are_not_called_good(build: Build) -> None:
    check = build.template_check
    differing = check | {
        "conversations": [*check["conversations"], {"name": "x", "status": "differs", "detail": "a\nb"}]
    }
    assert 'class="card good"><dt>Prompted' in overview_page(build)
    assert "1 of 1" in Read(overview_page(build)).cells()
    wrong = overview_page(replace(build, template_check=differing))
    assert 'class="card bad"><dt>Prompted' in wrong
    assert "1 of 2" in Read(wrong).cells()
    unchecked = overview_page(
        replace(build, template_check=check | {"conversations": [], "warnings": ["nothing serves it"]})
    )
    assert "not checked" in Read(unchecked).cells()


HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def benchmark(file: Path, seconds: float, rss: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{HEAD}{seconds}\t0:00:00\t{rss}\t1\t1\t1\t0\t0\t99\t1\n", encoding="utf-8")


def test_costs_are_those_of_the_models_own_jobs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    benchmark(tmp_path / "merge_shard/m/00001-of-00002.tsv", 10, "500")
    benchmark(tmp_path / "merge_shard/m/00002-of-00002.tsv", 30, "700.5")
    benchmark(tmp_path / "merge_shard/m.b/00001-of-00001.tsv", 999, "999")
    benchmark(tmp_path / "convert_to_gguf/m.tsv", 4, "-")
    benchmark(tmp_path / "convert_to_gguf/m.b.tsv", 999, "999")
    benchmark(tmp_path / "quantize/m.Q4_K_M.tsv", 0.4, "3")
    benchmark(tmp_path / "quantize/mm.Q4_K_M.tsv", 999, "999")
    benchmark(tmp_path / "ask_questions/m.Q8_0.m.tsv", 7, "60")
    benchmark(tmp_path / "evaluate_quality/m.base.tsv", 3, "40")
    (tmp_path / "quantize/m.Q8_0.tsv").write_text(HEAD, encoding="utf-8")
    found = costs(jobs_of("m", tmp_path))
    assert [(one.rule, one.jobs, one.seconds, one.longest.about, one.peak_mib) for one in found] == [
        ("merge_shard", 2, 40, "00002-of-00002", 700.5),
        ("convert_to_gguf", 1, 4, "", None),
        ("quantize", 1, 0.4, "Q4_K_M", None),  # too short to have been seen
        ("evaluate_quality", 1, 3, "base", 40),
        ("ask_questions", 1, 7, "Q8_0.m", 60),
    ]
    assert "m.Q8_0.tsv is no benchmark" in caplog.text


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LORA", "r": 8, "lora_alpha": 16}, "LoRA, rank 8, alpha 16"),
        ({"peft_type": "LORA", "r": 8, "use_dora": True, "use_rslora": True}, "LoRA, rank 8, rsLoRA, DoRA"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)  # fmt: skip
def test_methods(config: dict[str, Any], words: str) -> None:
    assert method(config) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (2_398_688, "2.4 MB"),
        (19_851_335_840, "19.9 GB"),
        (1_234_000_000_000, "1,234 GB"),
    ],
)
def test_sizes(number: int, words: str) -> None:
    assert size(number) == words


MARKDOWN = """# Plan of m

<script>alert(1)</script> and <b onclick="x()">bold</b>

[click](javascript:alert(1))

![Memory](plan%20a.svg)

| type | GB |
| --- | ---: |
| **Q8_0** | 3 |
"""


def test_markdown_is_shown_with_its_pictures_and_without_its_html(tmp_path: Path) -> None:
    (tmp_path / "plan a.svg").write_bytes(SVG)
    (tmp_path / "plan.md").write_text(MARKDOWN, encoding="utf-8")
    write_page.main(
        ["--title", "m: <plan>", "--text", str(tmp_path / "plan.md"), "--output", str(tmp_path / "plan.html")]
    )
    html = (tmp_path / "plan.html").read_text(encoding="utf-8")
    read = Read(html)
    names = {name for name, _ in read.elements}
    assert names <= SHOWN_ELEMENTS | {"strong"}
    assert "<script>alert(1)</script>" in read.text
    assert '<b onclick="x()">bold</b>' in read.text
    assert "m: <plan>" in read.words
    (picture,) = [given for name, given in read.elements if name == "img"]
    assert base64.b64decode((picture["src"] or "").partition(",")[2]) == SVG
    assert [given.get("class") for name, given in read.elements if name == "td"] == [None, "number"]
    assert [given["scope"] for name, given in read.elements if name == "th"] == ["col", "col"]


@pytest.mark.parametrize(
    ("text", "headings"), [("# Plan\n\ntext", ["Plan"]), ("| a |\n| - |\n| b |\n", ["m: answers"])]
)
def test_every_page_has_one_heading(tmp_path: Path, text: str, headings: list[str]) -> None:
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    html = markdown_page("m: answers", tmp_path / "a.md")
    assert re.findall("<h1>(.*?)</h1>", html) == headings


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.md").write_text("![Memory](plan.svg)", encoding="utf-8")
    with pytest.raises(OllamakeError, match=r"the picture plan\.svg is to be embedded, but there is no such file"):
        markdown_page("m", tmp_path / "plan.md")


CAPTIONS = sorted((Path(__file__).parents[2] / "rules/report").glob("*.rst"))


@pytest.mark.parametrize("file", CAPTIONS, ids=lambda file: file.stem)
@pytest.mark.parametrize("document", ["plan", "quality", "answers"])
def test_captions_take_every_name_for_a_name(file: Path, document: str) -> None:
    """As Snakemake renders them; a name that ends with an underscore is a link in reStructuredText."""
    wildcards = {"model": "a_b-1._", "quant": "Q4_K_M", "document": document}
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(file.read_text(encoding="utf-8"))
    text = template.render(snakemake=SimpleNamespace(wildcards=SimpleNamespace(**wildcards)), categories={})
    html = publish_parts(text, writer="html", settings_overrides={"report_level": 2, "halt_level": 2})["html_body"]
    assert len(Read(html).text) > 100
    assert "snakemake.wildcards.model" not in file.read_text(encoding="utf-8") or wildcards["model"] in Read(html).text


def test_the_script_writes_three_pages_and_takes_what_there_is(build: Build, tmp_path: Path) -> None:
    files: dict[str, list[str]] = {}
    records = {name: [getattr(build, name)] for name in (*write_overview.REQUIRED, "merge_report")}
    records |= {"ggufs": list(build.ggufs), "markers": list(build.markers), "quality": [sample_quality()]}
    for name, contents in records.items():
        files[name] = [str(tmp_path / f"{name}{number}.json") for number in range(len(contents))]
        for file, content in zip(files[name], contents, strict=True):
            Path(file).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "plan.svg").write_bytes(SVG)
    benchmark(tmp_path / "benchmarks/convert_to_gguf/m.tsv", 65, "2048")
    arguments = ["--model", "m", "--benchmarks", str(tmp_path / "benchmarks"), "--answers", "--imatrix"]
    arguments += ["--pictures", str(tmp_path / "plan.svg")]
    for name, given in files.items():
        arguments += [f"--{name.replace('_', '-')}", *given]
    pages = {name: tmp_path / f"{name}.html" for name in ("overview", "prompts", "registrations")}
    for name, file in pages.items():
        arguments += [f"--{name}", str(file)]
    write_overview.main(arguments)
    text = Read(pages["overview"].read_text(encoding="utf-8")).text
    assert "convert_to_gguf" in text
    assert "65 s" in text
    assert "2.00" in text
    assert "Quality, measured" in text
    assert "data:image/svg+xml" in pages["overview"].read_text(encoding="utf-8")
    assert Read(pages["prompts"].read_text(encoding="utf-8")).text.count("the chat template has no tools") == 1
    assert "m:q8_0" in Read(pages["registrations"].read_text(encoding="utf-8")).text


def test_checkpoints_stand_beside_the_ggufs(build: Build) -> None:
    quality = sample_quality()
    row = quality["rows"][0] | {"type": "nf4", "compared_only": True, "kld_mean": 0.0104}
    row |= {"verdict": {"passes": None, "failures": [], "close": []}}
    cells = Read(overview_page(replace(build, quality=quality | {"checkpoints": [row]}))).cells()
    assert cells[cells.index("nf4 (bitsandbytes)") + 1].startswith("0.0104")


def adapter_record() -> dict[str, Any]:
    read = {"path": "runs/road/adapter_model.safetensors", "size": 12_345, "sha256": "7" * 64}
    return {
        "file": "m.adapter.gguf", "type": "adapter", "size": 24_690, "sha256": "8" * 64, "ranks": [4, 8], "weights": 28,
        "parameters": 6000, "update_norm": 1.25, "adapters": [read],
    }  # fmt: skip


def test_a_model_that_is_served_as_an_adapter(build: Build) -> None:
    """The base's merge is not this model's: what is told is the adapter that stands beside it."""
    plan = build.merge_plan | {
        "adapters": [one | {"path": "runs/road/adapter_model.safetensors"} for one in build.merge_plan["adapters"]]
    }
    served = replace(
        build, merge_plan=plan, adapter=adapter_record(), inputs=build.inputs | {"warnings": ["unfinished"]}
    )
    text = Read(overview_page(served)).text
    assert "(LoRA, rank 4, alpha 8) beside it, which is added while it runs. It is in Q8_0 and Q4_K_M" in text
    assert "the first is the base before quantization" in text
    assert "llama.cpp adds the update of 28 weights (rank 4, 8) while it runs" in text
    for shown in ("7" * 64, "8" * 64, "m.adapter.gguf", "measured with the base", "unfinished"):
        assert shown in text
    assert "merged into it" not in text
    assert "Merge" not in Read(overview_page(served)).cells()


def test_a_model_beside_what_ollama_had(build: Build) -> None:
    """There is no merge at all, and nothing before quantization."""
    taken = gguf("Q8_0", 8500) | {"source": {"ollama": "qwen2.5:7b", "where": "http://gpu:11434", "norms": 57}}
    served = replace(build, merge_report=None, adapter=adapter_record(), ggufs=[taken, taken], markers=[marker("Q8_0")])
    text = Read(overview_page(served)).text
    assert "The weights are those of qwen2.5:7b, which Ollama had already (http://gpu:11434): 57 norms" in text
    assert "before quantization" not in text
    assert text.count("m.Q8_0.gguf") == 1
