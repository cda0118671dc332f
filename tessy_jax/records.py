"""The row of a response, one JSON object: its messages, the writer of each part, and the settings it was written with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from tessy_jax.errors import DataError

Source = Literal["student", "teacher", "template"]
Phase = Literal["think", "answer"]
Value = str | int | float | bool | None
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"
"""Markers of the thinking in saved text."""
Key = tuple[str, int]
"""The key of a response: (prompt id, rollout)."""


def response_id(key: Key) -> str:
    """The id of a response."""
    return f"{key[0]}/{key[1]}"


SOURCES: tuple[Source, ...] = get_args(Source)
"""Writers of a byte; the index is bits 0 and 1 of the byte's code."""
PHASES: tuple[Phase, ...] = get_args(Phase)
"""Phases of a byte; the index is bit 2 of the byte's code."""
PHASE_BIT = 4


def code(source: Source, phase: Phase) -> int:
    """The uint8 code of a byte of a response: the index in SOURCES, plus PHASE_BIT in the answer."""
    return SOURCES.index(source) | PHASE_BIT * PHASES.index(phase)


CODES: dict[int, tuple[Source, Phase]] = {code(source, phase): (source, phase) for source in SOURCES for phase in PHASES}
"""Writer and phase of each code."""


@dataclass(frozen=True, slots=True)
class Span:
    """The writer and phase of code points start…end−1 of the assistant's content. `template`: text of neither model."""

    source: Source
    phase: Phase
    start: int
    end: int


