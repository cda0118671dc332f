"""The report of boundary predictors: metrics, and segments that show labels and predictions per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tessy_jax import __version__
from tessy_jax.boundary.labels import CAPABILITY, STYLE, UNKNOWN, shifted, token_labels
from tessy_jax.boundary.metrics import FARTHEST, OWN
from tessy_jax.boundary.predictor_eval import PredictorEvaluation
from tessy_jax.boundary.segment_scorer import SegmentScores
from tessy_jax.config.recipes import Writer
from tessy_jax.errors import DataError
from tessy_jax.report.figures import Bars, Colour, Series, bar_chart, line_chart
from tessy_jax.report.page import (
    PLACES,
    Figure,
    Page,
    Section,
    SideBySide,
    Table,
    asset,
    count,
    decimal,
    fragment,
    percent,
    render,
)
from tessy_jax.store import RunStore

KINDS = {STYLE: "style", CAPABILITY: "capability"}
ENDS: dict[str, Colour] = {"early": "red", "exact": "green", "late": "purple"}
"""Where a turn can be cut, and the colour in charts."""
DIAL = {
    "accuracy": ("accuracy", "decimal"),
    "style_f1": ("F1 of style", "decimal"),
    "capability_f1": ("F1 of capability", "decimal"),
    "early": ("cuts early", "percent"),
    "exact": ("cuts exact", "percent"),
    "late": ("cuts late", "percent"),
}
"""Metrics that depend on the threshold: key of an operating point, name, and format."""
SHOWN = {"decimal": decimal, "percent": percent}
EXAMPLES = 12
"""Segments shown per predictor."""


@dataclass(frozen=True)
class Example:
    """An example segment. name: its id. text: its text. spans: the style spans in code points, ordered and disjoint.

    offsets [T, 2]: the code points of each token, as tokenizers return them; tokens may share characters. labels int8 [T]:
    the kind of the next token, as in `boundary.metrics`; −1 if unlabelled. probabilities [T]: the probability that the next
    token is style; NaN if there is no prediction.
    """

    name: str
    text: str
    offsets: NDArray[np.integer]
    labels: NDArray[np.integer]
    probabilities: NDArray[np.floating]
    spans: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class PredictorView:
    """The evaluation of a predictor. metrics: the result of `boundary.metrics.measure`. examples: some segments."""

    metrics: Mapping[str, Any]
    examples: Sequence[Example]


@dataclass(frozen=True)
class _Piece:
    """A run of example text in one style. marks: CSS classes of a token; empty for text between tokens."""

    text: str
    marks: str = ""
    hint: str = ""
    probability: float | None = None


def predictor_page(output: str, evaluations: Mapping[Writer, PredictorEvaluation]) -> str:
    """Returns the HTML page of an evaluation of predictors. output: their run folder."""
    views = {
        speaker: PredictorView(evaluation.metrics, _examples(evaluation.scores))
        for speaker, evaluation in evaluations.items()
    }
    title = f"Boundary predictors: {output.rstrip('/').rpartition('/')[2]}"
    return predictor_report(views, title=title, subtitle=f"On held-out traces; tessy_jax {__version__}")


def save_predictor_page(output: str, evaluations: Mapping[Writer, PredictorEvaluation]) -> None:
    """Saves the page of an evaluation as report.html in the predictors' run folder.

    Raises:
        TessyError: the folder cannot be written, or another process writes to it.
    """
    with RunStore(output) as store:
        store.save_page("report.html", predictor_page(output, evaluations))


def _examples(scores: SegmentScores) -> list[Example]:
    """Returns evenly spaced segments of the validation data, regardless of their errors."""
    count = len(scores.segments)
    return [
        Example(
            tokens.annotation.segment.id,
            tokens.annotation.segment.text,
            tokens.offsets,
            tokens.labels,
            scores.probabilities[i],
            tokens.annotation.spans,
        )
        for i in np.unique(np.linspace(0, count - 1, min(EXAMPLES, count)).astype(int)).tolist()
        for tokens in [scores.segments[i]]
    ]


def predictor_report(speakers: Mapping[Writer, PredictorView], *, title: str, subtitle: str) -> str:
    """Returns the page as HTML; equal arguments give equal bytes.

    Raises:
        DataError: `speakers` is empty, or the arrays of an example do not match its text or each other.
    """
    if not speakers:
        raise DataError("there is no predictor to report on; give the predictor of at least one speaker")
    sections = [_summary(speakers)]
    data = []
    for speaker, view in speakers.items():
        examples = [(example, _pieces(example, view.metrics["threshold"], speaker)) for example in view.examples]
        points = _points(view.metrics)
        sections.append(_section(speaker, view.metrics, points, examples))
        data.append(
            {
                "points": [[point["threshold"], *_rounded(point)] for point in points],
                "probabilities": [piece.probability for _, pieces in examples for piece in pieces if piece.marks],
            }
        )
    page = Page(title, subtitle, sections, styles=asset("predictor.css"), script=asset("predictor.js"), data=data)
    return render(page)


def _summary(speakers: Mapping[Writer, PredictorView]) -> Section:
    rows = []
    for speaker, view in speakers.items():
        metrics = view.metrics
        classes = [decimal(metrics[kind]["f1"]) for kind in KINDS.values()]
        cuts = [percent(metrics["cuts"][f"{end}_share"]) for end in ENDS]
        rows.append(
            [speaker, count(metrics["tokens"]), decimal(metrics["accuracy"]), *classes, *cuts, f"{metrics['threshold']:g}"]
        )
    columns = ["speaker", "tokens", "accuracy"]
    columns += [*(f"F1 of {kind}" for kind in KINDS.values()), *(f"cuts {end}" for end in ENDS), "threshold"]
    lead = (
        "A boundary predictor reads the text of a speaker and classifies the next token as style or capability. The "
        "student writes style and is cut where capability begins. The teacher writes capability and is cut where style "
        "begins. All metrics are measured on segments held out from training."
    )
    return Section("Summary", lead, [Table("Overview", columns, rows)])


def _section(
    speaker: Writer,
    metrics: Mapping[str, Any],
    points: Sequence[Mapping[str, float]],
    examples: Sequence[tuple[Example, Sequence[_Piece]]],
) -> Section:
    own = KINDS[OWN[speaker]]
    other = next(kind for kind in KINDS.values() if kind != own)
    lead = f"The {speaker} writes {own}; a turn ends before the first token that this predictor classifies as {other}."
    pieces: list[Table | Figure | SideBySide | Markup] = [_dial(speaker, metrics, points)]
    pieces.append(SideBySide([_classes_table(metrics), _cuts_table(metrics)]))
    pieces.append(SideBySide([_threshold_chart(speaker, metrics, points), _distance_chart(speaker, metrics)]))
    pieces.append(SideBySide([_calibration_chart(speaker, metrics), _calibration_table(metrics)]))
    if metrics.get("by_token_type"):
        pieces.append(_types_table(metrics))
    if examples:
        pieces.append(fragment("examples.html", examples=[(example.name, pieces) for example, pieces in examples]))
    return Section(speaker.capitalize(), lead, pieces)


def _points(metrics: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """Returns the operating points, including the threshold in use, ordered by threshold."""
    point = {
        "threshold": metrics["threshold"],
        "accuracy": metrics["accuracy"],
        **{f"{kind}_f1": metrics[kind]["f1"] for kind in KINDS.values()},
        **{end: metrics["cuts"][f"{end}_share"] for end in ENDS},
    }
    others = [other for other in metrics["operating_points"] if other["threshold"] != point["threshold"]]
    return sorted([point, *others], key=lambda other: other["threshold"])


def _rounded(point: Mapping[str, float]) -> list[float]:
    """Returns the metrics of an operating point as displayed, so that the script does not depend on Python's rounding."""
    return [float(SHOWN[form](point[key]).removesuffix(" %")) for key, (_, form) in DIAL.items()]


