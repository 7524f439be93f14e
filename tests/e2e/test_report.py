"""Snakemake's report of the demo: one file that a real browser opens without a network, and in which everything can be seen."""

from __future__ import annotations

import base64
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, Locator
from report_in_browser import ReportPage, opened, running_chromium
from snakemake_runs import LLAMA_CPP, REPOSITORY, run_snakemake

from ollamake.demo_text import read_examples

CATEGORIES = ["1 Overview", "2 Plan", "3 Merge", "4 Quality", "5 Answers", "6 Template check", "7 Registration"]
MODEL = "rag-finetuned"
SYSTEM = "道路設計の専門家として回答します。"
LICENSE = "<script>document.title = 'broken'</script></script><img src=http://example.org/x onerror=alert(1)>"
SCREENSHOTS = Path(os.environ.get("REPORT_SCREENSHOTS", REPOSITORY / "report-screenshots"))
LEAVES_THE_FILE = re.compile(r"""(?:src|href|action)=["']?https?:|url\(["']?https?:|@import""")


@dataclass
class Reports:
    """A folder with the demo built in it, and what --report made of it."""

    folder: Path
    html: Path
    zip: Path
    said: str


def configuration(work: Path) -> dict[str, Any]:
    """Return the demo with all that a report can show: measured on a text of its own, asked its own questions."""
    examples = read_examples(REPOSITORY / "config/demo/road_design.jsonl")
    # Few questions: what is asked here is how answers are shown.
    asked = [{"question": one.question, "expect": one.expect} for one in examples[:5]]
    (work / "questions.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in asked), encoding="utf-8")
    (work / "evaluation.txt").write_text(
        "".join(f"{one.question}\n{one.answer}\n\n" for one in examples), encoding="utf-8"
    )
    model = {
        "base": "trained/base",
        "adapter": "trained/adapter",
        "quantizations": ["Q4_K_M", "Q8_0"],
        "ollama": {"system": SYSTEM, "parameters": {"temperature": 0.1}, "license": ["MIT", LICENSE]},
        "answers": {"questions": "questions.jsonl", "min_score": 0.6},
        "quality": {"text": ["evaluation.txt"], "context": 128, "speed": False},
    }
    return {
        "models": {MODEL: model},
        "ollama": {"target": "store", "store": "store-of-report"},
        "tools": {"llama_cpp": str(LLAMA_CPP)},
    }


@pytest.fixture(scope="module")
def reports(work: Path, ollama_home: Path, llama_cpp: Callable[[str], Path]) -> Reports:
    llama_cpp("llama-perplexity")
    (work / "report.yaml").write_text(yaml.safe_dump(configuration(work), allow_unicode=True), encoding="utf-8")
    done = run_snakemake("--cores", "2", "all", "--configfile", "report.yaml", folder=work)
    assert done.returncode == 0, done.stdout
    said = ""
    for name in ("report.html", "report.zip"):
        done = run_snakemake("--report", name, "--configfile", "report.yaml", folder=work)
        assert done.returncode == 0, done.stdout
        said += done.stdout
    return Reports(work, work / "report.html", work / "report.zip", said)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture(scope="module", params=[1400, 800])
def report(request: pytest.FixtureRequest, reports: Reports, browser: Browser) -> Iterator[ReportPage]:
    with opened(browser, reports.html, request.param) as report:
        yield report


def screenshot(report: ReportPage, name: str) -> None:
    """Keep what is seen, for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    width = (report.page.viewport_size or {})["width"]
    report.page.screenshot(path=SCREENSHOTS / f"{name}-{width}.png")


def result(reports: Reports, name: str) -> Any:
    return json.loads((reports.folder / f"results/{MODEL}" / name).read_text(encoding="utf-8"))


def is_seen(element: Locator, report: ReportPage) -> bool:
    """Return whether an element has an extent, and is not cut off at a side."""
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    window = report.page.viewport_size or {}
    return (
        box is not None
        and box["width"] > 50
        and box["height"] > 50
        and 0 <= box["x"] < window["width"]
        and box["x"] + box["width"] <= window["width"] + 1
    )


def test_the_report_is_made_without_complaint(reports: Reports) -> None:
    assert "ERROR" not in reports.said
    assert "Missing metadata" not in reports.said
    assert reports.said.count("Report created.") == 2
    html = reports.html.read_text(encoding="utf-8")
    assert str(reports.folder) not in html
    # Snakemake's scripts name addresses in comments and licenses; nothing of ours may name one to be fetched.
    for page in (reports.folder / f"results/{MODEL}").rglob("*.html"):
        assert LEAVES_THE_FILE.search(page.read_text(encoding="utf-8").replace(escaped(LICENSE), "")) is None, page


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")


def test_the_first_page_says_what_was_built(report: ReportPage, reports: Reports) -> None:
    overview = report.content.locator("main.ollamake")
    assert overview.count() == 1
    heading = overview.locator("h1")
    assert heading.inner_text() == MODEL
    assert heading.is_visible()
    box = heading.bounding_box()
    assert box is not None
    assert box["y"] < 300, "the overview is seen without scrolling"
    text = overview.inner_text()
    for entry in result(reports, "merge_report.json")["inputs"].values():
        assert entry["sha256"] in text
    for kind in ("unquantized", "Q8_0", "Q4_K_M"):
        record = result(reports, f"gguf/{MODEL}.{kind}.json")
        assert record["sha256"] in text
        assert record["file"] in text
    for kind in ("Q8_0", "Q4_K_M"):
        marker = result(reports, f"ollama/{kind}/registered.json")
        assert marker["name"] in text
        assert marker["manifest_digest"] in text
    for sentence in result(reports, "quality.json")["sentences"]:
        assert sentence in text
    assert SYSTEM in text
    assert "merge_shard" in text
    assert "convert_to_gguf" in text
    for picture in overview.locator("img").all():
        assert is_seen(picture, report)
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    assert overview.locator("img").count() == 3
    heading.scroll_into_view_if_needed()
    screenshot(report, "first-page")
    width = report.content.evaluate("element => [element.scrollWidth, element.clientWidth]")
    assert width[0] <= width[1] + 1, "nothing is cut off at the right"


def test_japanese_is_drawn_with_a_font_that_has_it(report: ReportPage) -> None:
    characters = "".join(sorted(set(SYSTEM)))
    drawn = report.glyphs(characters, "main.ollamake")
    assert len(set(drawn)) == len(characters), (
        "Japanese is shown as boxes: no font on this machine has it (Debian: apt-get install fonts-ipafont-gothic)"
    )


def test_everything_can_be_opened_and_seen(report: ReportPage, reports: Reports) -> None:
    report.home()
    assert report.categories() == CATEGORIES
    shown: list[str] = []
    for category in CATEGORIES:
        subcategories = report.open_category(category) or [""]
        for subcategory in subcategories:
            if subcategory:
                report.open_category(category)
                report.menu.get_by_text(subcategory, exact=True).click()
            assert report.rows().count() > 0, category
            for number in range(report.rows().count()):
                row = report.rows().nth(number)
                name = f"{category} {subcategory} {row.inner_text()}"
                shown.append(open_result(report, reports, row, name))
        screenshot(report, category.replace(" ", "-").lower())
    assert sorted(set(shown)) == ["html", "json", "picture"]
    assert report.errors == []
    assert report.requests == []


def open_result(report: ReportPage, reports: Reports, row: Locator, name: str) -> str:
    """Open one result, look at it, and read its caption; return what it is."""
    link = row.locator("a").first
    address = link.get_attribute("href") or ""
    if address.startswith("data:"):
        kind, content = "json", base64.b64decode(address.partition("base64,")[2])
        assert link.get_attribute("download"), name
        files = list((reports.folder / "results").rglob(str(link.get_attribute("download"))))
        assert content in [file.read_bytes() for file in files], name
    else:
        link.click()
        picture = report.content.locator("> div > img")
        report.content.locator("> div > img, > iframe").first.wait_for()
        if picture.count():
            kind = "picture"
            picture.evaluate("image => image.decode()")
            assert picture.evaluate("image => image.naturalWidth") > 0, name
            assert is_seen(picture, report), name
        else:
            kind, frame = "html", report.frame()
            assert frame.locator("main.ollamake h1").is_visible(), name
            assert frame.locator("html").get_attribute("lang") == "en"
            assert frame.title() != "broken"
            for image in frame.locator("img").all():
                assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0, name
            size = frame.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert size[0] <= size[1] + 1, f"{name}: nothing is cut off at the right"
    return kind


def test_each_result_has_a_caption(report: ReportPage) -> None:
    for category in CATEGORIES:
        subcategories = report.open_category(category) or [""]
        for subcategory in subcategories:
            for number in range(report.rows().count() or 1):
                report.open_category(category)
                if subcategory:
                    report.menu.get_by_text(subcategory, exact=True).click()
                report.rows().nth(number).locator("a").nth(1).click()
                caption = report.menu.locator(".prose")
                assert len(caption.inner_text()) > 60, (category, number)
                assert caption.locator(".system-message, .problematic").count() == 0, (category, number)
    screenshot(report, "caption")
    assert report.errors == []


def test_what_a_license_says_is_text(report: ReportPage) -> None:
    report.open_category("7 Registration")
    report.rows().first.locator("a").first.click()
    report.content.locator("iframe").wait_for()
    frame = report.frame()
    assert LICENSE in frame.locator("main").inner_text()
    assert frame.locator("script").count() == 0
    assert report.page.title() == "Snakemake Report"
    assert report.requests == []


def test_the_rules_and_the_times_of_the_jobs_are_there(report: ReportPage) -> None:
    report.home()
    report.menu.get_by_text("Workflow", exact=True).click()
    drawing = report.content.locator("#rulegraph canvas, #rulegraph svg").first
    drawing.wait_for()
    assert is_seen(drawing, report)
    report.menu.get_by_text("Statistics", exact=True).click()
    charts = report.content.locator("canvas, svg.marks")
    charts.first.wait_for()
    assert is_seen(charts.first, report)
    assert report.errors == []
    assert report.requests == []


def test_the_zip_holds_the_same(reports: Reports, browser: Browser, tmp_path: Path) -> None:
    with zipfile.ZipFile(reports.zip) as archive:
        archive.extractall(tmp_path)
    with opened(browser, tmp_path / "report/report.html", 1400) as report:
        assert report.content.locator("main.ollamake h1").inner_text() == MODEL
        assert report.categories() == CATEGORIES
        report.open_category("1 Overview")
        report.rows().first.locator("a").first.click()
        report.content.locator("iframe").wait_for()
        assert report.frame().locator("main.ollamake h1").inner_text() == MODEL
        assert report.errors == []
        assert report.requests == []


def test_the_overview_prints_on_paper(reports: Reports, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto((reports.folder / f"results/{MODEL}/overview.html").as_uri())
    page.emulate_media(media="print")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "overview.png", full_page=True)
    paper = page.pdf(path=SCREENSHOTS / "overview.pdf", format="A4", print_background=True)
    assert paper.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", paper))
    assert 2 <= pages <= 6
    # What is between the margins of A4, in CSS pixels of 1/96 inch.
    page.set_viewport_size({"width": round((210 - 2 * 16) / 25.4 * 96), "height": 1000})
    wide = page.evaluate(
        "[...document.querySelectorAll('table')].map(one => one.scrollWidth - one.parentElement.clientWidth)"
    )
    page.close()
    assert max(wide) <= 1, "a table is wider than the page"
