"""Style spans of a segment: the instruction for an annotator, its reply, and the JSON form of annotations.

Each line of an annotation file holds one object, which people may correct by hand:
`{"id", "trace", "split", "start", "text", "spans": [{"start", "end", "text"}], "annotator"}`. The offsets of spans are code
points of the segment's text. Spans are sorted and disjoint. Each span repeats its text, so that errors are detected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple, Self, get_args

from tessy_jax.boundary.segments import Segment, Split
from tessy_jax.errors import DataError
from tessy_jax.store.messages import encodable

Reason = Literal["unparsable", "unmatched", "empty", "truncated", "reasoning", "refused", "failed"]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Why a segment has no annotation. The reply: holds no array of strings; names a phrase that the text does not contain in
this order; names nothing; ends at the token limit; holds only reasoning; is a refusal; does not exist."""

INSTRUCTION = """\
Below, between the lines of dashes, is an excerpt from what a language model thought while it worked on a problem. It may \
begin and end in the middle of a sentence.

Some of its words do the work: facts, names, formulas, numbers, code, steps of reasoning and what follows from them. The \
others only set the tone. They hesitate ("Hmm,", "wait"), lead from one thing to the next ("Okay, so", "but then"), \
announce what comes ("let me check that again"), or describe the current step ("we need to", "the problem asks us to").

List every stretch of words that only set the tone, in the order in which they stand in the excerpt. Copy each one exactly, \
character by character; change, complete and explain nothing. Where words of both kinds stand in one sentence, copy only \
those that set the tone, as short stretches of their own.

Answer with one JSON array of strings and nothing else, for example ["Okay, so", "let me check"]. If there is no such \
stretch, answer [].

----------
{text}
----------"""

THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


class Range(NamedTuple):
    """The code points start … end−1 of a segment's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """A segment and its style spans. annotator: the name of the annotator."""

    segment: Segment
    spans: tuple[Range, ...]
    annotator: str

    def to_json(self) -> dict[str, Any]:
        """The annotation as a JSON object."""
        text = self.segment.text
        spans = [{"start": start, "end": end, "text": text[start:end]} for start, end in self.spans]
        return {**asdict(self.segment), "spans": spans, "annotator": self.annotator}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """A validated annotation, from a JSON object.

        Raises:
            DataError: keys are missing or unknown, values have the wrong type, or spans are empty, out of range, out of
                order, overlapping, or not verbatim.
        """
        given = _object(data, {*(f.name for f in fields(Segment)), "spans", "annotator"}, "the annotation")
        annotator, spans = given.pop("annotator"), given.pop("spans")
        segment = segment_from(given)
        _check(isinstance(annotator, str), f"annotator is a {type(annotator).__name__}; it should be a string")
        _check(isinstance(spans, list), f"spans is a {type(spans).__name__}; it should be a list")
        ranges: list[Range] = []
        for i, span in enumerate(spans):
            ranges.append(_span(span, segment.text, ranges[-1].end if ranges else 0, f"spans[{i}]"))
        return cls(segment, tuple(ranges), annotator)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A segment without an annotation. outcome: the reason. detail: the reply, or the error."""

    segment: Segment
    outcome: Reason
    detail: str

    def to_json(self) -> dict[str, Any]:
        """The dropped segment as a JSON object."""
        detail = self.detail.encode("utf-8", "replace").decode("utf-8")  # a reply may contain halves of surrogate pairs
        return {**asdict(self.segment), "outcome": self.outcome, "detail": detail}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """A validated dropped segment, from a JSON object.

        Raises:
            DataError: the object is not a dropped segment.
        """
        given = _object(data, {*(f.name for f in fields(Segment)), "outcome", "detail"}, "the dropped segment")
        outcome, detail = given.pop("outcome"), given.pop("detail")
        _check(outcome in REASONS, f"outcome is {outcome!r}; it should be one of {', '.join(REASONS)}")
        _check(isinstance(detail, str), f"detail is a {type(detail).__name__}; it should be a string")
        return cls(segment_from(given), outcome, detail)


Outcome = Annotation | Dropped


@dataclass(frozen=True)
class Annotations:
    """The annotations of a file. skipped: place (file:line) and reason of each line that is not an annotation."""

    kept: list[Annotation]
    skipped: list[tuple[str, str]] = field(default_factory=list)


def read_annotations(data: bytes, name: str, *, skip_invalid: bool = False) -> Annotations:
    """The annotations of a JSONL file. name: of the file, for errors. skip_invalid: invalid lines are recorded, not refused.

    Raises:
        DataError: a line is not an annotation or repeats an id; names file and line.
    """
    annotations = Annotations([])
    lines: dict[str, int] = {}
    for number, parsed in json_lines(data):
        try:
            if isinstance(parsed, DataError):
                raise parsed
            annotation = Annotation.from_json(parsed)
            first = lines.setdefault(annotation.segment.id, number)
            _check(first == number, f"id is {annotation.segment.id!r}, as on line {first}; keep one of the two")
        except DataError as error:
            if not skip_invalid:
                raise DataError(f"{name}:{number}: {error}") from None
            annotations.skipped.append((f"{name}:{number}", str(error)))
        else:
            annotations.kept.append(annotation)
    return annotations


