"""Responses are steps and answer in the words of a style, tiled by spans that say which is which."""

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
def test_spans_tile_a_response_and_capability_is_the_steps_and_the_answer(found, speaker, mixed, seed):
    response = render(found, speaker, stream(seed), mixed=mixed)
    tiles(response.thinking, response.thinking_spans)
    tiles(response.answer, response.answer_spans)
    assert texts(response.thinking, response.thinking_spans, "capability") == [f" {step}" for step in found.steps]
    assert texts(response.answer, response.answer_spans, "capability") == [f" {found.answer}"]
    assert "  " not in response.thinking + response.answer
    assert response == render(found, speaker, stream(seed), mixed=mixed)


@given(any_item, speakers, st.integers(0, 2**40))
def test_a_response_that_is_not_mixed_holds_the_speakers_phrases_only(found, speaker, seed):
    style, response = STYLES[speaker], render(found, speaker, stream(seed))
    first, *between, last = texts(response.thinking, response.thinking_spans, "style")
    openers, connectives, closers = (
        "|".join(map(re.escape, phrases)) for phrases in (style.openers, style.connectives, style.closers)
    )
    assert re.fullmatch(f"(?:{openers}) (?:{connectives})", first)
    assert all(re.fullmatch(f" (?:{connectives})", text) for text in between)
    assert re.fullmatch(f" (?:{closers})", last)
    assert response.answer in {f"{a} {found.answer} {b}".strip() for a, b in style.framings}


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_mixed_responses_take_half_of_their_connectives_from_the_other(speaker):
    own, every = Counter(), 0
    for found in islice(items("A", "train", 0), 500):
        response = render(found, speaker, stream(found.id), mixed=True)
        for text in texts(response.thinking, response.thinking_spans, "style")[1:-1]:
            own[text.strip() in STYLES[speaker].connectives] += 1
            every += 1
    assert 0.45 < own[True] / every < 0.55


def test_no_phrase_begins_another_where_both_could_stand():
    behind_a_step = [phrase for style in STYLES.values() for phrase in (*style.connectives, *style.closers)]
    openers = [phrase for style in STYLES.values() for phrase in style.openers]
    framings = [before for style in STYLES.values() for before, _ in style.framings]
    for phrases in (behind_a_step, openers, framings):
        assert len(set(phrases)) == len(phrases)
        for one, other in permutations(phrases, 2):
            assert not f"{other} ".startswith(f"{one} ")


def test_the_styles_share_no_phrase():
    student, teacher = (set(STYLES[speaker].phrases) - {"."} for speaker in SPEAKERS)
    assert not student & teacher


def test_words_do_not_give_the_kind_away():
    """Words of both kinds are no rarity, also where the kind changes."""
    kinds, first = {"style": Counter(), "capability": Counter()}, {"style": set(), "capability": set()}
    for family in FAMILIES:
        for found in islice(items(family, "train", 0), 200):
            for speaker in SPEAKERS:
                response = render(found, speaker, stream(found.id), mixed=True)
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
def test_tiles_are_as_few_as_can_be(phrases):
    text, spans = tile(phrases)
    assert text == " ".join(phrase for _, phrase in phrases if phrase)
    tiles(text, spans)
