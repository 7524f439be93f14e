"""How a family of models writes a conversation, as data, as Ollama's Go template, and the same once more in Python.

Most chat templates write between two contents a text that depends only on the two roles and on whether the second
content is the last one. These texts, and what is trimmed off contents, are the family; ``render`` and ``go_template`` say
the same with them, and tests/e2e/test_template_families.py holds both against a real server.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ollamake.go_text import DATE, common_suffix, date_templates, go_text, trimming_template

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)
NOTHING = ""
"""Stands for a role at both ends of the conversation."""

Place = tuple[str, str, bool]
"""The role before, the role whose content follows, and whether that message is the last one."""


@dataclass(frozen=True)
class Turns:
    """A family: the texts around contents. Complete: there is a text for every place."""

    gaps: Mapping[Place, str]
    ends: Mapping[str, str]
    """What is written after the last content, by its role, if that is not the assistant's."""
    left: Mapping[Place, str]
    """The characters trimmed off the start of a content."""
    right: Mapping[tuple[str, bool], str]
    """The same for its end, by its role and whether it is the last one."""
    system_written: bool = True
    empty_system_written: bool = True
    system_before_last_user: bool = False
    """The system text stands before the last user's content, and nowhere if the last message is an answer."""

    def without_bos(self, bos_token: str) -> Turns:
        """Return the family without the text that the server itself puts in front."""
        gaps = {p: text.removeprefix(bos_token) if p[0] == NOTHING else text for p, text in self.gaps.items()}
        return replace(self, gaps=gaps)

    def starts(self) -> list[str]:
        """Return the texts that a conversation can begin with."""
        roles = {USER, SYSTEM} if self.system_written and not self.system_before_last_user else {USER}
        return [text for (before, role, _), text in self.gaps.items() if before == NOTHING and role in roles]

    def render(self, messages: Sequence[Mapping[str, Any]], dates: bool = True) -> str:
        """Say what ``go_template`` says; with ``dates`` False, leave dates as they are marked in the texts."""
        written = self._in_written_order(messages)
        text, before = "", NOTHING
        for number, message in enumerate(written, start=1):
            role = message["role"] if message["role"] in ROLES else USER
            place = (before, role, number == len(written))
            content = message["content"].lstrip(self.left[place])
            text += self.gaps[place] + content.rstrip(self.right[place[1:]])
            before = role
        if before != ASSISTANT:
            text += self.ends[before]
        return DATE.sub(lambda match: datetime.datetime.now().strftime(match[1]), text) if dates else text

    def _in_written_order(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        written = list(messages)
        if self.system_before_last_user and written[0]["role"] == SYSTEM:
            system = written.pop(0)
            if written[-1]["role"] == USER:
                written.insert(-1, system)
        if not self.system_written:
            written = [message for message in written if message["role"] != SYSTEM]
        if not self.empty_system_written:
            written = [message for message in written if message["role"] != SYSTEM or message["content"]]
        return written

    def go_template(self) -> str:
        """Return Ollama's TEMPLATE. Raises ValueError if a text holds a date in a format that Go templates cannot say.

        Go templates have no look-ahead, but a slice of the messages from here on has length 1 at the last one.
        """
        trims: list[tuple[str, str]] = []
        system, user, assistant = (self._turn(role, trims) for role in ROLES)
        guard = ""
        if self.system_before_last_user:
            user = f'{{{{ if and $last $system }}}}{system}{{{{ $before = "system" }}}}{{{{ end }}}}{user}'
        if self.system_before_last_user or not self.system_written:
            guard = 'ne .Role "system"'
        elif not self.empty_system_written:
            guard = 'or .Content (ne .Role "system")'
        branches = [('eq .Role "assistant"', assistant), (None, user)]
        if guard[:2] != "ne":
            branches.insert(0, ('eq .Role "system"', system))
        body = _go_if(branches) + "{{ $before = .Role }}"
        if guard:
            body = f"{{{{ if {guard} }}}}{body}{{{{ end }}}}"
        end = self._chosen({(before, False): go_text(text) for before, text in self.ends.items()})
        head = '{{ $before := "" }}'
        if self.system_before_last_user:
            head += '{{ $system := eq (index .Messages 0).Role "system" }}'
        head += "{{ range $index, $message := .Messages }}"
        if "$last" in body:
            head += "{{ $last := eq (len (slice $.Messages $index)) 1 }}"
        text = f'{head}{body}{{{{ end }}}}{{{{ if ne $before "assistant" }}}}{end}{{{{ end }}}}'
        defined = [trimming_template(_name(pair), *pair) for pair in trims if _name(pair) in text]
        return "".join(defined) + date_templates(text) + text

    def _turn(self, role: str, trims: list[tuple[str, str]]) -> str:
        """Return what is written for a message of ``role``: the text before its content, and the content."""
        gaps = {place: text for place, text in self.gaps.items() if place[1] == role}
        content = {place: self._content((self.left[place], self.right[place[1:]]), role, trims) for place in gaps}
        tail, common = "", ""
        if len(set(content.values())) == 1:
            common = common_suffix(list(gaps.values()))
            tail = go_text(common) + next(iter(content.values()))
            content = dict.fromkeys(gaps, "")
        texts = {(p[0], p[2]): go_text(text.removesuffix(common)) + content[p] for p, text in gaps.items()}
        return self._chosen(texts) + tail

    def _content(self, pair: tuple[str, str], role: str, trims: list[tuple[str, str]]) -> str:
        content = "$.System" if self.system_before_last_user and role == SYSTEM else ".Content"
        if pair == ("", ""):
            return f"{{{{ {content} }}}}"
        if pair not in trims:
            trims.append(pair)
        return f'{{{{ template "{_name(pair)}" {content} }}}}'

    def _chosen(self, texts: Mapping[tuple[str, bool], str]) -> str:
        """Return the Go template that writes the text for the role before and for whether this message is the last."""
        befores = dict.fromkeys(before for before, _ in texts)
        by_last = {
            last: {before: texts[before, last] for before in befores if (before, last) in texts}
            for last in (False, True)
        }
        if not by_last[True] or by_last[True] == by_last[False]:
            return _by_role_before(by_last[False])
        return _go_if([("$last", _by_role_before(by_last[True])), (None, _by_role_before(by_last[False]))])


def _quoted(text: str) -> str:
    return f'"{text}"'


def _name(pair: tuple[str, str]) -> str:
    names = {"": "none", "\n": "newline", " ": "space"}
    return "trim-" + "-".join(names.get(characters, "white") for characters in pair)


def _by_role_before(texts: Mapping[str, str]) -> str:
    """Choose by $before. What follows a user's turn is also for roles that the family does not know (tool)."""
    otherwise = texts[USER]
    groups: dict[str, list[str]] = {}
    for before, text in texts.items():
        if text != otherwise:
            groups.setdefault(text, []).append(before)
    branches: list[tuple[str | None, str]] = [
        (f"eq $before {' '.join(map(_quoted, befores))}", text) for text, befores in groups.items()
    ]
    return _go_if([*branches, (None, otherwise)])


def _go_if(branches: Sequence[tuple[str | None, str]]) -> str:
    """Write {{ if }} ... {{ else }} ... {{ end }}; the last branch has no condition."""
    *conditional, (_, otherwise) = branches
    if not conditional:
        return otherwise
    if len(conditional) == 1 and not conditional[0][1]:
        condition = conditional[0][0]
        if condition == 'eq $before ""':
            return f"{{{{ if $before }}}}{otherwise}{{{{ end }}}}" if otherwise else ""
        return f"{{{{ if not ({condition}) }}}}{otherwise}{{{{ end }}}}" if otherwise else ""
    text = ""
    for number, (condition, branch) in enumerate(conditional):
        text += f"{{{{ {'else if' if number else 'if'} {condition} }}}}{branch}"
    return text + (f"{{{{ else }}}}{otherwise}" if otherwise else "") + "{{ end }}"