def json_lines(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and object of every line that is not blank; a DataError in place of the object if the line is not JSON."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):  # U+2028 may occur in a string
        if line.strip():
            try:
                yield number, json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # invalid UTF-8 is also a ValueError
                yield number, DataError(f"is not JSON ({error}); write one object per line, in UTF-8")


def locate(text: str, phrases: Sequence[str]) -> tuple[tuple[Range, ...], str | None]:
    """The ranges of phrases, each searched from the end of the previous one; and the first phrase that is missing, or None.

    White space at the ends of a phrase is ignored; a blank phrase is always missing.
    """
    ranges: list[Range] = []
    at = 0
    for phrase in phrases:
        bare = phrase.strip()
        start = text.find(bare, at) if bare else -1
        if start < 0:
            return tuple(ranges), phrase
        at = start + len(bare)
        ranges.append(Range(start, at))
    return tuple(ranges), None


def parse_reply(reply: str) -> list[str] | None:
    """The JSON array of strings in a reply, or None.

    Thinking before the array (<think>…</think>, or only its end if the template opens it), code fences and surrounding prose
    are ignored. The last of several arrays of strings counts, because models correct themselves.
    """
    reply = spoken(reply)
    decoder = json.JSONDecoder(strict=False)  # allows line breaks inside strings
    phrases: list[str] | None = None
    at = reply.find("[")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(reply, at)
        except ValueError:
            end = at + 1
        except RecursionError:  # too many nested brackets
            break
        else:
            if all(isinstance(item, str) for item in value):
                phrases = value
        at = reply.find("[", end)
    return phrases


def spoken(reply: str) -> str:
    """A reply without the thinking before it; empty if the thinking never closes."""
    reply = THOUGHT.sub("", reply)
    reply = reply.rpartition("</think>")[2]
    return reply.partition("<think>")[0].strip()


def parse_reply_spans(segment: Segment, reply: str, annotator: str) -> Outcome:
    """The outcome of a model's reply about a segment.

    An empty array has the outcome "empty", like a blank reply, and is not kept. Nearly every 60 words of thinking contain
    style words, but models that ignore the instruction often reply with an empty array. Training on such replies would teach
    a predictor that style is capability. `Rules` is reliable, so its segments without spans are kept.
    """
    if not spoken(reply):
        return Dropped(segment, "empty", reply)
    phrases = parse_reply(reply)
    if phrases is None:
        return Dropped(segment, "unparsable", reply)
    if not phrases:
        return Dropped(segment, "empty", reply)
    spans, missing = locate(segment.text, phrases)
    if missing is not None:
        return Dropped(segment, "unmatched", f"{missing!r} of {reply}")
    return Annotation(segment, spans, annotator)


def segment_from(given: dict[str, Any]) -> Segment:
    """A validated segment, from its fields.

    Raises:
        DataError: a field is empty or has the wrong type.
    """
    for key in ("id", "trace", "text"):
        value = given[key]
        _check(isinstance(value, str) and bool(value), f"{key} is {_short(value)}; it should be a string that is not empty")
        encodable(value, key)
    split, start = given["split"], given["start"]
    _check(split in get_args(Split), f"split is {_short(split)}; it should be one of {', '.join(get_args(Split))}")
    _check(type(start) is int and start >= 0, f"start is {_short(start)}; it should be a whole number of at least 0")
    return Segment(**given)


def _span(span: Any, text: str, at: int, name: str) -> Range:
    given = _object(span, {"start", "end", "text"}, name)
    start, end, own = given["start"], given["end"], given["text"]
    if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(text):
        raise DataError(f"{name} is {start!r}…{end!r}; it should lie in the text, 0…{len(text)}")
    _check(start < end, f"{name} is {start}…{end}, which is empty; leave it out")
    _check(
        start >= at, f"{name} begins at {start}, before the previous span ends at {at}; sort the spans and remove overlaps"
    )
    _check(
        own == text[start:end],
        f"{name} has the text {_short(own)}, but {start}…{end} of the segment is {_short(text[start:end])}; correct one",
    )
    return Range(start, end)


def _object(data: Any, names: set[str], what: str) -> dict[str, Any]:
    """A copy of a JSON object that has exactly these keys."""
    _check(isinstance(data, dict), f"{what} is a {type(data).__name__}; it should be an object")
    missing, extra = sorted(names - set(data)), sorted(set(data) - names)
    parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has the unknown keys {', '.join(extra)}"] * bool(extra)
    _check(not parts, f"{what} {' and '.join(parts)}; its keys should be {', '.join(sorted(names))}")
    return dict(data)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DataError(otherwise)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