@dataclass(frozen=True)
class Row:
    """One response.

    id: the response's id, unique in its run.
    prompt_id, rollout: the prompt, and the number of the response to it; the pair is unique, too.
    messages: dicts of role and content; the assistant's message is the last.
    spans: tile the assistant's content.
    meta: a flat dict of model names and revisions, recipe, preset, step sizes, seed, attempt, finish_reason, tokens_student,
    tokens_teacher, tokens_discarded, switches, student_nll and teacher_nll if both are computed, wall seconds, and the
    version of this package.
    """

    id: str
    prompt_id: str
    rollout: int
    messages: tuple[dict[str, str], ...]
    spans: tuple[Span, ...]
    meta: Mapping[str, Value]

    @property
    def key(self) -> Key:
        """(prompt id, rollout)."""
        return self.prompt_id, self.rollout

    @property
    def place(self) -> tuple[int, int, str]:
        """The sort key for the order of the input."""
        return int(self.meta.get("index") or 0), self.rollout, self.id

    @property
    def content(self) -> str:
        """The content of the assistant's message."""
        return self.messages[-1]["content"]

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return {
            "id": self.id,
            "prompt_id": self.prompt_id,
            "rollout": self.rollout,
            "messages": [{"role": m["role"], "content": m["content"]} for m in self.messages],
            "spans": [{"source": s.source, "phase": s.phase, "start": s.start, "end": s.end} for s in self.spans],
            "meta": dict(self.meta),
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The validated row of a JSON object.

        Raises:
            DataError: the object is not a row; see `validate`.
        """
        given = _object(data, cls, "row")
        messages, spans = _objects(given["messages"], "messages"), _objects(given["spans"], "spans")
        row = cls(
            id=given["id"],
            prompt_id=given["prompt_id"],
            rollout=given["rollout"],
            messages=tuple(messages),
            spans=tuple(Span(**_object(span, Span, f"spans[{i}]")) for i, span in enumerate(spans)),
            meta=given["meta"],
        )
        validate(row)
        return row


@dataclass(frozen=True)
class Failure:
    """A failed response. reason: a short text, for counting. attempts: number of attempts. detail: further information."""

    id: str
    prompt_id: str
    rollout: int
    reason: str
    attempts: int
    detail: str = ""

    @property
    def key(self) -> Key:
        """(prompt id, rollout)."""
        return self.prompt_id, self.rollout

    def to_json(self) -> dict[str, Any]:
        """The failure as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The failure of a JSON object.

        Raises:
            DataError: the object is not a failure; the message names the key and the expected value.
        """
        failure = cls(**_object(data, cls, "failure"))
        validate_failure(failure)
        return failure


def validate(row: Row) -> None:
    """Checks the properties of a row that readers rely on.

    Raises:
        DataError: an id is empty or not text, a message is not role and content, the last message is not the assistant's or
            is empty, the spans do not tile its content, a source or phase is unknown, or meta is not flat JSON.
    """
    _check_ids(row.id, row.prompt_id, row.rollout, "row")
    name = f"row {row.id!r}"
    if not row.messages:
        raise DataError(f"{name}: messages is empty; it should end with the assistant's message")
    for i, message in enumerate(row.messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            content = ", ".join(sorted(map(str, message))) if isinstance(message, dict) else f"a {type(message).__name__}"
            raise DataError(f"{name}: messages[{i}] holds {content}; it should hold role and content, and nothing else")
        for part in ("role", "content"):
            _check_text(message[part], f"{name}: messages[{i}].{part}")
    if row.messages[-1]["role"] != "assistant":
        raise DataError(f"{name}: the last message is of {row.messages[-1]['role']!r}; it should be the assistant's")
    if not row.content:
        raise DataError(f"{name}: the assistant's message is empty; record a failure instead")
    _check_spans(row.spans, len(row.content), name)
    if not isinstance(row.meta, Mapping):
        raise DataError(f"{name}: meta is a {type(row.meta).__name__}; it should be an object")
    for key, value in row.meta.items():
        _check_text(key, f"{name}: a key of meta")
        if not isinstance(value, get_args(Value)) or (isinstance(value, float) and not math.isfinite(value)):
            shown = repr(value) if isinstance(value, float) else f"a {type(value).__name__}"
            raise DataError(f"{name}: meta.{key} is {shown}; it should be a string, a finite number, true, false or null")
        if isinstance(value, str):
            _check_text(value, f"{name}: meta.{key}")


def validate_failure(failure: Failure) -> None:
    """Checks the fields of a failure.

    Raises:
        DataError: an id or the reason is empty or not text, or rollout or attempts is not a whole number from 0.
    """
    _check_ids(failure.id, failure.prompt_id, failure.rollout, "failure")
    name = f"failure {failure.id!r}"
    _check_text(failure.reason, f"{name}: reason")
    _check_text(failure.detail, f"{name}: detail")
    if not failure.reason:
        raise DataError(f"{name}: reason is empty; it should name the cause of the failure in a word or two")
    if type(failure.attempts) is not int or failure.attempts < 0:
        raise DataError(f"{name}: attempts is {failure.attempts!r}; it should be a whole number from 0")


def spans_from_bytes(text: bytes, codes: NDArray[np.uint8]) -> tuple[str, tuple[Span, ...]]:
    """The content and spans of a response. text: its UTF-8. codes: uint8 [len(text)], the code of every byte (see `code`).

    Neighbouring bytes with equal codes are in one span, so the number of spans is minimal.

    Raises:
        DataError: the codes are not one known code per byte, the text is not UTF-8, or the code changes inside a character.
    """
    if codes.shape != (len(text),) or codes.dtype != np.uint8:
        raise DataError(f"{len(text)} bytes have codes {codes.dtype}{list(codes.shape)}; give one uint8 per byte")
    unknown = set(np.unique(codes).tolist()) - set(CODES)
    if unknown:
        raise DataError(f"the codes {sorted(unknown)} are unknown; use those of code(source, phase): {sorted(CODES)}")
    try:
        content = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start} of a response is not UTF-8 ({error.reason}); keep whole characters") from None
    starts = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80  # all but continuation bytes
    cuts = np.flatnonzero(codes[1:] != codes[:-1]) + 1
    inside = cuts[~starts[cuts]]
    if inside.size:
        raise DataError(f"the writer changes at byte {inside[0]}, inside a character; change it where a character begins")
    if not text:
        return content, ()
    firsts = np.concatenate([[0], cuts])  # first bytes of the spans
    points = [*np.concatenate([[0], np.cumsum(starts)])[firsts].tolist(), len(content)]
    kinds = [CODES[c] for c in codes[firsts].tolist()]
    return content, tuple(Span(*kind, *ends) for kind, ends in zip(kinds, pairwise(points), strict=True))


def legacy(row: Row) -> dict[str, Any]:
    """The row in the form of the released data set: `id_ddm` (the response's id) and `dialogs` (role and content)."""
    return {"id_ddm": row.id, "dialogs": row.to_json()["messages"]}


def _object(data: Any, kind: type, name: str) -> dict[str, Any]:
    """A JSON object with exactly the fields of a dataclass."""
    if not isinstance(data, dict):
        raise DataError(f"{name}: is a {type(data).__name__}; it should be an object")
    names = {field.name for field in fields(kind)}
    missing, extra = sorted(names - set(data)), sorted(map(str, set(data) - names))
    if missing or extra:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown keys {', '.join(extra)}"] * bool(extra)
        raise DataError(f"{name}: {' and '.join(parts)}; its keys should be {', '.join(sorted(names))}")
    return data


def _objects(data: Any, name: str) -> list[Any]:
    if not isinstance(data, list):
        raise DataError(f"row: {name} is a {type(data).__name__}; it should be a list")
    return data


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str):
        raise DataError(f"{name} is a {type(text).__name__}; it should be a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{name} holds half of a surrogate pair at {error.start}, which is not text; remove it") from None


def _check_ids(own: Any, prompt_id: Any, rollout: Any, name: str) -> None:
    for field, value, named in (("id", own, name), ("prompt_id", prompt_id, "prompt")):
        _check_text(value, f"{name}: {field}")
        if not value:
            raise DataError(f"{name}: {field} is empty; it should name the {named}")
    if type(rollout) is not int or rollout < 0:
        raise DataError(f"{name} {own!r}: rollout is {rollout!r}; it should be a whole number from 0")


def _check_spans(spans: tuple[Span, ...], length: int, name: str) -> None:
    at = 0
    for i, span in enumerate(spans):
        if span.source not in SOURCES or span.phase not in PHASES:
            known = f"source one of {', '.join(SOURCES)}, phase one of {', '.join(PHASES)}"
            raise DataError(f"{name}: spans[{i}] is of {span.source!r} in {span.phase!r}; it should have {known}")
        if type(span.start) is not int or type(span.end) is not int or span.start != at or span.end <= at:
            raise DataError(
                f"{name}: spans[{i}] is {span.start!r}…{span.end!r}; it should begin at {at} and have at least a character"
            )
        at = span.end
    if at != length:
        raise DataError(f"{name}: the spans end at {at}; they should end with the content, at {length} code points")
