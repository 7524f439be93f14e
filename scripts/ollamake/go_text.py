"""Texts in the language of Go's text/template: escaped, with dates, and trimmed, which it has no function for."""

from __future__ import annotations

import re
from collections.abc import Sequence

WHITE_SPACE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What Python's str.strip, and so Jinja's trim, takes away."""

DATE = re.compile("\ue000(.*?)\ue001", re.DOTALL)
"""A date in a text, as a format of strftime between two private characters: it is written when the model is asked."""

_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
_MONTHS += ("December",)
_DIRECTIVES = {
    "%Y": "{{ slice currentDate 0 4 }}",
    "%m": "{{ slice currentDate 5 7 }}",
    "%d": "{{ slice currentDate 8 10 }}",
    "%b": '{{ template "month" (slice currentDate 5 7) }}',
    "%B": '{{ template "full-month" (slice currentDate 5 7) }}',
}
"""strftime -> Go; currentDate is a function of Ollama's templates, which says 2006-01-02 (template/template.go)."""


def common_suffix(texts: Sequence[str]) -> str:
    """Return the longest text that all end with and that begins where a special token or a word does, to be readable."""
    shortest = min(texts, key=len)
    tails = (shortest[start:] for start in range(len(shortest) + 1))
    suffix = next(tail for tail in tails if all(text.endswith(tail) for text in texts))
    heads = [text.removesuffix(suffix) for text in texts]
    if any(head and head[-1] not in ">]\n " for head in heads):
        suffix = suffix[min((place for place in map(suffix.find, "<[") if place >= 0), default=len(suffix)) :]
    return suffix if suffix.strip() else ""


def go_text(text: str) -> str:
    """Return the Go template that writes ``text``. Raises ValueError for a date that it cannot write."""
    pieces = DATE.split(text)
    # split() alternates texts and formats.
    return "".join(_date(piece) if number % 2 else _literal(piece) for number, piece in enumerate(pieces))


def _literal(text: str) -> str:
    if re.search("[\ue000\ue001]", text):
        raise ValueError("a date was cut in two")
    # An action begins at the first of several braces in a row, also where the last of them ends the text.
    return re.sub(r"\{{2,}|\{$", lambda match: f'{{{{ "{match[0]}" }}}}', text)


def _date(date_format: str) -> str:
    def directive(match: re.Match[str]) -> str:
        if match[0] not in _DIRECTIVES:
            raise ValueError(f"Go templates in Ollama cannot write a date as {date_format}")
        return _DIRECTIVES[match[0]]

    return re.sub("%-?.", directive, date_format)


def date_templates(text: str) -> str:
    """Return the definitions that ``text`` needs for its dates."""
    defined = ""
    for name, length in (("month", 3), ("full-month", 9)):
        if f'"{name}"' in text:
            months = [f'eq . "{number:02d}" }}}}{month[:length]}' for number, month in enumerate(_MONTHS, start=1)]
            defined += f'{{{{ define "{name}" }}}}{{{{ if ' + "{{ else if ".join(months) + "{{ end }}{{ end }}"
    return defined


def trimming_template(name: str, left: str, right: str) -> str:
    """Define a template that writes its argument without ``left`` at its start and ``right`` at its end.

    It calls itself for each character taken away. Go's strings are bytes, and its templates cannot subtract: the length
    less n is the length of the slice from n on. Characters are escaped, since Modelfiles lose some kinds of white space.
    """
    branches = []
    for characters, of_end in ((left, False), (right, True)):
        for size in (1, 2, 3):
            these = " ".join(_escaped(c) for c in characters if len(c.encode()) == size)
            if not these:
                continue
            rest = f"(len (slice . {size}))"
            part, remainder = (
                (f"slice . {rest}", f"slice . 0 {rest}") if of_end else (f"slice . 0 {size}", f"slice . {size}")
            )
            branches.append(
                f'if and (ge (len .) {size}) (eq ({part}) {these}) }}}}{{{{ template "{name}" ({remainder}) }}}}'
            )
    return f'{{{{ define "{name}" }}}}{{{{ ' + "{{ else ".join(branches) + "{{ else }}{{ . }}{{ end }}{{ end }}"


def _escaped(character: str) -> str:
    return f'"\\u{ord(character):04x}"'
