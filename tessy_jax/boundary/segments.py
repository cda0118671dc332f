"""Segments: windows of words in the thinking of traces, and their split into training and validation."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from tessy_jax.config.predictors import Segments
from tessy_jax.errors import DataError
from tessy_jax.records import Row

Split = Literal["train", "validation"]
WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a trace. id: "<trace>#<number>". trace: the id of its row. split: the same for all segments of a prompt.
    start: its first code point in the thinking. text: verbatim, without white space at its ends. At the end of closed
    thinking it includes the closing marker, because the speaker after it is also a decision."""

    id: str
    trace: str
    split: Split
    start: int
    text: str


class Cuts(NamedTuple):
    """The segments of traces. traces: number of traces. without: number of traces without thinking. endings: texts from the
    last word of the thinking to the end of its closing marker, such as "\\n</think>"; only a segment at the end of the
    thinking ends with one."""

    segments: list[Segment]
    traces: int
    without: int
    endings: frozenset[str]


def thinking(row: Row, open_text: str, close_text: str) -> str | None:
    """The thinking of a response, without its markers; None if there is none or only white space.

    The spans of a row define it. In a row without spans, it ends at close_text, and begins after open_text or, if the
    template had opened it, with the content. White space around the markers does not count.
    """
    content = row.content
    if row.spans:
        own = [span for span in row.spans if span.phase == "think" and span.source != "template"]
        text = content[own[0].start : own[-1].end] if own else ""
    else:
        opens, closes = open_text.strip(), close_text.strip()
        before, opened, _ = content.partition(opens)
        first = len(before) + len(opens) if opened and closes not in before else 0
        text, closed, _ = content[first:].partition(closes)
        text = text if closed else ""
    return text if text.strip() else None


def ending(row: Row, text: str, close_text: str) -> str:
    """The text from the last word of the thinking `text` to the end of its closing marker; empty if it is not closed."""
    space = text[len(text.rstrip()) :]
    if not row.spans:
        return space + close_text.strip()
    last = max(i for i, span in enumerate(row.spans) if span.phase == "think" and span.source != "template")
    following = row.spans[last + 1 : last + 2]
    if not following or following[0].phase != "think":
        return ""
    return space + row.content[following[0].start : following[0].end].rstrip()


def split_of(prompt_id: str, validation: float, seed: int) -> Split:
    """The split of the traces of a prompt, by a hash of seed and prompt. It does not depend on the order or number of
    traces, and all rollouts of a prompt have the same split."""
    return "validation" if _digest(seed, "split", prompt_id) / 2**64 < validation else "train"


def cut(row_id: str, text: str, split: Split, *, words: int, per_trace: int, seed: int) -> list[Segment]:
    """Up to per_trace windows of `words` words of the thinking, in their order in the text.

    They begin at different words, which depend only on seed and row id. A text no longer than a segment gives one window.
    """
    word_spans = [match.span() for match in WORD.finditer(text)]
    if not word_spans:
        return []
    starts = max(1, len(word_spans) - words + 1)
    return [
        Segment(
            f"{row_id}#{n}",
            row_id,
            split,
            word_spans[at][0],
            text[word_spans[at][0] : word_spans[min(at + words, len(word_spans)) - 1][1]],
        )
        for n, at in enumerate(_draw(starts, min(per_trace, starts), random.Random(_digest(seed, "starts", row_id))))
    ]


def segments(rows: Iterable[Row], section: Segments, *, seed: int, open_text: str, close_text: str) -> Cuts:
    """The segments of all traces, in their order.

    open_text, close_text: the markers of thinking, for rows that have no spans.

    Raises:
        DataError: two rows have the same id.
    """
    segments_of_rows: list[Segment] = []
    ids: set[str] = set()
    endings: set[str] = set()
    without = 0
    for row in rows:
        if row.id in ids:
            raise DataError(f"row {row.id!r}: occurs twice among the traces; give each response its own id")
        ids.add(row.id)
        text = thinking(row, open_text, close_text)
        if text is None:
            without += 1
            continue
        split = split_of(row.prompt_id, section.validation, seed)
        closing, end = ending(row, text, close_text), len(text.rstrip())
        endings |= {closing} - {""}
        segments_of_rows += [
            replace(segment, text=segment.text + closing) if segment.start + len(segment.text) == end else segment
            for segment in cut(row.id, text, split, words=section.words, per_trace=section.per_trace, seed=seed)
        ]
    return Cuts(segments_of_rows, len(ids), without, frozenset(endings))


def _digest(seed: int, purpose: str, name: str) -> int:
    """A number below 2^64."""
    data = json.dumps([seed, purpose, name]).encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _draw(numbers: int, count: int, rng: random.Random) -> list[int]:
    """`count` different numbers below `numbers`, sorted (Floyd's algorithm). Uses only random(), whose values are the same
    in every version of Python, so that all versions give the same segments."""
    chosen: set[int] = set()
    for last in range(numbers - count, numbers):
        pick = int(rng.random() * (last + 1))
        chosen.add(last if pick in chosen else pick)
    return sorted(chosen)
