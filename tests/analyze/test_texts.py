"""Words, distances and frequencies are those that one computes by hand."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from tessy_jax.analyze import texts as module
from tessy_jax.analyze.texts import frequent, map_of, plane, similarity, space_of, thinking, words
from tessy_jax.records import Row, Span

TEXTS = {
    "ours": ["okay, let me see", "so we get 4", "okay okay", "wait, let us see"],
    "theirs": ["compute the sum", "compute 3 + 4", "hence the sum is 7, okay"],
    "silent": ["3 + 4 = 7"],
}


def test_words_are_runs_of_letters_whatever_their_case_and_numbers_are_none():
    assert words("Let’s see: 3x + 12 = OKAY_then; l'été, 'so' naïve 狗") == [
        *("let's", "see", "x", "okay", "then", "l'été", "so", "naïve", "狗")
    ]


def test_thinking_is_what_models_wrote_before_the_answer():
    content = "<think>\nso 3\n</think>\n\nit is 3"
    ends = [("template", "think", 8), ("student", "think", 11), ("teacher", "think", 12), ("template", "think", 23)]
    starts = [0, *(end for _, _, end in ends)]
    spans = [Span(source, phase, start, end) for (source, phase, end), start in zip(ends, starts, strict=False)]
    spans.append(Span("student", "answer", 23, len(content)))
    row = Row("a/0", "a", 0, ({"role": "assistant", "content": content},), tuple(spans), {})
    assert thinking(row) == "so 3"


def test_a_space_weighs_words_by_tf_idf():
    space = space_of({"a": ["x x y"], "b": ["y"]})
    x, y = 2 * (np.log(3 / 2) + 1), np.log(3 / 3) + 1  # times it stands there, and smoothed idf
    length = np.hypot(x, y)
    np.testing.assert_allclose(space.matrix.toarray(), [[x / length, y / length], [0, 1]])
    assert space.own == {"a": slice(0, 1), "b": slice(1, 2)}
    assert space.words == 2


def test_similarity_is_the_mean_cosine_over_all_pairs_of_different_responses():
    space = space_of(TEXTS)
    cosines = cosine_similarity(space.matrix)
    found = similarity(space)
    assert found["variants"] == list(TEXTS)
    for i, one in enumerate(space.own.values()):
        for j, other in enumerate(space.own.values()):
            pairs = [cosines[a, b] for a in range(one.start, one.stop) for b in range(other.start, other.stop) if a != b]
            wanted = pytest.approx(np.mean(pairs), abs=1e-5) if pairs else None
            assert found["matrix"][i][j] == wanted


def test_similarity_by_hand():
    found = similarity(space_of({"a": ["x x", "x"], "b": ["y"]}))
    assert found["matrix"] == [[1.0, 0.0], [0.0, None]]


def test_the_map_has_every_response_and_the_middle_of_each_variant():
    found = map_of(space_of(TEXTS))
    assert {name: len(points) for name, points in found["points"].items()} == {"ours": 4, "theirs": 3, "silent": 1}
    for name, points in found["points"].items():
        np.testing.assert_allclose(found["centroids"][name], np.mean(points, axis=0), atol=1e-4)
    everything = np.concatenate(list(found["points"].values()))
    np.testing.assert_allclose(everything.mean(0), 0, atol=1e-4)
    assert 0 < found["explained"][1] <= found["explained"][0] < 1


@pytest.mark.parametrize("dense", [0, 10**9])
def test_the_plane_keeps_as_much_of_the_variance_as_a_plane_can(dense, monkeypatch):
    monkeypatch.setattr(module, "DENSE", dense)
    matrix = space_of({"a": [f"so {'okay ' * (i % 4)} {'hmm ' * (i % 3)} thus" for i in range(24)]}).matrix
    places, explained = plane(matrix)
    centred = matrix.toarray() - matrix.toarray().mean(0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    np.testing.assert_allclose(explained, values[:2] / values.sum(), atol=1e-4)
    np.testing.assert_allclose((places**2).sum(0), values[:2], rtol=1e-4)
    again, _ = plane(matrix)
    np.testing.assert_array_equal(places, again)


@pytest.mark.parametrize("texts", [{"a": ["so"]}, {"a": ["so", "so"], "b": ["so"]}, {"a": ["so"], "b": ["3"]}])
def test_texts_that_hardly_differ_have_places_all_the_same(texts):
    found = map_of(space_of(texts))
    assert [len(points) for points in found["points"].values()] == [len(own) for own in texts.values()]
    assert all(np.isfinite(found["explained"]))


def test_texts_without_words_have_no_space():
    assert space_of({"a": ["3 + 4", ""]}) is None
    assert frequent({"a": ["3 + 4"]}, 5) is None


def test_frequent_words_are_those_that_are_frequent_in_any_variant():
    found = frequent({"a": ["so so we", "so"], "b": ["hence we we we we"], "c": ["12"]}, 3)
    assert found["words"] == ["we", "so", "hence"]
    assert found["per_thousand"] == {"a": [250.0, 750.0, 0.0], "b": [800.0, 0.0, 200.0]}
    assert found["most_frequent"] == {"a": [["so", 750.0], ["we", 250.0]], "b": [["we", 800.0], ["hence", 200.0]]}
    assert found["total"] == {"a": 4, "b": 5, "c": 0}
    assert frequent({"a": ["b a"]}, 1)["words"] == ["a"], "of equally frequent ones the first in the alphabet"
