"""Labels follow the rule for every character, and the windows of training equal those of inference."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tessy_jax.boundary.labels import Crop, crops, shifted, token_labels
from tests.text.chunks import SPACES, WORDS

pieces = st.one_of(st.sampled_from(WORDS + SPACES), st.text(st.characters(exclude_categories=["Cs"]), max_size=4))
texts = st.lists(pieces, max_size=12).map("".join)


def reference(offsets, spans):
    """The rule of the method (section 3, step 4), character by character."""
    labels = []
    for start, end in offsets:
        in_style = any(a <= start < b for a, b in spans)
        holds_start = any(start <= a < end for a, _ in spans)
        labels.append(int(in_style or holds_start))
    return labels


@st.composite
def spans_of(draw, text):
    """Some spans of a text, sorted and disjoint; they may touch."""
    edges = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False) if a < b]


@pytest.fixture(scope="module", params=["qwen3", "gpt-oss", "deepseek-v3"])
def real(shared, request):
    return Tokenizer.from_file(str(shared / "tokenizers" / request.param / "tokenizer.json"))


@cache
def bytes_alone(trim: bool) -> Tokenizer:
    """A token per byte, so that every other character takes several; with or without the space in the offsets."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "s"), ("Ġs", "o"), ("Ġ", "Ġ")]
    vocab = {name: i for i, name in enumerate([*alphabet, "Ġs", "Ġso", "ĠĠ"])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    return tokenizer


@given(st.data())
def test_labels_equal_the_rule_for_any_offsets(data):
    offsets = data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)).map(lambda x: (x[0], x[0] + x[1]))))
    spans = data.draw(spans_of("x" * 30))
    assert token_labels(np.array(offsets, np.int64), spans).tolist() == reference(offsets, spans)


@settings(deadline=None)
@given(data=st.data())
def test_labels_equal_the_rule_with_real_tokenizers(real, data):
    text = data.draw(texts)
    spans = data.draw(spans_of(text))
    offsets = real.encode(text, add_special_tokens=False).offsets
    labels = token_labels(np.array(offsets, np.int64).reshape(-1, 2), spans)
    assert labels.tolist() == reference(offsets, spans)
    for (start, end), label in zip(offsets, labels.tolist(), strict=True):
        assert 0 <= start <= end <= len(text)
        if all(b <= start or end <= a for a, b in spans) and start < end:
            assert label == 0, "a token outside of all spans is capability"
        if any(a <= start and end <= b for a, b in spans) and start < end:
            assert label == 1, "a token inside of a span is style"


@settings(deadline=None)
@given(data=st.data())
def test_a_span_of_the_complete_text_is_all_style_and_no_span_is_all_capability(real, data):
    text = data.draw(texts.filter(bool))
    offsets = np.array(real.encode(text, add_special_tokens=False).offsets)
    assert token_labels(offsets, [(0, len(text))]).all()
    assert not token_labels(offsets, []).any()


@pytest.mark.parametrize("trim", [True, False])
@settings(deadline=None)
@given(data=st.data())
def test_tokens_that_share_a_character_have_one_label(trim, data):
    text = data.draw(texts)
    spans = data.draw(spans_of(text))
    encoding = bytes_alone(trim).encode(text)
    labels = token_labels(np.array(encoding.offsets, np.int64).reshape(-1, 2), spans)
    assert labels.tolist() == reference(encoding.offsets, spans)
    inside = {i for a, b in spans for i in range(a, b)}
    for (start, end), label in zip(encoding.offsets, labels.tolist(), strict=True):
        if end - start == 1:
            assert label == (start in inside)


@pytest.mark.parametrize("trim", [True, False])
def test_a_leading_space_makes_no_difference_wherever_offsets_count_it(trim):
    encoding = bytes_alone(trim).encode("x so y")
    assert encoding.tokens == ["x", "Ġso", "Ġ", "y"]
    assert encoding.offsets[1] == ((2, 4) if trim else (1, 4))
    assert token_labels(np.array(encoding.offsets), [(2, 4)]).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("span", "labels"),
    [
        ((0, 4), [1, 0, 0, 0]),  # from the start of the segment
        ((2, 4), [1, 0, 0, 0]),  # begins inside a token
        ((2, 6), [1, 1, 1, 0]),  # ends inside a token that begins in it
        ((5, 9), [0, 0, 1, 1]),  # begins inside one, to the segment's end
        ((8, 9), [0, 0, 0, 1]),
    ],
)
def test_spans_that_begin_or_end_inside_tokens_or_at_the_segments_ends(span, labels):
    assert token_labels(np.array([(0, 4), (4, 5), (5, 8), (8, 9)]), [span]).tolist() == labels


@given(st.lists(st.integers(0, 1), max_size=9))
def test_the_target_at_a_token_is_the_label_of_the_next_one(labels):
    targets = shifted(np.array(labels, np.int8))
    assert targets.dtype == np.int8
    assert targets.tolist() == [*labels[1:], -1][: len(labels)]


@given(st.integers(0, 400), st.integers(2, 40).map(lambda half: 2 * half))
def test_crops_are_the_windows_of_inference_each_decision_once(tokens, window):
    half = window // 2
    decided = []
    for start, end, first in crops(tokens, window):
        assert 0 <= start <= first < end <= tokens
        assert end - start <= window
        for t in range(first, end):
            assert start == max(0, (t // half - 1) * half)
            decided.append(t)
    assert decided == list(range(tokens))


def test_a_short_text_is_one_crop():
    assert crops(0, 8) == []
    assert crops(8, 8) == [Crop(0, 8, 0)]
    assert crops(9, 8) == [Crop(0, 8, 0), Crop(4, 9, 8)]
