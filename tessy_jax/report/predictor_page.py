"""The report of boundary predictors: their measures, and segments with what is style beside what was taken for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tessy_jax.boundary.labels import CAPABILITY, STYLE, UNKNOWN, shifted, token_labels
from tessy_jax.boundary.metrics import FARTHEST, OWN
from tessy_jax.config.sections import Writer
from tessy_jax.errors import DataError
from tessy_jax.report.figures import Bars, Colour, Series, bar_chart, line_chart
from tessy_jax.report.page import (
    PLACES,
    Beside,
    Figure,
    Page,
    Section,
    Table,
    asset,
    count,
    decimal,
    fragment,
    percent,
    render,
)

KINDS = {STYLE: "style", CAPABILITY: "capability"}
ENDS: dict[str, Colour] = {"early": "red", "exact": "green", "late": "purple"}
"""How a turn can end, and its colour in charts."""
DIAL = {
    "accuracy": ("accuracy", "decimal"),
    "style_f1": ("F1 of style", "decimal"),
    "capability_f1": ("F1 of capability", "decimal"),
    "early": ("cuts early", "percent"),
    "exact": ("cuts exact", "percent"),
    "late": ("cuts late", "percent"),
}
"""What moves with the threshold: key of an operating point, name, and how it is shown."""
SHOWN = {"decimal": decimal, "percent": percent}


@dataclass(frozen=True)
class Example:
    """A segment to look at. name: which one. text: as it is. spans: what of it is style, code points, in order and apart.

    offsets [T, 2]: the code points of each token, as tokenizers give them; tokens may share characters. labels int8 [T]: the
    kind of the next token, as `boundary.metrics` has them; −1 where there is none. probabilities [T]: that the next token is
    style; NaN where nothing was decided.
    """

    name: str
    text: str
    offsets: NDArray[np.integer]
    labels: NDArray[np.integer]
    probabilities: NDArray[np.floating]
    spans: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class PredictorView:
    """What a predictor came to on validation. metrics: what `boundary.metrics.measure` gives. examples: some segments."""

    metrics: Mapping[str, Any]
    examples: Sequence[Example]


@dataclass(frozen=True)
class _Piece:
    """Text of an example that is shown in one way. marks: classes of a token; none for text between tokens."""

    text: str
    marks: str = ""
    hint: str = ""
    probability: float | None = None


def predictor_report(speakers: Mapping[Writer, PredictorView], *, title: str, subtitle: str) -> str:
    """The page as HTML; equal arguments give equal bytes.

    Raises:
        DataError: there is no predictor, or an example whose arrays do not fit its text and each other.
    """
    if not speakers:
        raise DataError("there is no predictor to report on; give at least one speaker's")
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
        found = view.metrics
        classes = [decimal(found[kind]["f1"]) for kind in KINDS.values()]
        cuts = [percent(found["cuts"][f"{end}_share"]) for end in ENDS]
        rows.append(
            [speaker, count(found["tokens"]), decimal(found["accuracy"]), *classes, *cuts, f"{found['threshold']:g}"]
        )
    columns = ["predictor of the", "tokens judged", "accuracy"]
    columns += [*(f"F1 of {kind}" for kind in KINDS.values()), *(f"cuts {end}" for end in ENDS), "threshold"]
    lead = (
        "A predictor reads what a model writes and says of the next token whether it is style or capability. The student "
        "writes style and is cut where capability begins; the teacher writes capability and is cut where style begins. "
        "All numbers are of segments that were held out from training."
    )
    return Section("Summary", lead, [Table("Both at a glance" if len(rows) > 1 else "At a glance", columns, rows)])


def _section(
    speaker: Writer,
    found: Mapping[str, Any],
    points: Sequence[Mapping[str, float]],
    examples: Sequence[tuple[Example, Sequence[_Piece]]],
) -> Section:
    own = KINDS[OWN[speaker]]
    other = next(kind for kind in KINDS.values() if kind != own)
    lead = f"The {speaker} writes {own}; a turn ends in front of the first token that this predictor takes for {other}."
    pieces: list[Table | Figure | Beside | Markup] = [_dial(speaker, found, points)]
    pieces.append(Beside([_classes_table(found), _cuts_table(found)]))
    pieces.append(Beside([_threshold_chart(speaker, found, points), _distance_chart(speaker, found)]))
    pieces.append(Beside([_calibration_chart(speaker, found), _calibration_table(found)]))
    if found.get("by_token_type"):
        pieces.append(_types_table(found))
    if examples:
        pieces.append(fragment("examples.html", examples=[(example.name, pieces) for example, pieces in examples]))
    return Section(speaker.capitalize(), lead, pieces)


def _points(found: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """The operating points by threshold, with that of the threshold in use."""
    point = {
        "threshold": found["threshold"],
        "accuracy": found["accuracy"],
        **{f"{kind}_f1": found[kind]["f1"] for kind in KINDS.values()},
        **{end: found["cuts"][f"{end}_share"] for end in ENDS},
    }
    others = [other for other in found["operating_points"] if other["threshold"] != point["threshold"]]
    return sorted([point, *others], key=lambda one: one["threshold"])


def _rounded(point: Mapping[str, float]) -> list[float]:
    """The numbers of the dial as they are shown, so that the script need not round as Python does."""
    return [float(SHOWN[form](point[key]).removesuffix(" %")) for key, (_, form) in DIAL.items()]


def _dial(speaker: Writer, found: Mapping[str, Any], points: Sequence[Mapping[str, float]]) -> Markup:
    at = next(i for i, point in enumerate(points) if point["threshold"] == found["threshold"])
    cells = [
        (name, SHOWN[form](points[at][key]), PLACES[form], " %" * (form == "percent")) for key, (name, form) in DIAL.items()
    ]
    threshold = f"{found['threshold']:g}"
    return fragment("dial.html", speaker=speaker, at=at, last=len(points) - 1, threshold=threshold, cells=cells)


def _classes_table(found: Mapping[str, Any]) -> Table:
    rows = [
        [kind, *(decimal(found[kind][key]) for key in ("precision", "recall", "f1")), count(found[kind]["tokens"])]
        for kind in KINDS.values()
    ]
    note = f"{count(found['tokens'])} tokens judged, {percent(found['accuracy'])} of them rightly."
    return Table("Kinds of tokens", ["", "precision", "recall", "F1", "tokens"], rows, note)


def _cuts_table(found: Mapping[str, Any]) -> Table:
    cuts = found["cuts"]
    rows = [[end, count(cuts[end]), percent(cuts[f"{end}_share"])] for end in ENDS]
    rows.append(["neither ends nor is cut", count(cuts["none"]), "–"])
    note = f"{count(cuts['turns'])} turns; shares are of those that end or are cut."
    if cuts["distances"]:
        note += (
            " Where a cut and its place are both in the segment they are "
            f"{cuts['mean_absolute_distance']:.2f} tokens apart on average, {abs(cuts['mean_distance']):.2f} towards "
            f"{'early' if cuts['mean_distance'] < 0 else 'late'}."
        )
    return Table("Where turns are cut", ["", "turns", "share"], rows, note)


def _threshold_chart(speaker: Writer, found: Mapping[str, Any], points: Sequence[Mapping[str, float]]) -> Figure:
    x = [point["threshold"] for point in points]
    lines = [Series("F1 of style", x, [point["style_f1"] for point in points], "orange")]
    lines += [Series(f"cuts {end}", x, [point[end] for point in points], colour) for end, colour in ENDS.items()]
    image = line_chart(
        lines,
        label=f"F1 of style and shares of cuts over the threshold, {speaker}",
        x_label="threshold",
        y_label="share",
        y_range=(0, 1),
        mark=("threshold in use", found["threshold"]),
    )
    note = f"The upright line is the threshold in use, {found['threshold']:g}."
    return Figure("What each threshold would give", image, note)


def _distance_chart(speaker: Writer, found: Mapping[str, Any]) -> Figure:
    distances = {int(distance): turns for distance, turns in found["cuts"]["distances"].items()}
    sides = {"early": lambda d: d < 0, "exact": lambda d: d == 0, "late": lambda d: d > 0}
    bars = []
    for end, colour in ENDS.items():
        mine = [distance for distance in sorted(distances) if sides[end](distance)]
        bars.append(Bars(end, mine, [distances[distance] for distance in mine], colour))
    image = bar_chart(
        bars, label=f"Turns by distance of the cut, {speaker}", x_label="tokens from the right place", y_label="turns"
    )
    note = f"Of the turns whose cut and place are both in the segment; −{FARTHEST} and {FARTHEST} stand for all beyond, too."
    return Figure("How far off the cuts are", image, note)


def _calibration_chart(speaker: Writer, found: Mapping[str, Any]) -> Figure:
    bins = found["calibration"]["bins"]
    image = line_chart(
        [Series("tokens", [b["probability"] for b in bins], [b["style"] for b in bins], "blue", markers=True)],
        label=f"Share of style over the probability of style, {speaker}",
        x_label="probability that was given",
        y_label="share that is style",
        y_range=(0, 1),
        reference=Series("ideal", [0, 1], [0, 1]),
    )
    return Figure("What a probability means", image, "Each point is the tokens of one bin, at their mean probability.")


def _calibration_table(found: Mapping[str, Any]) -> Table:
    calibration = found["calibration"]
    rows = [
        [f"from {b['from']:.1f}", count(b["tokens"]), decimal(b["probability"]), decimal(b["style"])]
        for b in calibration["bins"]
    ]
    note = f"Brier score {calibration['brier']:.4f}, expected calibration error {calibration['expected_error']:.4f}."
    return Table("Calibration", ["probability", "tokens", "mean probability", "style"], rows, note)


def _types_table(found: Mapping[str, Any]) -> Table:
    keys = [f"{true}_as_{said}" for true in KINDS.values() for said in KINDS.values()]
    rows = []
    for name, counts in found["by_token_type"].items():
        wrong = sum(counts[f"{true}_as_{said}"] for true in KINDS.values() for said in KINDS.values() if true != said)
        rows.append([name, *(count(counts[key]) for key in keys), percent(wrong / max(1, sum(counts[key] for key in keys)))])
    columns = ["token", *(f"{true} taken for {said}" for true in KINDS.values() for said in KINDS.values()), "wrong"]
    return Table("Confusion by type of token", columns, rows)


def _pieces(example: Example, threshold: float, speaker: Writer) -> list[_Piece]:
    """The text of an example cut into its tokens, one piece each in their order, and what stands between them.

    A token is shown as what it is and was taken for, so that the decision is that after the token before it. A character
    that several tokens share stands in the first of them; the others are empty.
    """
    _check(example, f"example {example.name!r} of the {speaker}")
    truth = [KINDS[kind] for kind in token_labels(example.offsets, example.spans).tolist()]
    labelled = [True, *(example.labels[:-1] != UNKNOWN).tolist()]
    # the shortest decimals that mean the same number, for the script compares them in another precision
    given = [None, *(None if np.isnan(p) else float(str(p)) for p in example.probabilities[:-1])]
    said = [None, *(KINDS[STYLE if style else CAPABILITY] for style in (example.probabilities > threshold)[:-1].tolist())]
    found: list[_Piece] = []
    at = 0
    for i, (start, end) in enumerate(example.offsets.tolist()):
        if start > at:
            found.append(_Piece(example.text[at:start]))
        first, at = max(start, at), max(end, at)
        kind, probability = truth[i] if labelled[i] else "unlabelled", given[i]
        judged = "not judged" if probability is None else f"probability of style {probability:.3f}"
        marks = ["token", kind, *([] if probability is None else [f"said-{said[i]}"])]
        found.append(_Piece(example.text[first:at], " ".join(marks), f"{kind}; {judged}", probability))
    return [*found, _Piece(example.text[at:])]


def _check(example: Example, name: str) -> None:
    size = len(example.offsets)
    if example.offsets.shape != (size, 2) or example.labels.shape != (size,) or example.probabilities.shape != (size,):
        shapes = f"{example.offsets.shape}, {example.labels.shape} and {example.probabilities.shape}"
        raise DataError(f"{name}: offsets, labels and probabilities are {shapes}; they should be (T, 2), (T,) and (T,)")
    edges = [(0, 0), *map(tuple, example.offsets.tolist()), (len(example.text),) * 2]
    for i, (before, here) in enumerate(pairwise(edges)):
        if not before[0] <= here[0] <= here[1] <= len(example.text):
            raise DataError(
                f"{name}: token {i} is {here[0]}…{here[1]} after {before[0]}…{before[1]}, in a text of {len(example.text)} "
                "code points; tokens should lie in the text, in its order"
            )
    targets = shifted(token_labels(example.offsets, example.spans))
    wrong = np.flatnonzero((example.labels != UNKNOWN) & (example.labels != targets))
    if wrong.size:
        raise DataError(
            f"{name}: the label at token {wrong[0]} is {example.labels[wrong[0]]}, but by the spans the next token's is "
            f"{targets[wrong[0]]}; give the labels of the next tokens"
        )
