"""Find out how a chat template writes conversations, by rendering probes whose contents can be found again.

What is found is a guess: it holds for the probes. Whoever uses it compares it on other conversations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from jinja2 import TemplateError

from ollamake.conversations import Conversation, Message
from ollamake.go_text import WHITE_SPACE
from ollamake.template_families import ASSISTANT, NOTHING, ROLES, SYSTEM, USER, Place, Turns

Render = Callable[[Conversation], str]
Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")

NAMES = {"s": SYSTEM, "u": USER, "a": ASSISTANT}
WITHOUT_SYSTEM = ("u", "uau", "uauau", "ua", "uaua")
WITH_SYSTEM = ("su", "suau", "suauau", "sua", "suaua")
SYSTEM_WITHIN = ("uasu", "suasu")
"""Shapes of conversations, a letter for a message; what ends with the assistant's is to be continued."""

PADDINGS = (("\n \n", "\n \n"), (" \n ", " \n "))
"""White space before and after contents, which tells the strips apart."""
STRIPS = ("", WHITE_SPACE, "\n", " ")


class NotDerivable(Exception):
    """The chat template does more than to write fixed texts between contents."""


def derive(render: Render) -> Turns:
    """Return how ``render`` writes conversations.

    Raises NotDerivable, or TemplateError if it does not even write a question.
    """
    question = render(_conversation("u"))
    probes = [*WITHOUT_SYSTEM]
    refused, written, before_last_user = False, True, False
    try:
        text = render(_conversation("suau"))
    except TemplateError:
        refused = True
    else:
        written = _content(0) in text
    if written and not refused:
        before_last_user = text.find(_content(0)) > text.find(_content(1))
        probes += WITH_SYSTEM
    try:
        seen = _render_all([*probes, *SYSTEM_WITHIN], before_last_user, render)
    except NotDerivable:
        # Some templates treat a system message in the midst unlike one at the front; few conversations have one.
        seen = _render_all(probes, before_last_user, render)
    turns = Turns(
        **_complete(seen, refused),
        system_written=written,
        system_before_last_user=before_last_user,
    )
    if written and not refused:
        empty = _with_contents("su", lambda number: "" if number == 0 else _content(0))
        if render(empty) == question != turns.render(empty.messages, dates=False):
            return replace(turns, empty_system_written=False)
    return turns


class _Seen:
    """The texts and strips that the probes showed."""

    def __init__(self, system_before_last_user: bool) -> None:
        self.gaps: dict[Place, str] = {}
        self.ends: dict[str, str] = {}
        self.left: dict[Place, set[str]] = {}
        self.right: dict[tuple[str, bool], set[str]] = {}
        self._system_before_last_user = system_before_last_user

    def add(self, shape: str, render: Render) -> None:
        order = list(range(len(shape)))
        if self._system_before_last_user and shape[0] == "s":
            order = [*order[1:-1], 0, order[-1]] if shape[-1] == USER[0] else order[1:]
        plain = _segments(render(_conversation(shape)), order)
        padded = [
            (
                left,
                right,
                _segments(render(_with_contents(shape, lambda n, a=left, b=right: a + _content(n) + b)), order),
            )
            for left, right in PADDINGS
        ]
        roles = [NOTHING, *(NAMES[shape[number]] for number in order)]
        for index, (before, role) in enumerate(itertools.pairwise(roles)):
            place = (before, role, index == len(order) - 1)
            _same(self.gaps, place, plain[index])
            pairs = self._strips([(left, right, s[index]) for left, right, s in padded], plain[index], index > 0)
            _narrow(self.left, place, {left for _, left in pairs})
            if index:
                _narrow(self.right, (before, False), {right for right, _ in pairs})
        if shape[-1] == "a":
            found = {s for s in STRIPS if all(right.rstrip(s) == segments[-1] for _, right, segments in padded)}
        else:
            _same(self.ends, roles[-1], plain[-1])
            found = {s for s in STRIPS if all(r.rstrip(s) + plain[-1] == segments[-1] for _, r, segments in padded)}
        _narrow(self.right, (roles[-1], True), found)

    @staticmethod
    def _strips(padded: list[tuple[str, str, str]], gap: str, has_before: bool) -> list[tuple[str, str]]:
        """Return the pairs (off the end of the content before, off the start of this one) that explain the segments."""
        return [
            (end, start)
            for end in (STRIPS if has_before else ("",))
            for start in STRIPS
            if all(
                (right.rstrip(end) if has_before else "") + gap + left.lstrip(start) == segment
                for left, right, segment in padded
            )
        ]


