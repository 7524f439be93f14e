"""A Markdown file that this project wrote, as a page of HTML in one file, its pictures within."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from ollamake.errors import OllamakeError
from ollamake.html_page import element, page
from ollamake.record_seal import read_sealed_text


def markdown_page(title: str, file: Path) -> str:
    """Return the page of a Markdown file with GitHub's tables. HTML in it is shown as text, and never run.

    A file without a heading is headed by ``title``.
    Pictures are read from the disk, relative to the file. Raises OllamakeError for one that is not there.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(read_sealed_text(file))
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                child.attrSet("src", _embedded(file, child))
        if token.type == "th_open":
            token.attrSet("scope", "col")
        if token.type in ("th_open", "td_open") and "right" in str(token.attrGet("style") or ""):
            token.attrSet("class", "number")
    html = parser.renderer.render(tokens, parser.options, {})
    html = html.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    headed = any(token.type == "heading_open" and token.tag == "h1" for token in tokens)
    return page(title, [Markup(html)] if headed else [element("h1", title), Markup(html)])


def _embedded(file: Path, image: Token) -> str:
    """Return a picture as a data URI."""
    source = str(image.attrGet("src") or "")
    picture = file.parent / unquote(source)
    if "://" in source or not picture.is_file():
        raise OllamakeError(
            f"{file}: the picture {source} is to be embedded, but there is no such file beside the text. Make it first"
            f" (snakemake --cores 1 {picture})."
        )
    kind = mimetypes.guess_type(picture.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
