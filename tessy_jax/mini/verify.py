"""What a text of the miniature world is worth: whether its answer is right, which steps are, and what is style in it.

Nothing here raises, whatever the text: models write odd things.
"""

from __future__ import annotations

from collections.abc import Iterable

from tessy_jax.mini.styles import STYLES, Kind, KindSpan, Speaker, Style, framed, tile
from tessy_jax.mini.tasks import ANSWER, STEP, Item
from tessy_jax.text.chat import CLOSE, OPEN

PUNCTUATION = ".,:;!?"
"""May stand beside the words of an answer. A minus is none of it: −2 is not 2."""


def _style_words() -> frozenset[str]:
    """Words that say nothing in an answer. Single letters and digits may be the answer, so they are none of them."""
    words = (word.strip(PUNCTUATION) for style in STYLES.values() for phrase in style.phrases for word in phrase.split())
    return frozenset(word for word in words if len(word) > 1)


STYLE_WORDS = _style_words()


def answer_of(content: str) -> str | None:
    """What stands behind the thinking; all of a text without thinking; None where the thinking never closes."""
    before, closed, after = content.partition(CLOSE.strip())
    if closed:
        return after
    return None if OPEN.strip() in before else content


def is_right(item: Item, content: str) -> bool:
    """Whether the answer in a response, or an answer alone, is the item's.

    Its words, less those of either style and the punctuation beside them, have to be those of the answer: a further number,
    letter or unknown word makes it wrong.
    """
    answer = answer_of(content)
    if answer is None:
        return False
    words = (word.strip(PUNCTUATION) for word in answer.split())
    return [word for word in words if word and word not in STYLE_WORDS] == item.answer.split()


def steps_right(item: Item, thinking: str) -> float:
    """The share of an item's steps that a thinking works out, in order, whatever stands between them."""
    said = [f" {' '.join(part.split())} ;" for part in thinking.split(";")[:-1]]
    longest = [0] * (len(item.steps) + 1)  # of the first j steps, how many are found in what was read
    for part in said:
        for j in range(len(item.steps), 0, -1):
            if part.endswith(f" {item.steps[j - 1]}"):
                longest[j] = max(longest[j], longest[j - 1] + 1)
        for j in range(1, len(longest)):
            longest[j] = max(longest[j], longest[j - 1])
    return longest[-1] / len(item.steps)


def spans_of(thinking: str, speaker: Speaker | None = None) -> tuple[KindSpan, ...] | None:
    """The spans of a thinking in the grammar (see `styles`), its steps right or wrong; None for any other text.

    speaker: whose phrases it may hold; None: those of both. It is all or nothing: of a text that leaves the grammar
    somewhere nothing is said, because a guess would be taken for the truth that the spans are.
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
    """Where the style is among code points start…end−1, as (start, end) counted from `start`. end: None: the text's."""
    inside = [
        (max(span.start, start) - start, (span.end if end is None else min(span.end, end)) - start)
        for span in spans
        if span.kind == "style"
    ]
    return [(first, last) for first, last in inside if first < last]


def _styles(speaker: Speaker | None) -> list[Style]:
    return list(STYLES.values()) if speaker is None else [STYLES[speaker]]


def _begins(text: str, at: int, phrases: Iterable[str]) -> str | None:
    """The phrase that stands at a place of the text, up to a space or the end; there is at most one."""
    return next((p for p in phrases if text.startswith(p, at) and text[at + len(p) : at + len(p) + 1] in ("", " ")), None)