def _dial(speaker: Writer, metrics: Mapping[str, Any], points: Sequence[Mapping[str, float]]) -> Markup:
    at = next(i for i, point in enumerate(points) if point["threshold"] == metrics["threshold"])
    cells = [
        (name, SHOWN[form](points[at][key]), PLACES[form], " %" * (form == "percent")) for key, (name, form) in DIAL.items()
    ]
    threshold = f"{metrics['threshold']:g}"
    return fragment("dial.html", speaker=speaker, at=at, last=len(points) - 1, threshold=threshold, cells=cells)


def _classes_table(metrics: Mapping[str, Any]) -> Table:
    rows = [
        [kind, *(decimal(metrics[kind][key]) for key in ("precision", "recall", "f1")), count(metrics[kind]["tokens"])]
        for kind in KINDS.values()
    ]
    note = f"{count(metrics['tokens'])} tokens, {percent(metrics['accuracy'])} of them classified correctly."
    return Table("Token kinds", ["", "precision", "recall", "F1", "tokens"], rows, note)


def _cuts_table(metrics: Mapping[str, Any]) -> Table:
    cuts = metrics["cuts"]
    rows = [[end, count(cuts[end]), percent(cuts[f"{end}_share"])] for end in ENDS]
    rows.append(["no boundary and no cut", count(cuts["none"]), "–"])
    note = f"{count(cuts['turns'])} turns; shares are of the turns with a boundary or a cut."
    if cuts["distances"]:
        note += (
            " If both the cut and the boundary are in the segment, the mean absolute distance is "
            f"{cuts['mean_absolute_distance']:.2f} tokens; the mean is {abs(cuts['mean_distance']):.2f} tokens "
            f"{'early' if cuts['mean_distance'] < 0 else 'late'}."
        )
    return Table("Cuts of turns", ["", "turns", "share"], rows, note)


