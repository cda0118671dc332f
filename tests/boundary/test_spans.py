"""Replies are parsed leniently and located strictly; an annotation that differs from its text is refused with its line."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.boundary.segments import Segment
from tessy_jax.boundary.spans import (
    INSTRUCTION,
    Annotation,
    Dropped,
    Range,
    locate,
    parse_reply,
    parse_reply_spans,
    read_annotations,
)
from tessy_jax.errors import DataError

SEGMENT = Segment("p/0#0", "p/0", "train", 3, "Okay, so x = 3. Wait, né 😀 x = 4")
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def line(**changes):
    return json.dumps(Annotation(SEGMENT, (Range(0, 8), Range(16, 21)), "me").to_json() | changes, ensure_ascii=False)


@st.composite
def annotations(draw):
    own = draw(text)
    edges = sorted(draw(st.sets(st.integers(0, len(own)), max_size=6)))
    spans = tuple(Range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False))
    return Annotation(Segment(draw(text), draw(text), "validation", draw(st.integers(0, 9)), own), spans, "me")


@given(st.lists(annotations(), max_size=4, unique_by=lambda a: a.segment.id))
def test_annotations_read_back_as_they_were_written(written):
    data = "\n\n".join(json.dumps(a.to_json(), ensure_ascii=False) for a in written)
    assert read_annotations(f"\ufeff{data}\r\n".encode(), "a.jsonl").kept == written


@given(annotations())
def test_the_texts_of_spans_are_located_at_their_place_or_earlier(annotation):
    phrases = [annotation.segment.text[a:b] for a, b in annotation.spans]
    spans, missing = locate(annotation.segment.text, phrases)
    if all(p.strip() for p in phrases):
        assert missing is None
        for span, phrase, own in zip(spans, phrases, annotation.spans, strict=True):
            assert annotation.segment.text[span.start : span.end] == phrase.strip()
            assert span.end <= own.end
        assert all(a.end <= b.start for a, b in pairwise(spans))
    else:
        assert not missing.strip()


def test_a_phrase_is_searched_from_the_end_of_the_previous_one():
    assert locate("so a so b so", ["so", "so"]) == ((Range(0, 2), Range(5, 7)), None)
    assert locate("so a so b", ["a", "so ", " b"]) == ((Range(3, 4), Range(5, 7), Range(8, 9)), None)
    assert locate("wait so", ["so", "wait"]) == ((Range(5, 7),), "wait")
    assert locate("aaa", ["aa", "aa"])[1] == "aa"
    assert locate("Wait", ["wait"]) == ((), "wait")
    assert locate("a b", [" "]) == ((), " ")


@pytest.mark.parametrize(
    "reply",
    [
        '["Okay, so", "Wait,"]',
        '```json\n["Okay, so", "Wait,"]\n```',
        'Sure! Here you are:\n["Okay, so",\n "Wait,"]\nThere are [2] of them.',
        '<think>["no", "these"] or [maybe</think>\n\n["Okay, so", "Wait,"]',
        'as the template opened it ["no"]</think>["Okay, so", "Wait,"]',
        '{"spans": ["Okay, so", "Wait,"]}',
        '["Okay,"] No, I forgot one: ["Okay, so", "Wait,"]',
        '[[1], {"a": [}] ["Okay, so", "Wait,"] [1, 2] [[',
    ],
)
def test_an_array_of_strings_is_found_in_any_surrounding_text(reply):
    assert parse_reply(reply) == ["Okay, so", "Wait,"]
    assert parse_reply_spans(SEGMENT, reply, "me") == Annotation(SEGMENT, (Range(0, 8), Range(16, 21)), "me")


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("[]", "empty"),
        ("<think>hm</think> []", "empty"),
        ('<think>["Okay, so"] but it never', "empty"),
        ("There is none.", "unparsable"),
        ('["Okay, so", "Wai', "unparsable"),
        ('["Okay, so", 3]', "unparsable"),
        ('[{"text": "Okay"}]', "unparsable"),
        ("[" * 50_000, "unparsable"),
        ('["okay, so"]', "unmatched"),
        ('["Okay so"]', "unmatched"),
        ('["Wait,", "Okay, so"]', "unmatched"),
        ('["Okay, so", ""]', "unmatched"),
        ('["\\ud83d"]', "unmatched"),
    ],
)
def test_every_other_reply_has_its_own_outcome(reply, outcome):
    dropped = parse_reply_spans(SEGMENT, reply, "me")
    assert dropped.outcome == outcome
    assert Dropped.from_json(json.loads(json.dumps(dropped.to_json(), ensure_ascii=False).encode())).segment == SEGMENT


@given(st.text(max_size=80))
def test_any_reply_has_an_outcome(reply):
    outcome = parse_reply_spans(SEGMENT, reply, "me")
    json.dumps(outcome.to_json(), ensure_ascii=False).encode()


def test_the_instruction_holds_the_excerpt_verbatim():
    assert "\n{x} [1]\n" in INSTRUCTION.format(text="{x} [1]")


SPAN = {"start": 16, "end": 21, "text": "Wait,"}
BAD = [
    ("{", "is not JSON"),
    ("3", "the annotation is a int; it should be an object"),
    (line(note=1), "the annotation has the unknown keys note; its keys should be annotator, id, "),
    ("{}", "the annotation lacks annotator, id, spans, split, start, text, trace"),
    (line(id=""), "id is ''; it should be a string that is not empty"),
    (line(trace=3), "trace is 3; "),
    (line(split="test"), "split is 'test'; it should be one of train, validation"),
    (line(start=-1), "start is -1; "),
    (line(annotator=None), "annotator is a NoneType"),
    (line(spans={}), "spans is a dict; it should be a list"),
    (line(spans=[[16, 21]]), r"spans\[0\] is a list; it should be an object"),
    (line(spans=[SPAN | {"end": 33}]), r"spans\[0\] is 16…33; it should lie in the text, 0…32"),
    (line(spans=[SPAN | {"start": -1}]), r"spans\[0\] is -1…21; it should lie in the text"),
    (line(spans=[SPAN | {"end": 21.0}]), r"spans\[0\] is 16…21.0; it should lie"),
    (line(spans=[{"start": 4, "end": 4, "text": ""}]), r"spans\[0\] is 4…4, which is empty; leave it out"),
    (line(spans=[SPAN, SPAN]), r"spans\[1\] begins at 16, before the previous span ends at 21"),
    (line(spans=[SPAN, {"start": 0, "end": 4, "text": "Okay"}]), r"spans\[1\] begins at 0, before"),
    (line(spans=[SPAN | {"text": "wait,"}]), r"spans\[0\] has the text 'wait,', but 16…21 of the segment is 'Wait,'"),
    (line(text="\ud800").replace("\ud800", "\\ud800"), "text holds half of a surrogate pair"),
    (line(), "id is 'p/0#0', as on line 1; keep one of the two"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_an_invalid_line_is_refused_with_its_number_or_recorded(bad, message):
    data = f"{line()}\n\n{bad}\n{line(id='q')}\n".encode()
    with pytest.raises(DataError, match=f"^a.jsonl:3: {message}"):
        read_annotations(data, "a.jsonl")
    annotations = read_annotations(data, "a.jsonl", skip_invalid=True)
    assert [a.segment.id for a in annotations.kept] == ["p/0#0", "q"]
    assert [where for where, _ in annotations.skipped] == ["a.jsonl:3"]


def test_an_annotation_may_have_no_spans():
    (kept,) = read_annotations(line(spans=[]).encode(), "a.jsonl").kept
    assert kept.spans == ()
