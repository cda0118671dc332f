"""Responses contain steps and answer among phrases of a style, and spans of style and capability tile them."""

import re
from collections import Counter
from itertools import islice, pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.mini.styles import STYLES, render, tile
from tessy_jax.mini.tasks import FAMILIES, SPLITS, item, items, stream

SPEAKERS = tuple(STYLES)
any_item = st.builds(item, st.sampled_from(FAMILIES), st.sampled_from(SPLITS), st.integers(0, 9), st.integers(0, 2**40))
speakers = st.sampled_from(SPEAKERS)


def texts(text, spans, kind):
    return [text[span.start : span.end] for span in spans if span.kind == kind]


def tiles(text, spans):
    assert "".join(text[span.start : span.end] for span in spans) == text
    assert all(a.kind != b.kind for a, b in pairwise(spans))
    assert all(span.start < span.end for span in spans)


@given(any_item, speakers, st.booleans(), st.integers(0, 2**40))
def test_spans_tile_a_response_and_capability_is_the_steps_and_the_answer(task, speaker, mixed, seed):
    response = render(task, speaker, stream(seed), mixed=mixed)
    tiles(response.thinking, response.thinking_spans)
    tiles(response.answer, response.answer_spans)
    assert texts(response.thinking, response.thinking_spans, "capability") == [f" {step}" for step in task.steps]
    assert texts(response.answer, response.answer_spans, "capability") == [f" {task.answer}"]
    assert "  " not in response.thinking + response.answer
    assert response == render(task, speaker, stream(seed), mixed=mixed)


@given(any_item, speakers, st.integers(0, 2**40))
def test_a_response_that_is_not_mixed_has_only_phrases_of_its_speaker(task, speaker, seed):
    style, response = STYLES[speaker], render(task, speaker, stream(seed))
    first, *between, last = texts(response.thinking, response.thinking_spans, "style")
    openers, connectives, closers = (
        "|".join(map(re.escape, phrases)) for phrases in (style.openers, style.connectives, style.closers)
    )
    assert re.fullmatch(f"(?:{openers}) (?:{connectives})", first)
    assert all(re.fullmatch(f" (?:{connectives})", text) for text in between)
    assert re.fullmatch(f" (?:{closers})", last)
    assert response.answer in {f"{a} {task.answer} {b}".strip() for a, b in style.framings}


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_mixed_responses_take_half_of_their_connectives_from_the_other_style(speaker):
    own, total = Counter(), 0
    for task in islice(items("A", "train", 0), 500):
        response = render(task, speaker, stream(task.id), mixed=True)
        for text in texts(response.thinking, response.thinking_spans, "style")[1:-1]:
            own[text.strip() in STYLES[speaker].connectives] += 1
            total += 1
    assert 0.45 < own[True] / total < 0.55


def test_no_phrase_is_a_prefix_of_another_in_the_same_position():
    after_a_step = [phrase for style in STYLES.values() for phrase in (*style.connectives, *style.closers)]
    openers = [phrase for style in STYLES.values() for phrase in style.openers]
    framings = [before for style in STYLES.values() for before, _ in style.framings]
    for phrases in (after_a_step, openers, framings):
        assert len(set(phrases)) == len(phrases)
        for phrase, other in permutations(phrases, 2):
            assert not f"{other} ".startswith(f"{phrase} ")


def test_the_styles_share_no_phrase():
    student, teacher = (set(STYLES[speaker].phrases) - {"."} for speaker in SPEAKERS)
    assert not student & teacher


def test_words_alone_do_not_determine_their_kind():
    """Words of both kinds are frequent, also at the beginning of spans."""
    kinds, first = {"style": Counter(), "capability": Counter()}, {"style": set(), "capability": set()}
    for family in FAMILIES:
        for task in islice(items(family, "train", 0), 200):
            for speaker in SPEAKERS:
                response = render(task, speaker, stream(task.id), mixed=True)
                for span in response.thinking_spans:
                    words = response.thinking[span.start : span.end].split()
                    kinds[span.kind].update(words)
                    first[span.kind].add(words[0])
    both = kinds["style"].keys() & kinds["capability"].keys()
    assert {"a", "1", "we", "so", "now", "then"} <= both
    for counts in kinds.values():
        assert sum(counts[word] for word in both) / counts.total() > 0.1
    assert "we" in first["style"] & first["capability"]


@given(st.lists(st.tuples(st.sampled_from(["style", "capability"]), st.sampled_from(["", "a", "b c", "é ."]))))
def test_the_number_of_tiles_is_minimal(phrases):
    text, spans = tile(phrases)
    assert text == " ".join(phrase for _, phrase in phrases if phrase)
    tiles(text, spans)
