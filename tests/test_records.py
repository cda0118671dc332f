"""Rows: complete validation, spans that tile the content of any text, and JSON that reads back."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.errors import DataError
from tessy_jax.records import CODES, Failure, Row, Span, code, legacy, spans_from_bytes, validate, validate_failure

CONTENT = "<think>\nOkay, 6×7 = 42 👨‍👩‍👧.\n</think>\n\n42"
SPANS = (Span("template", "think", 0, 8), Span("teacher", "think", 8, 26), Span("student", "answer", 26, len(CONTENT)))
ROW = Row(
    id="a/0",
    prompt_id="a",
    rollout=0,
    messages=({"role": "user", "content": "6×7?"}, {"role": "assistant", "content": CONTENT}),
    spans=SPANS,
    meta={"recipe": "tessy", "seed": 3, "student_nll": 0.5, "teacher_nll": None, "exact": True},
)
FAILURE = Failure("a/1", "a", 1, "repetition", 3, "an n-gram came 8 times")

# text that breaks every count but that of code points: emoji, joiners, CJK, combining marks, line separators, NUL, BOM
pieces = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
    st.sampled_from(
        ["👨‍👩‍👧", "🏳️‍🌈", "e\u0301", "漢字", "\u200d", "\u2028", "\x00", "\ufeff", "\r\n", "नि", "\U0010ffff", " ", "\n\n"]
    ),
)
written = st.lists(st.tuples(pieces, st.sampled_from(sorted(CODES))), max_size=12)


def assembled(parts):
    """Bytes, codes, and the runs of equal code as (code, text)."""
    text = "".join(piece for piece, _ in parts).encode()
    codes = np.concatenate([np.full(len(piece.encode()), c, np.uint8) for piece, c in parts] or [np.zeros(0, np.uint8)])
    runs = []
    for piece, c in parts:
        if runs and runs[-1][0] == c:
            runs[-1] = (c, runs[-1][1] + piece)
        else:
            runs.append((c, piece))
    return text, codes, runs


@given(written)
def test_spans_restore_the_writer_of_every_character_of_any_text(parts):
    text, codes, runs = assembled(parts)
    content, spans = spans_from_bytes(text, codes)
    assert content.encode() == text
    assert [(code(s.source, s.phase), content[s.start : s.end]) for s in spans] == runs
    if content:
        row = replace(ROW, messages=(*ROW.messages[:-1], {"role": "assistant", "content": content}), spans=spans)
        validate(row)
        line = json.dumps(row.to_json(), ensure_ascii=False).encode()
        assert b"\n" not in line
        assert Row.from_json(json.loads(line)) == row


@given(st.lists(pieces, min_size=1, max_size=8).map("".join), st.data())
def test_a_change_of_writer_inside_a_character_is_refused_and_between_characters_is_not(text, data):
    raw = text.encode()
    cut = data.draw(st.integers(0, len(raw)))
    codes = np.where(np.arange(len(raw)) < cut, code("student", "think"), code("teacher", "think")).astype(np.uint8)
    at_boundary = cut in np.cumsum([0, *(len(c.encode()) for c in text)])
    if at_boundary:
        assert spans_from_bytes(raw, codes)[0] == text
    else:
        with pytest.raises(DataError, match=f"at byte {cut}, inside a character"):
            spans_from_bytes(raw, codes)


@pytest.mark.parametrize(
    ("text", "codes", "says"),
    [
        (b"ab\xff", np.zeros(3, np.uint8), "byte 2 of a response is not UTF-8"),
        ("é".encode()[:1], np.zeros(1, np.uint8), "byte 0 .* not UTF-8"),
        (b"\xed\xa0\x80", np.zeros(3, np.uint8), "not UTF-8"),
        (b"ab", np.zeros(3, np.uint8), "2 bytes have codes"),
        (b"ab", np.zeros(2, np.int64), "give one uint8 per byte"),
        (b"ab", np.array([0, 3], np.uint8), r"codes \[3\] are unknown"),
    ],
)
def test_invalid_bytes_of_a_response_are_refused(text, codes, says):
    with pytest.raises(DataError, match=says):
        spans_from_bytes(text, codes)


def test_codes_are_those_of_the_decode_loop_with_the_answer_as_bit_two():
    from tessy_jax.decode import state

    for index, source in enumerate(("student", "teacher", "template")):
        assert (state.STUDENT, state.TEACHER, state.TEMPLATE)[index] == code(source, "think") == code(source, "answer") - 4
    assert len(CODES) == 6


def test_a_row_and_a_failure_read_back_unchanged():
    assert Row.from_json(json.loads(json.dumps(ROW.to_json()))) == ROW
    assert Failure.from_json(json.loads(json.dumps(FAILURE.to_json()))) == FAILURE
    assert list(ROW.to_json()) == ["id", "prompt_id", "rollout", "messages", "spans", "meta"]


def test_the_released_form_holds_the_id_and_the_dialog():
    assert legacy(ROW) == {"id_ddm": "a/0", "dialogs": list(ROW.messages)}


def assistant(content, **extra):
    return (ROW.messages[0], {"role": "assistant", "content": content, **extra})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": ""}, "id is empty"),
        ({"prompt_id": 7}, "prompt_id is a int"),
        ({"rollout": -1}, "rollout is -1"),
        ({"rollout": True}, "rollout is True"),
        ({"messages": ()}, "messages is empty"),
        ({"messages": ROW.messages[:1]}, "the last message is of 'user'"),
        ({"messages": assistant("")}, "record a failure instead"),
        ({"messages": assistant(CONTENT, thinking="x")}, "holds content, role, thinking; it should hold role and content"),
        ({"messages": assistant("\ud83d" + CONTENT[1:])}, "half of a surrogate pair at 0"),
        (
            {"messages": assistant(CONTENT + "!")},
            f"the spans end at {len(CONTENT)}; they should end .* at {len(CONTENT) + 1}",
        ),
        ({"spans": ()}, "the spans end at 0"),
        ({"spans": SPANS[:-1]}, "the spans end at 26"),
        ({"spans": SPANS[1:]}, r"spans\[0\] is 8…26; it should begin at 0"),
        ({"spans": (SPANS[0], replace(SPANS[1], start=7), SPANS[2])}, r"spans\[1\] is 7…26; it should begin at 8"),
        ({"spans": (Span("student", "think", 0, 0), *SPANS)}, r"spans\[0\] is 0…0; .* at least a character"),
        (
            {"spans": (replace(SPANS[0], source="annotator"), *SPANS[1:])},
            "'annotator' in 'think'; it should have source one of student",
        ),
        ({"spans": (replace(SPANS[0], phase="end"), *SPANS[1:])}, "phase one of think, answer"),
        ({"meta": {"a": {"b": 1}}}, "meta.a is a dict"),
        ({"meta": {"a": [1]}}, "meta.a is a list"),
        ({"meta": {"a": float("nan")}}, "meta.a is nan"),
        ({"meta": {1: "a"}}, "a key of meta is a int"),
        ({"meta": [1]}, "meta is a list"),
    ],
)
def test_an_invalid_row_is_refused_with_the_correction(change, says):
    with pytest.raises(DataError, match=says):
        validate(replace(ROW, **change))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "is a list; it should be an object"),
        ({k: v for k, v in ROW.to_json().items() if k != "spans"}, "lacks spans"),
        (ROW.to_json() | {"text": ""}, "has unknown keys text"),
        (ROW.to_json() | {"spans": None}, "spans is a NoneType"),
        (ROW.to_json() | {"spans": [{"source": "student"}]}, r"spans\[0\]: lacks end, phase, start"),
        (ROW.to_json() | {"messages": ["a"]}, r"messages\[0\] holds a str"),
    ],
)
def test_json_of_another_shape_is_refused(data, says):
    with pytest.raises(DataError, match=says):
        Row.from_json(data)


@pytest.mark.parametrize("change", [{"id": ""}, {"reason": ""}, {"reason": 3}, {"attempts": -1}, {"attempts": True}])
def test_a_failure_without_id_reason_or_count_is_refused(change):
    with pytest.raises(DataError):
        validate_failure(replace(FAILURE, **change))
