"""A page of HTML in one file, for screen and print: everything that stands in it is escaped, and nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

STYLE = """
main.ollamake { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem 2rem; background: #fff; color: #1d2733;
  font: 15px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, "Hiragino Sans", "Yu Gothic", "Noto Sans CJK JP",
  "Noto Sans JP", IPAGothic, sans-serif; overflow-wrap: break-word; }
main.ollamake h1 { font-size: 1.9rem; line-height: 1.2; font-weight: 700; margin: 1.2rem 0 .4rem; color: #12202e; }
main.ollamake h2 { font-size: 1.2rem; font-weight: 650; margin: 1.9rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 2px solid #0072b2; color: #12202e; }
main.ollamake h3 { font-size: 1rem; font-weight: 650; margin: 1.1rem 0 .3rem; }
main.ollamake p { margin: .45rem 0; max-width: 52rem; }
main.ollamake p.lead { font-size: 1.08rem; }
main.ollamake ul { margin: .45rem 0; padding-left: 1.3rem; list-style: disc; max-width: 52rem; }
main.ollamake li { margin: .2rem 0; }
main.ollamake .scroll { overflow-x: auto; margin: .6rem 0 1rem; }
main.ollamake table { border-collapse: collapse; width: 100%; font-size: .92rem; margin: 0; }
main.ollamake caption { text-align: left; color: #4a5866; padding: 0 0 .35rem; caption-side: top; }
main.ollamake th, main.ollamake td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0;
  border-bottom: 1px solid #d9e0e7; }
main.ollamake thead th { font-weight: 600; color: #33414f; border-bottom: 1.5px solid #8a97a5; vertical-align: bottom; }
main.ollamake tbody th { font-weight: 600; white-space: nowrap; }
main.ollamake td.number, main.ollamake th.number { text-align: right; font-variant-numeric: tabular-nums; }
main.ollamake td.number { white-space: nowrap; }
main.ollamake code, main.ollamake pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  "Noto Sans Mono CJK JP", IPAGothic, monospace; font-size: .86em; background: none; padding: 0; color: inherit;
  font-weight: inherit; }
main.ollamake code::before, main.ollamake code::after { content: none; }
main.ollamake code.hash { color: #4a5866; word-break: break-all; }
main.ollamake pre { white-space: pre-wrap; background: #f4f7fa; border-left: 3px solid #0072b2; padding: .6rem .8rem;
  margin: .5rem 0; line-height: 1.5; }
main.ollamake pre.prose { font: inherit; }
main.ollamake figure { margin: .8rem 0; }
main.ollamake .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem;
  margin: 1.1rem 0; padding: 0; }
main.ollamake .card { margin: 0; border: 1px solid #d0d9e2; border-top: 4px solid #0072b2; border-radius: 4px;
  padding: .6rem .8rem; background: #fbfcfe; }
main.ollamake .card.good { border-top-color: #00795c; }
main.ollamake .card.bad { border-top-color: #b03000; }
main.ollamake .card dt { font-size: .84rem; color: #4a5866; margin: 0; font-weight: 400; }
main.ollamake .card dd { margin: 0; }
main.ollamake .card .figure { font-size: 1.45rem; font-weight: 700; line-height: 1.3; color: #12202e; }
main.ollamake .card .said { font-size: .84rem; line-height: 1.4; color: #33414f; }
main.ollamake .warnings { border: 1px solid #c98a00; border-left: 5px solid #c98a00; background: #fff8e8; border-radius: 4px;
  padding: .45rem .9rem; margin: .9rem 0; }
main.ollamake .good { color: #00634b; } main.ollamake .bad { color: #9c2a00; }
main.ollamake img { max-width: 100%; height: auto; }
@media (max-width: 56rem) {
  main.ollamake tbody th { white-space: normal; }
  main.ollamake code { overflow-wrap: anywhere; }
}
@media print {
  main.ollamake { max-width: none; padding: 0; font-size: 10.5pt; }
  main.ollamake .scroll { overflow: visible; }
  main.ollamake table { font-size: 8.5pt; }
  main.ollamake th, main.ollamake td { padding-right: .5rem; }
  main.ollamake tbody th, main.ollamake td.number { white-space: normal; }
  main.ollamake code { overflow-wrap: anywhere; }
  main.ollamake h2, main.ollamake h3 { break-after: avoid; }
  main.ollamake tr, main.ollamake .card, main.ollamake .warnings { break-inside: avoid; }
  main.ollamake thead { display: table-header-group; }
  @page { margin: 16mm; }
}
"""
"""Every rule is for main.ollamake, so that the page can stand within another one: Snakemake's report, whose style sheet leaves
alone what is not-prose. No colour alone tells anything."""

_PAGE = Markup(
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    "<title>{title}</title>\n<style>body {{ margin: 0; background: #fff; }}{style}</style>\n</head>\n<body>\n"
    '<main class="ollamake not-prose">\n{body}\n</main>\n</body>\n</html>\n'
)


def page(title: str, body: Iterable[Markup]) -> str:
    """Return a whole page."""
    return str(_PAGE.format(title=printable(title), style=Markup(STYLE), body=joined(body, "\n")))


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Return texts and HTML one after another; the texts are escaped."""
    return Markup(between).join(printable(part) for part in parts)


def printable(text: object) -> str | Markup:
    """Return a text without the characters that HTML forbids or that turn the direction of writing; HTML as it is."""
    if isinstance(text, Markup):
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t\u3000\u00a0" else "\N{REPLACEMENT CHARACTER}"
        for character in str(text).replace("\r\n", "\n")
    )


def element(name: str, content: object, kind: str = "") -> Markup:
    """Return an element of the class ``kind``."""
    attribute = Markup(' class="{}"').format(kind) if kind else Markup("")
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), attribute, printable(content))


def code(text: object) -> Markup:
    """Return a name, a path or a command."""
    return element("code", text)


def sha256(digest: str) -> Markup:
    """Return a sha256, which may be broken anywhere."""
    return element("code", digest, "hash")


def bullets(items: Iterable[object]) -> Markup:
    """Return a list; nothing for no items."""
    found = [element("li", item) for item in items]
    return element("ul", joined(found)) if found else Markup("")


def table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> Markup:
    """Return a table whose first column heads its rows; ``numbers``: which columns are set to the right."""
    kinds = ["number" if index in numbers else "" for index in range(len(titles))]
    head = joined(
        Markup('<th scope="col"{}>{}</th>').format(_class(kind), printable(title))
        for title, kind in zip(titles, kinds, strict=True)
    )
    body = [
        joined(
            Markup('<th scope="row">{}</th>').format(printable(cell))
            if index == 0
            else element("td", cell, kinds[index])
            for index, cell in enumerate(row)
        )
        for row in rows
    ]
    return Markup(
        '<div class="scroll"><table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(printable(caption), head, joined(element("tr", row) for row in body))


def card(name: str, figure: object, said: object, kind: str = "") -> Markup:
    """Return one figure that is to be seen at once. ``kind``: good, bad or nothing."""
    return Markup(
        '<dl class="{}"><dt>{}</dt><dd><div class="figure">{}</div><div class="said">{}</div></dd></dl>'
    ).format(f"card {kind}".strip(), escape(name), printable(figure), printable(said))


def drawing(svg: bytes, what: str) -> Markup:
    """Return an SVG as a figure; as a picture of its own, so that nothing in it can reach the page. ``what`` is read aloud."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
    return Markup('<figure><img src="{}" alt="{}"></figure>').format(source, printable(what))


def _class(kind: str) -> Markup:
    return Markup(' class="{}"').format(kind) if kind else Markup("")