def _threshold_chart(speaker: Writer, metrics: Mapping[str, Any], points: Sequence[Mapping[str, float]]) -> Figure:
    x = [point["threshold"] for point in points]
    lines = [Series("F1 of style", x, [point["style_f1"] for point in points], "orange")]
    lines += [Series(f"cuts {end}", x, [point[end] for point in points], colour) for end, colour in ENDS.items()]
    image = line_chart(
        lines,
        label=f"F1 of style and shares of cuts by threshold, {speaker}",
        x_label="threshold",
        y_label="share",
        y_range=(0, 1),
        mark=("threshold in use", metrics["threshold"]),
    )
    note = f"Vertical line: the threshold in use, {metrics['threshold']:g}."
    return Figure("Metrics by threshold", image, note)


def _distance_chart(speaker: Writer, metrics: Mapping[str, Any]) -> Figure:
    distances = {int(distance): turns for distance, turns in metrics["cuts"]["distances"].items()}
    sides = {"early": lambda d: d < 0, "exact": lambda d: d == 0, "late": lambda d: d > 0}
    bars = []
    for end, colour in ENDS.items():
        mine = [distance for distance in sorted(distances) if sides[end](distance)]
        bars.append(Bars(end, mine, [distances[distance] for distance in mine], colour))
    image = bar_chart(
        bars, label=f"Turns by distance of the cut, {speaker}", x_label="tokens from the boundary", y_label="turns"
    )
    note = f"Turns with both the cut and the boundary in the segment; −{FARTHEST} and {FARTHEST} include all farther cuts."
    return Figure("Distance of cuts from the boundary", image, note)


def _calibration_chart(speaker: Writer, metrics: Mapping[str, Any]) -> Figure:
    bins = metrics["calibration"]["bins"]
    image = line_chart(
        [Series("tokens", [b["probability"] for b in bins], [b["style"] for b in bins], "blue", markers=True)],
        label=f"Share of style tokens by predicted probability, {speaker}",
        x_label="predicted probability of style",
        y_label="share of style tokens",
        y_range=(0, 1),
        reference=Series("ideal", [0, 1], [0, 1]),
    )
    return Figure("Reliability", image, "Each point is one bin of tokens, at its mean predicted probability.")


