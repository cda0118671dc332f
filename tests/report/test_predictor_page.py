"""Tests of the predictor page: its metrics, and the label and prediction of every token."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tessy_jax.report
from tessy_jax.boundary.labels import shifted, token_labels
from tessy_jax.boundary.metrics import measure
from tessy_jax.errors import DataError
from tessy_jax.report.page import visible
from tessy_jax.report.predictor_page import Example, PredictorView, predictor_report

from .parsed import parse, tables
from .test_page import HOSTILE

NAMES = {"title": "Predictors", "subtitle": "of a test"}


def example_of(text, offsets, spans, probabilities):
    offsets = np.array(offsets, np.int64).reshape(-1, 2)
    labels = shifted(token_labels(offsets, spans))
    return Example("trace/0#0", text, offsets, labels, np.array(probabilities, np.float32), spans)


def view_of(examples, speaker="student", threshold=0.5):
    probabilities = np.concatenate([np.nan_to_num(example.probabilities) for example in examples])
    labels = np.concatenate([example.labels for example in examples])
    lengths = np.array([len(example.labels) for example in examples])
    texts = [example.text[start:end] for example in examples for start, end in example.offsets.tolist()]
    return PredictorView(measure(probabilities, labels, lengths, speaker, threshold=threshold, texts=texts), examples)


def hand_made():
    #       0     3  4     7 8    10    (no prediction for the second token; the fourth and the sixth are misclassified)
    text = "Hmm, so 2 + 2"
    offsets = [(0, 3), (3, 4), (4, 7), (7, 9), (9, 11), (11, 13)]
    return example_of(text, offsets, [(0, 7)], [np.nan, 0.9, 0.8, 0.3, 0.6, np.nan])


def random_view(seed=0, threshold=0.5, speaker="student", count=30):
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        words = rng.choice(["so", " wait", " 12", ",", "\n\n", " x", " = "], rng.integers(4, 30)).tolist()
        edges = np.cumsum([0, *map(len, words)])
        spans = [(int(edges[i]), int(edges[i + 1])) for i in range(0, len(words), 3)]
        offsets = np.stack([edges[:-1], edges[1:]], 1)
        truth = shifted(token_labels(offsets, spans)) == 1
        noisy = np.clip(truth * 0.5 + rng.random(len(words)) * 0.6, 0, 1)
        examples.append(example_of("".join(words), offsets, spans, noisy))
    return view_of(examples, speaker, threshold)


def tokens_of(html):
    return list(parse(html).one(marked="segment").all("span"))


@st.composite
def tokenized(draw):
    """A text, and tokens that leave out or share some of its characters."""
    text = draw(st.text(st.characters(exclude_categories=()) | st.sampled_from("<>&\"'\n\t \0"), min_size=2, max_size=25))
    offsets = []
    at = 0
    while at < len(text):
        at = min(len(text), at + draw(st.sampled_from([0, 0, 0, 1])))
        end = min(len(text), at + draw(st.integers(0, 4)))
        offsets += [(at, end)] * draw(st.sampled_from([1, 1, 1, 3]))
        at = max(at, end - draw(st.sampled_from([0, 0, 1])), offsets[-1][0] + 1)
    cut = draw(st.integers(0, len(text)))
    return text, offsets, [(cut, len(text))] if cut < len(text) else []


@settings(max_examples=25, deadline=None)
@given(tokenized())
def test_every_token_is_shown_once_and_the_text_is_complete(given_):
    text, offsets, spans = given_
    example = example_of(text, offsets, spans, [0.7] * len(offsets))
    html = predictor_report({"student": PredictorView(random_view(count=2).metrics, [example])}, **NAMES)
    assert parse(html).one(marked="segment").text == visible(text)
    tokens = tokens_of(html)
    assert len(tokens) == len(offsets)
    at = 0
    for token, (start, end) in zip(tokens, offsets, strict=True):
        assert token.text == visible(text[max(start, at) : max(end, at)])
        at = max(end, at)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_of_models_stays_text(text):
    example = example_of(text, [(i, i + 1) for i in range(len(text))], [], [0.5] * len(text))
    named = Example(text, example.text, example.offsets, example.labels, example.probabilities, [])
    metrics = random_view(count=2).metrics
    page = parse(predictor_report({"teacher": PredictorView(metrics, [named])}, title=text, subtitle=text))
    assert page.one(marked="segment").text == page.one("h4").text == page.one("h1").text == visible(text)
    assert len(list(page.all("script"))) == 2
    assert not list(page.all("img"))


def test_a_token_is_marked_with_its_label_and_its_prediction():
    html = predictor_report({"student": view_of([hand_made()])}, **NAMES)
    shown_tokens = [(token.text, " ".join(token.classes), token.attributes["title"]) for token in tokens_of(html)]
    assert shown_tokens == [
        ("Hmm", "token style", "style; no prediction"),
        (",", "token style", "style; no prediction"),
        (" so", "token style predicted-style", "style; probability of style 0.900"),
        (" 2", "token capability predicted-style", "capability; probability of style 0.800"),
        (" +", "token capability predicted-capability", "capability; probability of style 0.300"),
        (" 2", "token capability predicted-style", "capability; probability of style 0.600"),
    ]


def test_a_probability_at_the_threshold_is_capability():
    example = example_of("a b c", [(0, 1), (1, 3), (3, 5)], [], [0.3, np.nextafter(np.float32(0.3), np.float32(1)), 0.9])
    html = predictor_report({"student": view_of([example], threshold=0.3)}, **NAMES)
    assert [token.classes[-1] for token in tokens_of(html)] == ["capability", "predicted-capability", "predicted-style"]
    (data,) = json.loads(data_of(html))
    assert [p is not None and p > 0.3 for p in data["probabilities"]] == [False, False, True]


def data_of(html):
    (element,) = [node for node in parse(html).all("script") if node.attributes.get("id") == "data"]
    return element.text


def test_a_token_without_a_label_is_unlabelled():
    made = hand_made()
    labels = made.labels.copy()
    labels[2] = -1
    example = Example(made.name, made.text, made.offsets, labels, made.probabilities, made.spans)
    html = predictor_report({"student": view_of([example])}, **NAMES)
    assert tokens_of(html)[3].classes == ["token", "unlabelled", "predicted-style"]


@pytest.mark.parametrize("speaker", ["student", "teacher"])
def test_the_numbers_shown_are_the_metrics(speaker):
    view = random_view(3, 0.43, speaker)
    m = view.metrics
    page = parse(predictor_report({speaker: view}, **NAMES))
    by_caption = tables(page)
    style, capability, cuts = m["style"], m["capability"], m["cuts"]
    shares = [f"{100 * cuts[f'{end}_share']:.1f} %" for end in ("early", "exact", "late")]
    values = [f"{x:.3f}" for x in (m["accuracy"], style["f1"], capability["f1"])]
    assert by_caption["Overview"][1:] == [[speaker, f"{m['tokens']:,}", *values, *shares, "0.43"]]
    assert by_caption["Token kinds"][1:] == [
        [name, *(f"{one[key]:.3f}" for key in ("precision", "recall", "f1")), f"{one['tokens']:,}"]
        for name, one in (("style", style), ("capability", capability))
    ]
    assert [row[1:] for row in by_caption["Cuts of turns"][1:4]] == [
        [f"{cuts[end]:,}", share] for end, share in zip(("early", "exact", "late"), shares, strict=True)
    ]
    assert by_caption["Cuts of turns"][4][1] == str(cuts["none"])
    assert by_caption["Calibration"][1:] == [
        [f"from {b['from']:.1f}", f"{b['tokens']:,}", f"{b['probability']:.3f}", f"{b['style']:.3f}"]
        for b in m["calibration"]["bins"]
    ]
    assert f"{m['calibration']['brier']:.4f}" in page.text
    assert f"{m['calibration']['expected_error']:.4f}" in page.text
    order = ["style_as_style", "style_as_capability", "capability_as_style", "capability_as_capability"]
    assert [row[:5] for row in by_caption["Confusion by token type"][1:]] == [
        [name, *(str(counts[key]) for key in order)] for name, counts in m["by_token_type"].items()
    ]
    assert [node.text for node in page.one(marked="dial").all("output")] == ["0.43", *values, *shares]


@pytest.mark.parametrize("threshold", [0.5, 0.123])
def test_the_slider_has_all_operating_points_and_starts_at_the_threshold_in_use(threshold):
    view = random_view(1, threshold)
    html = predictor_report({"student": view, "teacher": view}, **NAMES)
    dials, data = list(parse(html).all(marked="dial")), json.loads(data_of(html))
    assert len(dials) == len(data) == 2
    points = {point[0]: point[1:] for point in data[0]["points"]}
    for point in view.metrics["operating_points"]:
        shown = [round(point[key], 3) for key in ("accuracy", "style_f1", "capability_f1")]
        assert points[point["threshold"]][:3] == shown
        assert points[point["threshold"]][3:] == [float(f"{100 * point[end]:.1f}") for end in ("early", "exact", "late")]
    assert sorted(points) == [point[0] for point in data[0]["points"]]
    slider = dials[0].one("input").attributes
    assert data[0]["points"][int(slider["value"])][0] == threshold
    assert int(slider["max"]) == len(points) - 1
    assert "hidden" in slider  # until the script shows it
    shown = [node for node in dials[0].all("output")][1:]
    assert [
        f"{x:.{n.attributes['data-places']}f}{n.attributes['data-unit']}"
        for x, n in zip(points[threshold], shown, strict=True)
    ] == [n.text for n in shown]


def test_the_script_reads_numbers_only():
    def leaves(value):
        if not isinstance(value, dict | list):
            return [value]
        return [leaf for one in (value.values() if isinstance(value, dict) else value) for leaf in leaves(one)]

    data = json.loads(data_of(predictor_report({"student": random_view()}, **NAMES)))
    assert {type(leaf) for leaf in leaves(data)} <= {int, float, type(None)}
    assert len(data[0]["probabilities"]) == sum(len(example.labels) for example in random_view().examples)


def test_the_page_is_deterministic():
    first, second = (predictor_report({"student": random_view(), "teacher": random_view(1)}, **NAMES) for _ in range(2))
    assert first == second


def test_ids_are_unique():
    page = parse(predictor_report({"student": random_view(), "teacher": random_view()}, **NAMES))
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(set(ids)) == len(ids)


def test_a_page_without_examples_or_token_types_shows_the_rest():
    metrics = {key: value for key, value in random_view().metrics.items() if key != "by_token_type"}
    page = parse(predictor_report({"student": PredictorView(metrics, [])}, **NAMES))
    assert "Confusion by token type" not in tables(page)
    assert not list(page.all(marked="segment"))
    assert len(list(page.all("svg"))) == 3


def test_inconsistent_examples_are_refused():
    good = hand_made()

    def refused(match, **changes):
        fields = {name: getattr(good, name) for name in ("name", "text", "offsets", "labels", "probabilities", "spans")}
        bad = Example(**{**fields, **changes})
        with pytest.raises(DataError, match=match):
            predictor_report({"student": PredictorView(random_view(count=2).metrics, [bad])}, **NAMES)

    refused(r"'trace/0#0' of the student: offsets, labels and probabilities are \(6, 2\), \(5,\)", labels=good.labels[1:])
    refused("token 5 spans 11…13 after 9…11, in a text of 12 code points", text=good.text[:-1])
    refused("token 1 spans 9…11 after 11…13", offsets=good.offsets[::-1])
    refused(
        "the label at token 2 is 1, but by the spans the label of the next token is 0",
        labels=token_labels(good.offsets, good.spans),
    )
    with pytest.raises(DataError, match="no predictor to report on; give the predictor of at least one speaker"):
        predictor_report({}, **NAMES)


def test_pages_do_not_import_model_code():
    """Only predictors.py, which runs the evaluation, may import model code."""
    pages = [file for file in Path(tessy_jax.report.__file__).parent.glob("*.py") if file.name != "predictors.py"]
    assert len(pages) >= 3
    allowed = ("errors", "config", "records", "store", "boundary", "report")
    for file in pages:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tessy_jax."):
                assert node.module.split(".")[1] in allowed, file
