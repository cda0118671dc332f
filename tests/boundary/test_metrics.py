"""The measures equal what a plain reading of their definitions gives, token by token."""

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
    """Reads on from each run of the speaker's kind as the decode would."""
    early = exact = late = none = 0
    distances = []
    at = 0
    for length in lengths:
        row, said = labels[at : at + length].tolist(), (probabilities[at : at + length] > threshold).tolist()
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
                if cut is None and said[i] != own:
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
def test_cuts_are_where_the_decode_would_make_them(given_, speaker, threshold):
    found = cuts(*given_, speaker, threshold=threshold)
    expected = plain_cuts(*given_, OWN[speaker], threshold)
    assert (found.early, found.exact, found.late, found.none, found.distances.tolist()) == expected


@pytest.mark.parametrize(
    ("said", "counts", "distances"),
    [
        ([1, 1, 1, 0, 0, 1, 1, 1], (0, 1, 0, 1), [0]),  # as it is; the last run is open
        ([0, 1, 1, 0, 0, 1, 1, 1], (0, 1, 0, 1), [0]),  # the first token of a turn cannot end it
        ([1, 1, 0, 0, 0, 1, 1, 1], (1, 0, 0, 1), [-1]),
        ([1, 1, 1, 1, 0, 1, 1, 1], (0, 0, 1, 1), [1]),
        ([1, 1, 1, 1, 1, 1, 1, 1], (0, 0, 1, 1), []),  # never cut
        ([1, 1, 1, 0, 0, 1, 0, 1], (1, 1, 0, 0), [0]),  # the open run is cut
    ],
)
def test_a_turn_of_the_student_is_cut_early_exactly_late_or_never(said, counts, distances):
    labels = np.array([1, 1, 1, 0, 0, 1, 1, 1, -1])
    found = cuts(np.array([*said, 0.0]), labels, np.array([9]), "student", threshold=0.5)
    assert (found.early, found.exact, found.late, found.none) == counts
    assert found.distances.tolist() == distances


@given(measured(), speakers)
def test_turning_everything_round_turns_the_speakers_round(given_, speaker):
    probabilities, labels, lengths = given_
    other = "teacher" if speaker == "student" else "student"
    turned = np.where(labels == -1, -1, 1 - labels)
    said = (probabilities > 0.5).astype(float)
    a = cuts(said, labels, lengths, speaker, threshold=0.5).to_json()
    assert a == cuts(1 - said, turned, lengths, other, threshold=0.5).to_json()


@given(measured(), st.sampled_from([0.25, 0.5]))
def test_the_classes_are_measured_on_labelled_tokens_alone(given_, threshold):
    probabilities, labels, _ = given_
    if not (labels != -1).any():
        return
    found = classes(probabilities, labels, threshold=threshold)
    pairs = [(y, int(p > threshold)) for p, y in zip(probabilities.tolist(), labels.tolist(), strict=True) if y != -1]
    assert found["tokens"] == len(pairs)
    assert found["accuracy"] == pytest.approx(sum(y == z for y, z in pairs) / len(pairs))
    for name, kind in (("capability", 0), ("style", 1)):
        hits = sum(y == z == kind for y, z in pairs)
        claimed, support = sum(z == kind for _, z in pairs), sum(y == kind for y, _ in pairs)
        precision, recall = hits / claimed if claimed else 0, hits / support if support else 0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0
        assert (found[name]["precision"], found[name]["recall"]) == (precision, recall)
        assert found[name]["f1"] == pytest.approx(f1)
        assert found[name]["tokens"] == support


@given(measured())
def test_calibration_sums_up_what_is_in_each_bin(given_):
    probabilities, labels, _ = given_
    known = labels != -1
    if not known.any():
        return
    found = calibration(probabilities, labels)
    assert found["brier"] == pytest.approx(np.mean((probabilities[known] - labels[known]) ** 2), abs=1e-6)
    assert sum(b["tokens"] for b in found["bins"]) == known.sum()
    weighted = sum(b["tokens"] * abs(b["probability"] - b["style"]) for b in found["bins"]) / known.sum()
    assert found["expected_error"] == pytest.approx(weighted)
    for b in found["bins"]:
        assert b["from"] - 1e-6 <= b["probability"] <= b["from"] + 0.1 + 1e-6
    sure = calibration(labels.clip(0).astype(float), labels)
    assert (sure["brier"], sure["expected_error"]) == (0, 0)


def test_operating_points_move_from_late_to_early_as_the_teacher_needs_less_to_be_cut():
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
    found = by_token_type(np.array([0.9, 0.9, 0.1, 0.1, 0.9]), labels, texts, threshold=0.5)
    none = {f"{a}_as_{b}": 0 for a in ("capability", "style") for b in ("capability", "style")}
    assert found == {
        "number": none | {"capability_as_capability": 1},
        "word": none | {"capability_as_style": 1},
        "punctuation": none | {"style_as_style": 1},
        "symbol": none | {"capability_as_capability": 1},
    }


@given(measured(), speakers)
def test_all_measures_together_are_json(given_, speaker):
    labels = given_[1]
    if not (labels != -1).any():
        with pytest.raises(DataError, match="no token is labelled"):
            measure(*given_, speaker, threshold=0.5)
        return
    texts = ["so"] * (len(labels) + 1)
    found = measure(*given_, speaker, threshold=0.5, texts=texts)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["operating_points"]) == 49


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="do not fit each other; give one of each per token"):
        measure(np.zeros(3), np.zeros(3, int), np.array([2]), "student", threshold=0.5)
