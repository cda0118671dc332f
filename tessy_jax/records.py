"""The row of a response: its messages, who wrote which part of it, and how it came about. One JSON object each."""

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
Key = tuple[str, int]
"""What identifies a response: (prompt id, rollout)."""


def response_id(key: Key) -> str:
    """The id of a response."""
    return f"{key[0]}/{key[1]}"


SOURCES: tuple[Source, ...] = get_args(Source)
"""Who wrote a byte; its place here is bits 0 and 1 of the byte's code."""
PHASES: tuple[Phase, ...] = get_args(Phase)
"""What a byte is part of; its place here is bit 2 of the byte's code."""
PHASE_BIT = 4


def code(source: Source, phase: Phase) -> int:
    """The uint8 that marks a byte of a response: its place in SOURCES, plus PHASE_BIT in the answer."""
    return SOURCES.index(source) | PHASE_BIT * PHASES.index(phase)


CODES: dict[int, tuple[Source, Phase]] = {code(source, phase): (source, phase) for source in SOURCES for phase in PHASES}
"""What each code means."""


@dataclass(frozen=True, slots=True)
class Span:
    """Code points start…end−1 of the assistant's content: who wrote them, and in which phase. `template`: neither model."""

    source: Source
    phase: Phase
    start: int
    end: int


@dataclass(frozen=True)
class Row:
    """One response.

    id: of the response, unique in its run. prompt_id, rollout: which response to which prompt it is; together unique, too.
    messages: role and content each, the assistant's last. spans: tile its content. meta: flat; the writer gives model names
    and revisions, recipe, preset, step sizes, seed, attempt, finish_reason, tokens_student, tokens_teacher,
    tokens_discarded, switches, student_nll and teacher_nll where both were computed, wall seconds, version of this package.
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
        """What rows are sorted by to stand in the order of the input."""
        return int(self.meta.get("index") or 0), self.rollout, self.id

    @property
    def content(self) -> str:
        """What the assistant wrote."""
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
        """The row of a JSON object, validated.

        Raises:
            DataError: it is no row; see `validate`.
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
    """A response that could not be had. reason: short, for counting. attempts: how many were made. detail: the rest."""

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
            DataError: it is none; the message names the key and what it should hold.
        """
        failure = cls(**_object(data, cls, "failure"))
        validate_failure(failure)
        return failure


def validate(row: Row) -> None:
    """Checks that a row is what every reader may rely on.

    Raises:
        DataError: an id is empty or no text, the messages are not role and content with the assistant's last and not
            empty, the spans do not tile its content, a source or phase is unknown, or meta is not flat JSON.
    """
    _check_ids(row.id, row.prompt_id, row.rollout, "row")
    name = f"row {row.id!r}"
    if not row.messages:
        raise DataError(f"{name}: messages is empty; it should end with the assistant's message")
    for i, message in enumerate(row.messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            found = ", ".join(sorted(map(str, message))) if isinstance(message, dict) else f"a {type(message).__name__}"
            raise DataError(f"{name}: messages[{i}] holds {found}; it should hold role and content, and nothing else")
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
            found = repr(value) if isinstance(value, float) else f"a {type(value).__name__}"
            raise DataError(f"{name}: meta.{key} is {found}; it should be a string, a finite number, true, false or null")
        if isinstance(value, str):
            _check_text(value, f"{name}: meta.{key}")


def validate_failure(failure: Failure) -> None:
    """Checks the fields of a failure.

    Raises:
        DataError: an id or the reason is empty or no text, or a count is none.
    """
    _check_ids(failure.id, failure.prompt_id, failure.rollout, "failure")
    name = f"failure {failure.id!r}"
    _check_text(failure.reason, f"{name}: reason")
    _check_text(failure.detail, f"{name}: detail")
    if not failure.reason:
        raise DataError(f"{name}: reason is empty; say in a word or two why it failed")
    if type(failure.attempts) is not int or failure.attempts < 0:
        raise DataError(f"{name}: attempts is {failure.attempts!r}; it should be a whole number from 0")


def spans_from_bytes(text: bytes, codes: NDArray[np.uint8]) -> tuple[str, tuple[Span, ...]]:
    """A response and its spans, from its UTF-8 and the code of every byte: codes uint8 [len(text)], as `code` gives them.

    Neighbours of equal code are one span, so that spans are as few as can be.

    Raises:
        DataError: not one known code per byte, not UTF-8, or a change of code inside a character.
    """
    if codes.shape != (len(text),) or codes.dtype != np.uint8:
        raise DataError(f"{len(text)} bytes come with codes {codes.dtype}{list(codes.shape)}; give one uint8 per byte")
    unknown = set(np.unique(codes).tolist()) - set(CODES)
    if unknown:
        raise DataError(f"the codes {sorted(unknown)} are unknown; make them with code(source, phase): {sorted(CODES)}")
    try:
        content = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start} of a response is not UTF-8 ({error.reason}); keep whole characters") from None
    starts = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80  # all but continuation bytes
    cuts = np.flatnonzero(codes[1:] != codes[:-1]) + 1
    inside = cuts[~starts[cuts]]
    if inside.size:
        raise DataError(f"the writer changes at byte {inside[0]}, inside a character; change where a character begins")
    if not text:
        return content, ()
    firsts = np.concatenate([[0], cuts])  # bytes at which spans begin
    points = [*np.concatenate([[0], np.cumsum(starts)])[firsts].tolist(), len(content)]
    kinds = [CODES[c] for c in codes[firsts].tolist()]
    return content, tuple(Span(*kind, *ends) for kind, ends in zip(kinds, pairwise(points), strict=True))


def legacy(row: Row) -> dict[str, Any]:
    """The form of the released data set: `id_ddm` (the response's id) and `dialogs` (role and content)."""
    return {"id_ddm": row.id, "dialogs": row.to_json()["messages"]}


def _object(data: Any, kind: type, name: str) -> dict[str, Any]:
    """A JSON object with exactly the fields of a dataclass."""
    if not isinstance(data, dict):
        raise DataError(f"{name}: is a {type(data).__name__}; it should be an object")
    names = {field.name for field in fields(kind)}
    missing, extra = sorted(names - set(data)), sorted(map(str, set(data) - names))
    if missing or extra:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"holds {', '.join(extra)} besides"] * bool(extra)
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
        raise DataError(f"{name} holds half of a surrogate pair at {error.start}, which is no text; remove it") from None


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
            raise DataError(f"{name}: spans[{i}] is of {span.source!r} in {span.phase!r}; {known}")
        if type(span.start) is not int or type(span.end) is not int or span.start != at or span.end <= at:
            raise DataError(
                f"{name}: spans[{i}] is {span.start!r}…{span.end!r}; it should begin at {at} and hold at least a character"
            )
        at = span.end
    if at != length:
        raise DataError(f"{name}: the spans end at {at}; they should end with the content, at {length} code points")
