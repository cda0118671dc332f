"""Segments are verbatim and depend only on seed and trace, and no prompt is on both sides of the split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.boundary.annotate import with_endings
from tessy_jax.boundary.segments import Segment, cut, segments, split_of, thinking
from tessy_jax.boundary.spans import Annotation, Dropped, Range
from tessy_jax.config.predictors import Segments
from tessy_jax.errors import DataError
from tessy_jax.records import Row, Span

OPEN, CLOSE = "<think>\n", "\n</think>\n\n"
text = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t\u2003ab")), max_size=200)


def row(content, spans=(), *, prompt="p", rollout=0):
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": content})
    return Row(f"{prompt}/{rollout}", prompt, rollout, messages, tuple(spans), {})


def test_the_thinking_comes_from_the_spans_or_from_the_markers():
    spanned = [
        Span("template", "think", 0, 8),
        Span("student", "think", 8, 10),
        Span("teacher", "think", 10, 12),
        Span("template", "think", 12, 23),
        Span("student", "answer", 23, 24),
    ]
    assert thinking(row(f"{OPEN}abcd{CLOSE}x", spanned), "?", "?") == "abcd"
    for content in (f"{OPEN}abcd{CLOSE}x", f"abcd{CLOSE}x", "<think>abcd</think>x", "<think>abcd</think>"):
        assert thinking(row(content), OPEN, CLOSE).strip() == "abcd"


@pytest.mark.parametrize(("opens", "closes"), [("```python\n", "\n```\n\n"), ("```\n", "\n```\n\n"), ("(", ")")])
def test_markers_may_share_characters(opens, closes):
    assert thinking(row(f"{opens}a b{closes}{opens}c{closes}"), opens, closes).strip() == "a b"


@pytest.mark.parametrize("content", ["42", "<think>\nnever closed", f"{OPEN} {CLOSE}42", f"{CLOSE}42"])
def test_a_trace_without_thinking_has_none(content):
    assert thinking(row(content), OPEN, CLOSE) is None


def test_spans_of_only_an_answer_have_no_thinking():
    assert thinking(row("42", [Span("student", "answer", 0, 2)]), OPEN, CLOSE) is None


@given(text, st.integers(1, 8), st.integers(1, 6), st.integers(0, 3))
def test_segments_are_verbatim_windows_of_complete_words_at_different_places(trace, words, per_trace, seed):
    result = cut("r", trace, "train", words=words, per_trace=per_trace, seed=seed)
    count = len(trace.split())
    assert len(result) == (min(per_trace, max(1, count - words + 1)) if count else 0)
    assert len({s.start for s in result}) == len(result)
    assert [s.id for s in result] == [f"r#{n}" for n in range(len(result))]
    assert [s.start for s in result] == sorted(s.start for s in result)
    for s in result:
        assert s.text == trace[s.start : s.start + len(s.text)]
        assert s.text == s.text.strip()
        assert len(s.text.split()) == min(words, count)
        assert s.text.split() == trace.split()[len(trace[: s.start].split()) :][:words]


def test_places_depend_on_seed_and_trace_and_cover_the_trace():
    trace = " ".join(map(str, range(50)))
    first = [cut(f"r{i}", trace, "train", words=5, per_trace=3, seed=0) for i in range(200)]
    assert first == [cut(f"r{i}", trace, "train", words=5, per_trace=3, seed=0) for i in range(200)]
    assert [s.start for s in first[0]] != [s.start for s in cut("r0", trace, "train", words=5, per_trace=3, seed=1)]
    first_words = {s.text.split()[0] for cuts in first for s in cuts}
    assert first_words == {str(i) for i in range(46)}


def test_the_split_is_by_prompt_independent_of_order_and_of_the_configured_size():
    rows = [row(f"{OPEN}a b c{CLOSE}x", prompt=f"p{i}", rollout=j) for i in range(500) for j in range(3)]
    section = Segments(words=2, per_trace=2, validation=0.2)
    cuts = segments(rows, section, seed=1, open_text=OPEN, close_text=CLOSE)
    sides = {}
    for s in cuts.segments:
        sides.setdefault(s.trace.split("/")[0], set()).add(s.split)
    assert all(len(side) == 1 for side in sides.values())
    validation = sum(side == {"validation"} for side in sides.values())
    assert 70 <= validation <= 130
    backwards = segments(rows[::-1], section, seed=1, open_text=OPEN, close_text=CLOSE)
    assert sorted(backwards.segments, key=lambda s: s.id) == sorted(cuts.segments, key=lambda s: s.id)
    assert split_of("p", 0.2, 0) in ("train", "validation")


def test_traces_without_thinking_are_counted_and_an_id_may_occur_once():
    rows = [row("no", prompt="a"), row(f"{OPEN}yes{CLOSE}x", prompt="b")]
    cuts = segments(rows, Segments(), seed=0, open_text=OPEN, close_text=CLOSE)
    assert (len(cuts.segments), cuts.traces, cuts.without) == (1, 2, 1)
    with pytest.raises(DataError, match="row 'a/0': occurs twice"):
        segments([*rows, rows[0]], Segments(), seed=0, open_text=OPEN, close_text=CLOSE)


@pytest.mark.parametrize("spanned", [True, False])
def test_a_segment_at_the_end_of_closed_thinking_includes_the_closing_marker(spanned):
    spans = [
        Span("template", "think", 0, 8),
        Span("student", "think", 8, 15),
        Span("template", "think", 15, 26),
        Span("student", "answer", 26, 27),
    ]
    rows = [row(f"{OPEN}a b c d{CLOSE}x", spans if spanned else [], prompt="p")]
    cuts = segments(rows, Segments(words=2, per_trace=9), seed=0, open_text=OPEN, close_text=CLOSE)
    assert [s.text for s in cuts.segments] == ["a b", "b c", "c d\n</think>"]
    assert cuts.endings == {"\n</think>"}
    if spanned:
        open_ended = [row(f"{OPEN}a b c d", spans[:2], prompt="p")]
        cuts = segments(open_ended, Segments(words=2, per_trace=9), seed=0, open_text=OPEN, close_text=CLOSE)
        assert [s.text for s in cuts.segments] == ["a b", "b c", "c d"]
        assert not cuts.endings


def test_the_closing_marker_is_style_and_annotators_do_not_see_it():
    class Last:
        name, at_once = "last", 9

        def annotate(self, segments):
            assert all("think" not in segment.text for segment in segments)
            return [
                Dropped(s, "empty", "[]")
                if s.text == "no"
                else Annotation(s, (Range(len(s.text) - 1, len(s.text)),), "last")
                for s in segments
            ]

    texts = ["x = 3.\n</think>", "x = 4.", "no\n</think>"]
    originals = [Segment(f"r#{i}", "r", "train", 0, text) for i, text in enumerate(texts)]
    first, second, third = with_endings(Last(), originals, {"\n</think>", "</think>"})
    assert (first.segment, first.spans) == (originals[0], (Range(5, 15),))
    assert (second.segment, second.spans) == (originals[1], (Range(5, 6),))
    assert (third.segment, third.outcome) == (originals[2], "empty")
