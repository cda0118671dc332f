"""Finds the thinking in a written answer, in the forms that data sets and models use.

The markers of the student and the tags below are recognised, the tags in upper or lower case, with any white space around
them. The opening tag may be missing, because many templates write it, so that it is not part of the answer. Tags in Markdown
code (between backticks or in a fenced block) are mentions, not markers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tessy_jax.errors import DataError
from tessy_jax.records import CLOSE, OPEN

TAGS = ((OPEN.strip(), CLOSE.strip()), ("<thinking>", "</thinking>"))
"""Opening and closing tags that are read besides the student's own markers."""
MARKERS = re.compile(
    r"(?i:[<◁]\|?/?\s*(?:\w{1,20}[:_])?think(?:ing)?(?:_\w{1,20})?(?:\s[^<>\n]*)?/?\|?[>▷])|\[/?THINK\]"
    r"|<\|(?:begin|end)_of_thought\|>|<\|channel\|>|<unused94>"
)
"""Markers of thinking: those that are read, and others that are refused."""
LIKELY = re.compile(
    r"\s*(?:<\|?/?(?:reason(?:ing)?|thoughts?|scratchpad)\|?>|&lt;/?think|here is my thought process:)", re.IGNORECASE
)
"""Tags that mark thinking at the start of a content, and may be plain text elsewhere."""
GAP = r"(?:\s*\n|[ \t]*)"
"""White space after a tag, but not the indentation of the next line of text."""
TAG = re.compile(r"[<\[{◁].*[>\]}▷]")
INLINE = re.compile(r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)")
FENCED = re.compile(r"^[ \t>]*(`{3,}|~{3,})[^\n]*\n(?:.*\n)*?[ \t>]*\1[ \t\r]*$", re.MULTILINE)


class Thinking(NamedTuple):
    """Places in a content: the thinking is characters start…end−1, and the answer begins at character `answer`."""

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
    text = _blanked(content, INLINE)
    for opens, closes in dict.fromkeys([(open_text.strip(), close_text.strip()), *TAGS]):
        opened = re.compile(rf"\s*{re.escape(opens)}{GAP}", re.IGNORECASE).match(text)
        closed = re.compile(re.escape(closes), re.IGNORECASE).search(text, opened.end() if opened else 0)
        if opened and closed is None:
            raise DataError(
                f"opens its thinking with {opens!r} and never closes it with {closes!r}; set student.thinking to the "
                "markers of the data, or leave out answers that were cut off"
            )
        if closed is None or (opened is None and not _closes_alone(text, closes, closed)):
            continue
        first = opened or re.match(GAP, content)
        after = re.compile(GAP).match(content, closed.end())
        assert first is not None  # GAP also matches the empty text
        assert after is not None
        return Thinking(first.end(), max(first.end(), len(content[: closed.start()].rstrip())), after.end())
    return None


def check(content: str, thinking: Thinking | None, open_text: str, close_text: str) -> None:
    """Refuses a content with markers besides those of its `thinking`, which would be learnt as plain text. Markers in code
    are mentions and pass.

    Raises:
        DataError: there is such a marker.
    """
    for at, marker in _strays(content, thinking, (open_text.strip(), close_text.strip())):
        raise DataError(
            f"has {marker!r} at character {at}, where it would be learnt as plain text; write the thinking once, before the "
            f"answer, between {TAGS[0][0]} and {TAGS[0][1]}, and put backticks around a tag that is only mentioned"
        )


def _closes_alone(text: str, closes: str, closed: re.Match[str]) -> bool:
    """Whether a closing tag without an opening tag ends thinking: it ends its line, and no marker precedes it."""
    ends_line = re.compile(r"[ \t\r]*(?:\n|\Z)").match(text, closed.end())
    return bool(TAG.fullmatch(closes) and ends_line and not MARKERS.search(text, 0, closed.start()))


def _strays(content: str, thinking: Thinking | None, own: tuple[str, str]) -> Iterator[tuple[int, str]]:
    """The place and text of markers outside of code. Code is searched for in the content and in each part alone, because a
    fence that the thinking leaves open would extend into the answer."""
    if thinking is None and (likely := LIKELY.match(content)):
        yield likely.end() - len(likely[0].lstrip()), likely[0].lstrip()
    tags = re.compile("|".join(map(re.escape, filter(TAG.fullmatch, own))) or r"(?!)")
    whole = _blanked(content, FENCED, INLINE)
    parts = ((0, len(content)),) if thinking is None else (thinking[:2], (thinking.answer, len(content)))
    for start, end in parts:
        for text in (whole[start:end], _blanked(content[start:end], FENCED, INLINE)):
            matches = (pattern.search(text) for pattern in (MARKERS, tags))
            yield from ((start + stray.start(), stray[0]) for stray in matches if stray)


def _blanked(content: str, *code: re.Pattern[str]) -> str:
    """The content with a backtick in place of every character of code."""
    for pattern in code:
        content = pattern.sub(lambda match: "`" * len(match[0]), content)
    return content