def _calibration_table(metrics: Mapping[str, Any]) -> Table:
    calibration = metrics["calibration"]
    rows = [
        [f"from {b['from']:.1f}", count(b["tokens"]), decimal(b["probability"]), decimal(b["style"])]
        for b in calibration["bins"]
    ]
    note = f"Brier score {calibration['brier']:.4f}, expected calibration error {calibration['expected_error']:.4f}."
    return Table("Calibration", ["probability", "tokens", "mean probability", "style"], rows, note)


def _types_table(metrics: Mapping[str, Any]) -> Table:
    keys = [f"{true}_as_{predicted}" for true in KINDS.values() for predicted in KINDS.values()]
    rows = []
    for name, counts in metrics["by_token_type"].items():
        wrong = sum(
            counts[f"{true}_as_{predicted}"] for true in KINDS.values() for predicted in KINDS.values() if true != predicted
        )
        rows.append([name, *(count(counts[key]) for key in keys), percent(wrong / max(1, sum(counts[key] for key in keys)))])
    columns = [
        "token",
        *(f"{true} predicted as {predicted}" for true in KINDS.values() for predicted in KINDS.values()),
        "wrong",
    ]
    return Table("Confusion by token type", columns, rows)


def _pieces(example: Example, threshold: float, speaker: Writer) -> list[_Piece]:
    """Splits the text of an example into its tokens, in order, and the text between them.

    Each token shows its own label and its own prediction, which was made after the previous token. A character that several
    tokens share belongs to the first of them; the others are empty.
    """
    _check(example, f"example {example.name!r} of the {speaker}")
    truth = [KINDS[kind] for kind in token_labels(example.offsets, example.spans).tolist()]
    labelled = [True, *(example.labels[:-1] != UNKNOWN).tolist()]
    # the shortest decimals that round-trip, because the script compares in another precision
    given = [None, *(None if np.isnan(p) else float(str(p)) for p in example.probabilities[:-1])]
    predicted = [
        None,
        *(KINDS[STYLE if style else CAPABILITY] for style in (example.probabilities > threshold)[:-1].tolist()),
    ]
    pieces: list[_Piece] = []
    at = 0
    for i, (start, end) in enumerate(example.offsets.tolist()):
        if start > at:
            pieces.append(_Piece(example.text[at:start]))
        first, at = max(start, at), max(end, at)
        kind, probability = truth[i] if labelled[i] else "unlabelled", given[i]
        prediction = "no prediction" if probability is None else f"probability of style {probability:.3f}"
        marks = ["token", kind, *([] if probability is None else [f"predicted-{predicted[i]}"])]
        pieces.append(_Piece(example.text[first:at], " ".join(marks), f"{kind}; {prediction}", probability))
    return [*pieces, _Piece(example.text[at:])]


def _check(example: Example, name: str) -> None:
    size = len(example.offsets)
    if example.offsets.shape != (size, 2) or example.labels.shape != (size,) or example.probabilities.shape != (size,):
        shapes = f"{example.offsets.shape}, {example.labels.shape} and {example.probabilities.shape}"
        raise DataError(f"{name}: offsets, labels and probabilities are {shapes}; they must be (T, 2), (T,) and (T,)")
    edges = [(0, 0), *map(tuple, example.offsets.tolist()), (len(example.text),) * 2]
    for i, (before, here) in enumerate(pairwise(edges)):
        if not before[0] <= here[0] <= here[1] <= len(example.text):
            raise DataError(
                f"{name}: token {i} spans {here[0]}…{here[1]} after {before[0]}…{before[1]}, in a text of "
                f"{len(example.text)} code points; tokens must lie in the text and in its order"
            )
    targets = shifted(token_labels(example.offsets, example.spans))
    wrong = np.flatnonzero((example.labels != UNKNOWN) & (example.labels != targets))
    if wrong.size:
        raise DataError(
            f"{name}: the label at token {wrong[0]} is {example.labels[wrong[0]]}, but by the spans the label of the next "
            f"token is {targets[wrong[0]]}; give the labels of the next tokens"
        )
