"""The measures equal a plain implementation of their definitions, token by token."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.boundary.metrics import (
    OWN,
    by_token_type,
    calibration,
    classes,
    cuts,
    measure,
    operating_points,
    token_type,
)
from tessy_jax.errors import DataError

speakers = st.sampled_from(["student", "teacher"])
label = st.sampled_from([0, 0, 0, 1, 1, 1, -1])
segments = st.lists(st.lists(label, min_size=1, max_size=12), min_size=1, max_size=5)
probability = st.integers(0, 20).map(lambda n: n / 20)


@st.composite
def measured(draw):
    """Probabilities, labels and lengths."""
    rows = draw(segments)
    labels = [x for row in rows for x in [*row, -1]] if draw(st.booleans()) else [x for row in rows for x in row]
    lengths = [len(row) + 1 for row in rows] if len(labels) > sum(map(len, rows)) else [len(row) for row in rows]
    probabilities = draw(st.lists(probability, min_size=len(labels), max_size=len(labels)))
    return np.array(probabilities, np.float32), np.array(labels, np.int8), np.array(lengths)


def plain_cuts(probabilities, labels, lengths, own, threshold):
    """Reads from the start of each run of the speaker's kind, as the decode loop does."""
    early = exact = late = none = 0
    distances = []
    at = 0
    for length in lengths:
        row, predicted = labels[at : at + length].tolist(), (probabilities[at : at + length] > threshold).tolist()
        at += length
        for j, kind in enumerate(row):
            if kind != own or (j and row[j - 1] == own):
                continue
            true = cut = None
            for i in range(j + 1, length):
                if row[i] == -1:
                    break
                if true is None and row[i] != own:
                    true = i
                if cut is None and predicted[i] != own:
                    cut = i
            if true is None and cut is None:
                none += 1
            elif true is None or (cut is not None and cut < true):
                early += 1
            elif cut == true:
                exact += 1
            else:
                late += 1
            if true is not None and cut is not None:
                distances.append(cut - true)
    return early, exact, late, none, distances


@given(measured(), speakers, st.sampled_from([0.25, 0.5, 0.8]))
def test_cuts_equal_those_of_the_decode_loop(given_, speaker, threshold):
    result = cuts(*given_, speaker, threshold=threshold)
    expected = plain_cuts(*given_, OWN[speaker], threshold)
    assert (result.early, result.exact, result.late, result.none, result.distances.tolist()) == expected


@pytest.mark.parametrize(
    ("predicted", "counts", "distances"),
    [
        ([1, 1, 1, 0, 0, 1, 1, 1], (0, 1, 0, 1), [0]),  # as it is; the last run is open
        ([0, 1, 1, 0, 0, 1, 1, 1], (0, 1, 0, 1), [0]),  # the first token of a turn cannot end it
        ([1, 1, 0, 0, 0, 1, 1, 1], (1, 0, 0, 1), [-1]),
        ([1, 1, 1, 1, 0, 1, 1, 1], (0, 0, 1, 1), [1]),
        ([1, 1, 1, 1, 1, 1, 1, 1], (0, 0, 1, 1), []),  # never cut
        ([1, 1, 1, 0, 0, 1, 0, 1], (1, 1, 0, 0), [0]),  # the open run is cut
    ],
)
def test_a_turn_of_the_student_is_cut_early_exactly_late_or_never(predicted, counts, distances):
    labels = np.array([1, 1, 1, 0, 0, 1, 1, 1, -1])
    result = cuts(np.array([*predicted, 0.0]), labels, np.array([9]), "student", threshold=0.5)
    assert (result.early, result.exact, result.late, result.none) == counts
    assert result.distances.tolist() == distances


@given(measured(), speakers)
def test_inverting_labels_and_predictions_swaps_the_speakers(given_, speaker):
    probabilities, labels, lengths = given_
    other = "teacher" if speaker == "student" else "student"
    inverted = np.where(labels == -1, -1, 1 - labels)
    predicted = (probabilities > 0.5).astype(float)
    original = cuts(predicted, labels, lengths, speaker, threshold=0.5).to_json()
    assert original == cuts(1 - predicted, inverted, lengths, other, threshold=0.5).to_json()


