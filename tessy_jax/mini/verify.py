"""Verifies texts of the miniature: whether the answer is right, the share of right steps, and the spans of style.

No function here raises, for any text.
"""

from __future__ import annotations

from collections.abc import Iterable

from tessy_jax.mini.styles import STYLES, Kind, KindSpan, Speaker, Style, framed, tile
from tessy_jax.mini.tasks import ANSWER, STEP, Item
from tessy_jax.records import CLOSE, OPEN

PUNCTUATION = ".,:;!?"
"""Punctuation that is ignored around the words of an answer. A minus is not ignored: −2 is not 2."""


def _style_words() -> frozenset[str]:
    """Words that are ignored in an answer. Single letters and digits can be answers, so they are not ignored."""
    words = (word.strip(PUNCTUATION) for style in STYLES.values() for phrase in style.phrases for word in phrase.split())
    return frozenset(word for word in words if len(word) > 1)


STYLE_WORDS = _style_words()


def answer_of(content: str) -> str | None:
    """The text after the thinking; the complete text without thinking; None if the thinking is never closed."""
    before, closed, after = content.partition(CLOSE.strip())
    if closed:
        return after
    return None if OPEN.strip() in before else content


def is_right(item: Item, content: str) -> bool:
    """Whether the answer in a response, or an answer alone, is the item's answer.

    The words, without words of either style and surrounding punctuation, must be those of the answer. A further number,
    letter or unknown word makes the answer wrong.
    """
    answer = answer_of(content)
    if answer is None:
        return False
    words = (word.strip(PUNCTUATION) for word in answer.split())
    return [word for word in words if word and word not in STYLE_WORDS] == item.answer.split()


def steps_right(item: Item, thinking: str) -> float:
    """The share of an item's steps that the thinking contains in order, with any text between them."""
    parts = [f" {' '.join(part.split())} ;" for part in thinking.split(";")[:-1]]
    longest = [0] * (len(item.steps) + 1)  # [j]: number of the first j steps in the parts so far
    for part in parts:
        for j in range(len(item.steps), 0, -1):
            if part.endswith(f" {item.steps[j - 1]}"):
                longest[j] = max(longest[j], longest[j - 1] + 1)
        for j in range(1, len(longest)):
            longest[j] = max(longest[j], longest[j - 1])
    return longest[-1] / len(item.steps)


def spans_of(thinking: str, speaker: Speaker | None = None) -> tuple[KindSpan, ...] | None:
    """The spans of a thinking in the grammar (see `styles`), with right or wrong steps; None for any other text.

    speaker: whose phrases the thinking may contain; None: those of both. A text that is only partly in the grammar gives
    None, because callers use the spans as ground truth.
    """
    styles = _styles(speaker)
    opener = _begins(thinking, 0, (phrase for style in styles for phrase in style.openers))
    if opener is None:
        return None
    phrases: list[tuple[Kind, str]] = [("style", opener)]
    at = len(opener) + 1
    while (connective := _begins(thinking, at, (phrase for style in styles for phrase in style.connectives))) is not None:
        at += len(connective) + 1
        step = STEP.match(thinking, at)
        if step is None:
            return None
        phrases += [("style", connective), ("capability", step[0])]
        at = step.end() + 1
    closer = _begins(thinking, at, (phrase for style in styles for phrase in style.closers))
    if closer is None:
        return None
    text, spans = tile([*phrases, ("style", closer)])
    return spans if text == thinking else None


def answer_spans_of(answer: str, speaker: Speaker | None = None) -> tuple[KindSpan, ...] | None:
    """The spans of an answer in a framing, right or wrong; None for any other text. speaker: as for `spans_of`."""
    for style in _styles(speaker):
        for before, after in style.framings:
            inner = answer[len(before) + 1 : len(answer) - (len(after) + 1 if after else 0)]
            if ANSWER.fullmatch(inner):
                text, spans = tile(framed(inner, (before, after)))
                if text == answer:
                    return spans
    return None


def style_spans(spans: Iterable[KindSpan], start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """The spans of style within code points start…end−1, as (start, end) counted from `start`. end None: end of the text."""
    inside = [
        (max(span.start, start) - start, (span.end if end is None else min(span.end, end)) - start)
        for span in spans
        if span.kind == "style"
    ]
    return [(first, last) for first, last in inside if first < last]


def _styles(speaker: Speaker | None) -> list[Style]:
    return list(STYLES.values()) if speaker is None else [STYLES[speaker]]


def _begins(text: str, at: int, phrases: Iterable[str]) -> str | None:
    """The phrase at a position of the text, followed by a space or the end; at most one phrase matches."""
    return next((p for p in phrases if text.startswith(p, at) and text[at + len(p) : at + len(p) + 1] in ("", " ")), None)
