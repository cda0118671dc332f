"""Where the thinking of a written answer begins and ends, in the forms in which data sets and models write it.

Recognised are the markers of the student and the tags below, with any white space around them; the opening tag may be
missing, because many templates write it themselves and then it is no part of the answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tessy_jax.errors import DataError
from tessy_jax.records import CLOSE, OPEN

TAGS = ((OPEN.strip(), CLOSE.strip()), ("<thinking>", "</thinking>"))
"""Opening and closing tags that are read besides the student's own markers."""
OTHERS = ("<|begin_of_thought|>", "<|end_of_thought|>", "[THINK]", "[/THINK]", "<|channel|>analysis")
"""Markers of thinking that are not read."""
GAP = r"(?:\s*\n|[ \t]*)"
"""White space after a tag, but not the indentation of the next line of text."""


class Thinking(NamedTuple):
    """The thinking is characters start…end−1 of a content, and the answer begins at `answer`."""

    start: int
    end: int
    answer: int


def find(content: str, open_text: str, close_text: str) -> Thinking | None:
    """The thinking at the start of a content; None if it has none. open_text, close_text: the student's own markers.

    Raises:
        DataError: the thinking never closes.
    """
    if content.startswith(open_text):
        end = content.find(close_text, len(open_text))
        if end >= 0:
            return Thinking(len(open_text), end, end + len(close_text))
    for opens, closes in _pairs(open_text, close_text):
        opened = re.match(rf"\s*{re.escape(opens)}{GAP}", content)
        closed = _bare(closes).search(content, opened.end() if opened else 0)
        if opened and closed is None:
            raise DataError(
                f"opens its thinking with {opens!r} and never closes it with {closes!r}; set student.thinking to the "
                "markers of the data, or leave out answers that were cut off"
            )
        if closed is None:
            continue
        if opened is None and (_bare(opens).search(content[: closed.start()]) or not _ends_line(content, closed.end())):
            continue
        first = opened or re.match(GAP, content)
        assert first is not None  # GAP matches nothing, too
        after = re.compile(GAP).match(content, closed.end())
        assert after is not None
        return Thinking(
            first.end(), max(first.end(), len(content[: closed.start()].rstrip())), max(after.end(), closed.end())
        )
    return None


def check_rest(content: str, start: int, open_text: str, close_text: str) -> None:
    """Refuses a content that has markers of thinking from character `start` on, where they would be learnt as plain text.
    Markers between backticks are only mentioned.

    Raises:
        DataError: there is one.
    """
    tags = {tag for pair in _pairs(open_text, close_text) for tag in pair} | set(OTHERS)
    stray = _bare(*sorted(tags)).search(content, start)
    if stray is not None:
        raise DataError(
            f"has {stray[0]!r} at character {stray.start()}, where it would be learnt as plain text; write the thinking "
            f"once, in front of the answer, between {TAGS[0][0]} and {TAGS[0][1]}, and put a tag that is only mentioned in "
            "backticks"
        )


def _pairs(open_text: str, close_text: str) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys([(open_text.strip(), close_text.strip()), *TAGS]))


def _bare(*tags: str) -> re.Pattern[str]:
    """Matches these tags where they do not stand in backticks."""
    return re.compile(rf"(?<!`)(?:{'|'.join(map(re.escape, tags))})(?!`)")


def _ends_line(content: str, at: int) -> bool:
    return re.compile(r"[ \t\r]*(?:\n|\Z)").match(content, at) is not None