@given(measured(), st.sampled_from([0.25, 0.5]))
def test_only_labelled_tokens_count_in_the_classes(given_, threshold):
    probabilities, labels, _ = given_
    if not (labels != -1).any():
        return
    result = classes(probabilities, labels, threshold=threshold)
    pairs = [(y, int(p > threshold)) for p, y in zip(probabilities.tolist(), labels.tolist(), strict=True) if y != -1]
    assert result["tokens"] == len(pairs)
    assert result["accuracy"] == pytest.approx(sum(y == z for y, z in pairs) / len(pairs))
    for name, kind in (("capability", 0), ("style", 1)):
        hits = sum(y == z == kind for y, z in pairs)
        claimed, support = sum(z == kind for _, z in pairs), sum(y == kind for y, _ in pairs)
        precision, recall = hits / claimed if claimed else 0, hits / support if support else 0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0
        assert (result[name]["precision"], result[name]["recall"]) == (precision, recall)
        assert result[name]["f1"] == pytest.approx(f1)
        assert result[name]["tokens"] == support


@given(measured())
def test_calibration_aggregates_the_tokens_of_each_bin(given_):
    probabilities, labels, _ = given_
    known = labels != -1
    if not known.any():
        return
    result = calibration(probabilities, labels)
    assert result["brier"] == pytest.approx(np.mean((probabilities[known] - labels[known]) ** 2), abs=1e-6)
    assert sum(b["tokens"] for b in result["bins"]) == known.sum()
    weighted = sum(b["tokens"] * abs(b["probability"] - b["style"]) for b in result["bins"]) / known.sum()
    assert result["expected_error"] == pytest.approx(weighted)
    for b in result["bins"]:
        assert b["from"] - 1e-6 <= b["probability"] <= b["from"] + 0.1 + 1e-6
    sure = calibration(labels.clip(0).astype(float), labels)
    assert (sure["brier"], sure["expected_error"]) == (0, 0)


def test_a_lower_threshold_cuts_the_teacher_earlier():
    labels = np.array([0, 0, 1, 1, 0, 0, 1, -1])
    probabilities = np.array([0.1, 0.3, 0.7, 0.9, 0.1, 0.3, 0.7, 0.0])
    points = operating_points(probabilities, labels, np.array([8]), "teacher", (0.2, 0.5, 0.8))
    assert [p["early"] for p in points] == [1, 0, 0]
    assert [p["exact"] for p in points] == [0, 1, 0]
    assert [p["late"] for p in points] == [0, 0, 1]
    assert [p["style_f1"] for p in points] == [pytest.approx(0.75), 1, 0.5]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *[(" so", "word"), ("don't", "word"), ("é", "word"), ("हिन\u094dदी", "word"), ("中文", "word"), ("ab-c", "word")],
        *[(" \n", "white space"), ("", "white space"), ("12", "number"), (" 3.14", "number"), ("٣", "number")],
        *[(",", "punctuation"), ("...", "punctuation"), (").\n", "punctuation"), ("。", "punctuation")],
        *[("==", "symbol"), ("_", "symbol"), ("{}", "symbol"), ("$", "symbol"), ("∑", "symbol"), ("});", "symbol")],
        *[("x1", "other"), ("\ufffd", "other"), ("a_b", "other"), ("'s5", "other")],
    ],
)
def test_tokens_are_of_one_type(text, kind):
    assert token_type(text) == kind


def test_errors_are_counted_by_the_type_of_the_classified_token():
    texts, labels = ["Wait", ",", " x", " =", " 3"], np.array([1, 0, 0, 0, -1])
    result = by_token_type(np.array([0.9, 0.9, 0.1, 0.1, 0.9]), labels, texts, threshold=0.5)
    none = {f"{a}_as_{b}": 0 for a in ("capability", "style") for b in ("capability", "style")}
    assert result == {
        "number": none | {"capability_as_capability": 1},
        "word": none | {"capability_as_style": 1},
        "punctuation": none | {"style_as_style": 1},
        "symbol": none | {"capability_as_capability": 1},
    }


@given(measured(), speakers)
def test_the_measures_are_json(given_, speaker):
    labels = given_[1]
    if not (labels != -1).any():
        with pytest.raises(DataError, match="no token is labelled"):
            measure(*given_, speaker, threshold=0.5)
        return
    texts = ["so"] * (len(labels) + 1)
    result = measure(*given_, speaker, threshold=0.5, texts=texts)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len(result["operating_points"]) == 49


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="do not fit each other; give one of each per token"):
        measure(np.zeros(3), np.zeros(3, int), np.array([2]), "student", threshold=0.5)