def _render_all(probes: Sequence[str], system_before_last_user: bool, render: Render) -> _Seen:
    seen = _Seen(system_before_last_user)
    for shape in probes:
        try:
            seen.add(shape, render)
        except TemplateError:
            # A shape that the template refuses, or does not write in full, tells nothing. The plain question must do.
            if shape == "u":
                raise
    return seen


def _complete(seen: _Seen, refused: bool) -> dict[str, Any]:
    """Fill in the places that the template refuses, so that something sensible is said there, too."""
    within = any(role == SYSTEM and before != NOTHING for before, role, _ in seen.gaps)
    for before, last in itertools.product((NOTHING, USER, ASSISTANT), (False, True)):
        # As usual where there is no system turn: the text goes in front of a question, in the user's turn.
        if refused or (before != NOTHING and not within):
            seen.gaps[before, SYSTEM, last] = _like(seen.gaps, (before, USER, last)) or ""
        if refused:
            seen.gaps[SYSTEM, USER, last] = "\n\n"
    gaps, left, right = {}, {}, {}
    for place in itertools.product((NOTHING, *ROLES), ROLES, (False, True)):
        text = _like(seen.gaps, place)
        gaps[place] = "" if text is None else text
        left[place] = _chosen(_like(seen.left, place))
    for role, last in itertools.product(ROLES, (False, True)):
        right[role, last] = _chosen(seen.right.get((role, last), seen.right.get((role, not last))))
    ends = {before: seen.ends.get(before, seen.ends[USER]) for before in (NOTHING, SYSTEM, USER)}
    return {"gaps": gaps, "ends": ends, "left": left, "right": right}


def _like(found: dict[Place, Found], place: Place) -> Found | None:
    """Return what was found for the place, else for the one most like it."""
    before, role, last = place
    for other in (before, USER, ASSISTANT, SYSTEM, NOTHING):
        for other_last in (last, not last):
            if (other, role, other_last) in found:
                return found[other, role, other_last]
    return None


def _chosen(strips: set[str] | None) -> str:
    return next(strip for strip in STRIPS if strips is None or strip in strips)


def _same(found: dict[Key, str], key: Key, text: str) -> None:
    if found.setdefault(key, text) != text:
        raise NotDerivable(f"{key} is written as {found[key]!r} and as {text!r}")


def _narrow(found: dict[Key, set[str]], key: Key, strips: set[str]) -> None:
    found[key] = found.get(key, strips) & strips
    if not found[key]:
        raise NotDerivable(f"white space around the content of {key} is changed in an unknown way")


def _content(number: int) -> str:
    """A word that no template contains and no filter changes."""
    return f"xq{'abcdefghij'[number]}qx"


def _conversation(shape: str) -> Conversation:
    return _with_contents(shape, _content)


def _with_contents(shape: str, content: Callable[[int], str]) -> Conversation:
    messages: list[Message] = [
        {"role": NAMES[letter], "content": content(number)} for number, letter in enumerate(shape)
    ]
    return Conversation(shape, tuple(messages), continues=shape[-1] == "a")


def _segments(text: str, order: Sequence[int]) -> list[str]:
    """Return the texts before, between and after the contents. Raises TemplateError if they are not there, in order."""
    segments = []
    for number in order:
        before, found, text = text.partition(_content(number))
        if not found:
            raise TemplateError("a content is missing")
        segments.append(before)
    return [*segments, text]
