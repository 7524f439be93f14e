"""Snakemake's report as a reader has it: opened from the disk in a real Chromium that reaches no network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Frame, Locator, Page, Route, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    # The first is needed by root, as whom CI runs; the others keep Chromium from calling home.
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_LOCAL = ("file:", "data:", "blob:", "about:")
_GLYPHS = """([text, style]) => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 48;
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  const font = style ? getComputedStyle(document.querySelector(style)).fontFamily : 'sans-serif';
  return [...text].map(character => {
    pen.clearRect(0, 0, 48, 48);
    pen.font = `32px ${font}`;
    pen.fillText(character, 4, 40);
    return Array.from(pen.getImageData(0, 0, 48, 48).data).filter((_, index) => index % 4 == 3).join('');
  });
}"""


def chromium() -> str:
    """Return the path of Chromium: CHROMIUM_BIN, else the one on PATH. Fails with how to install it."""
    found = os.environ.get("CHROMIUM_BIN") or next(filter(None, map(shutil.which, _NAMES)), None)
    assert found, (
        "The report is looked at in Chromium, and there is none on PATH. Install it (Debian: apt-get install chromium"
        " fonts-ipafont-gothic), or set CHROMIUM_BIN."
    )
    return found


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Yield a headless Chromium."""
    program = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class ReportPage:
    """A report that is open, and what went wrong in it: ``requests`` that left the disk, ``errors`` of its scripts."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def menu(self) -> Locator:
        """The bar at the left."""
        return self.page.locator("nav.h-screen")

    @property
    def content(self) -> Locator:
        """What is shown beside it."""
        return self.page.locator("#app div.grow.h-screen")

    def categories(self) -> list[str]:
        """Return the headings of the results, from top to bottom."""
        names = self.menu.locator("ul > li").all_inner_texts()
        return names[names.index("RESULTS") + 1 :] if "RESULTS" in names else names[names.index("Results") + 1 :]

    def open_category(self, name: str) -> list[str]:
        """Show the results of a category; return its subcategories, none if there is but one."""
        self.home()
        self.menu.get_by_text(name, exact=True).click()
        return [] if self.rows().count() else self.menu.locator("ul > li").all_inner_texts()

    def home(self) -> None:
        """Show the menu of categories."""
        self.menu.locator("nav a").first.click()
        self.menu.get_by_text("Statistics", exact=True).wait_for()

    def rows(self) -> Locator:
        """The results of the category that is open."""
        return self.menu.locator("tbody tr")

    def frame(self) -> Frame:
        """Return the page within the page: a result in HTML."""
        handle = self.content.locator("iframe").element_handle()
        frame = handle.content_frame() if handle else None
        assert frame is not None
        frame.wait_for_load_state()
        return frame

    def glyphs(self, text: str, style_of: str) -> list[str]:
        """Return what is drawn for each character of a text in the font of an element, pixel for pixel."""
        drawn: list[str] = self.page.evaluate(_GLYPHS, [text, style_of])
        return drawn


@contextmanager
def opened(browser: Browser, file: Path, width: int, height: int = 900) -> Iterator[ReportPage]:
    """Yield the report ``file`` in a window of ``width`` x ``height`` pixels, without a network."""
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    report = ReportPage(context.new_page())

    def stay_local(route: Route) -> None:
        if route.request.url.startswith(_LOCAL):
            route.continue_()
        else:
            route.abort()

    report.page.route("**/*", stay_local)
    report.page.on(
        "request",
        lambda request: None if request.url.startswith(_LOCAL) else report.requests.append(request.url),
    )
    report.page.on("pageerror", lambda error: report.errors.append(str(error)))
    report.page.on("console", lambda message: report.errors.append(message.text) if message.type == "error" else None)
    try:
        report.page.goto(file.as_uri())
        report.page.get_by_text("Statistics", exact=True).wait_for()
        yield report
    finally:
        context.close()
