"""Metrics of a predictor: classes, cuts, calibration, and errors by type of token.

All measures read the same arrays over the tokens of all segments, one segment after another: probabilities [N] that the next
token is style, labels [N] of the next token (1 style, 0 capability, −1 none: at the last token of a segment, and at tokens
that are not classified), and lengths [S] of the segments in tokens. As in the decode loop, for both speakers, the next token
counts as style if its probability exceeds the threshold.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessy_jax.boundary.labels import CAPABILITY, STYLE, UNKNOWN
from tessy_jax.config.recipes import Writer
from tessy_jax.errors import DataError

OWN = {"student": STYLE, "teacher": CAPABILITY}
"""The kind that a speaker writes; its predictor cuts in front of the other."""
FARTHEST = 20
"""Distances of cuts from this many tokens on are one bar of the histogram."""
THRESHOLDS = tuple(round(0.02 * i, 2) for i in range(1, 50))
TYPES = ("white space", "number", "word", "punctuation", "symbol", "other")
PUNCTUATION = frozenset(".,;:!?'\"()…-–—“”‘’„«»¿¡。，、；：！？（）「」")
"""Marks of prose; other marks are symbols, of code or formulas."""

Floats = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Cuts:
    """The predicted ends of a speaker's turns. A turn begins at every true run of its kind; its first token cannot end it.

    early, exact, late: numbers of turns, by the predicted end relative to the end of the run. A run that continues to the
    end of its segment can only be cut early. A run that ends, and is not cut within the segment, is late. none: turns that
    neither end nor are cut. distances: predicted minus true end, in tokens, of the turns that have both in the segment.
    """

    early: int
    exact: int
    late: int
    none: int
    distances: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Counts, shares of the turns that end or are cut, mean distances, and a histogram of the distances."""
        ended = max(1, self.early + self.exact + self.late)
        clipped = np.clip(self.distances, -FARTHEST, FARTHEST)
        values, counts = np.unique(clipped, return_counts=True)
        return {
            "turns": self.early + self.exact + self.late + self.none,
            **{name: getattr(self, name) for name in ("early", "exact", "late", "none")},
            **{f"{name}_share": getattr(self, name) / ended for name in ("early", "exact", "late")},
            "mean_distance": _mean(self.distances),
            "mean_absolute_distance": _mean(np.abs(self.distances)),
            "distances": {str(value): int(count) for value, count in zip(values, counts, strict=True)},
        }


def measure(
    probabilities: Floats,
    labels: Labels,
    lengths: Labels,
    speaker: Writer,
    *,
    threshold: float,
    texts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All measures as one JSON object. texts [N]: the text of each token, for the confusion by type of token.

    Raises:
        DataError: the arrays have different lengths, or no token is labelled.
    """
    check(probabilities, labels, lengths)
    measures = {
        "threshold": threshold,
        **classes(probabilities, labels, threshold=threshold),
        "cuts": cuts(probabilities, labels, lengths, speaker, threshold=threshold).to_json(),
        "calibration": calibration(probabilities, labels),
        "operating_points": operating_points(probabilities, labels, lengths, speaker),
    }
    if texts is not None:
        measures["by_token_type"] = by_token_type(probabilities, labels, texts, threshold=threshold)
    return measures


def check(probabilities: Floats, labels: Labels, lengths: Labels) -> None:
    """Checks the lengths of the arrays.

    Raises:
        DataError: the arrays have different lengths, or no token is labelled.
    """
    if probabilities.shape != labels.shape or labels.ndim != 1 or int(lengths.sum()) != len(labels):
        raise DataError(
            f"{probabilities.shape} probabilities, {labels.shape} labels and segments of {int(lengths.sum())} tokens in all "
            "do not fit each other; give one of each per token"
        )
    if not (labels != UNKNOWN).any():
        raise DataError("no token is labelled, so that there is nothing to measure; give segments of at least two tokens")


def classes(probabilities: Floats, labels: Labels, *, threshold: float) -> dict[str, Any]:
    """Accuracy, and per class precision, recall, F1 and number of tokens. A ratio with denominator 0 is 0."""
    known = labels != UNKNOWN
    truth, style = labels[known] == STYLE, probabilities[known] > threshold
    return {
        "tokens": len(truth),
        "accuracy": float(np.mean(truth == style)),
        "style": _one_class(truth, style),
        "capability": _one_class(~truth, ~style),
    }


def _one_class(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> dict[str, Any]:
    hits, claimed, support = int((truth & predicted).sum()), int(predicted.sum()), int(truth.sum())
    return {
        "precision": hits / max(1, claimed),
        "recall": hits / max(1, support),
        "f1": 2 * hits / max(1, claimed + support),
        "tokens": support,
    }


def cuts(probabilities: Floats, labels: Labels, lengths: Labels, speaker: Writer, *, threshold: float) -> Cuts:
    """The predicted ends of the speaker's turns; see `Cuts`. A token without a label ends its segment."""
    own, size = OWN[speaker], len(labels)
    style = probabilities > threshold
    limit = _limits(labels, lengths)  # the first position after the labelled part of the segment
    at = np.arange(size)
    inside = at < limit
    mine = inside & (labels == own)
    goes_on = np.zeros(size, bool)
    goes_on[1:] = mine[:-1] & (limit[1:] == limit[:-1])
    # the decision at j is about token j + 1, the first of the turn; the next decision is the first that can end it
    first = np.flatnonzero(mine & ~goes_on) + 1
    true_end = _next(inside & (labels != own))[first]
    predicted_end = _next(inside & (style != (own == STYLE)))[first]
    ends, predicted = true_end < limit[first - 1], predicted_end < limit[first - 1]
    both = ends & predicted
    distances = (predicted_end - true_end)[both]
    return Cuts(
        early=int((distances < 0).sum() + (predicted & ~ends).sum()),
        exact=int((distances == 0).sum()),
        late=int((distances > 0).sum() + (ends & ~predicted).sum()),
        none=int((~ends & ~predicted).sum()),
        distances=distances.astype(np.int64),
    )


def calibration(probabilities: Floats, labels: Labels, bins: int = 10) -> dict[str, Any]:
    """Brier score, expected calibration error, and per bin of probability its lower edge, its tokens, their mean probability
    and their share of style. Bins have equal widths; empty bins are omitted."""
    known = labels != UNKNOWN
    predicted, truth = probabilities[known].astype(np.float64), labels[known] == STYLE
    which = np.minimum((predicted * bins).astype(np.int64), bins - 1)
    counts = np.bincount(which, minlength=bins).astype(np.float64)
    mean_predicted = np.bincount(which, predicted, minlength=bins) / np.maximum(1, counts)
    share = np.bincount(which, truth, minlength=bins) / np.maximum(1, counts)
    return {
        "brier": float(np.mean((predicted - truth) ** 2)),
        "expected_error": float((counts * np.abs(mean_predicted - share)).sum() / counts.sum()),
        "bins": [
            {"from": b / bins, "tokens": int(counts[b]), "probability": float(mean_predicted[b]), "style": float(share[b])}
            for b in range(bins)
            if counts[b]
        ],
    }


def operating_points(
    probabilities: Floats,
    labels: Labels,
    lengths: Labels,
    speaker: Writer,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[dict[str, float]]:
    """Per threshold: F1 of both classes, accuracy, and shares of early, exact and late cuts."""
    points = []
    for threshold in thresholds:
        by_class = classes(probabilities, labels, threshold=threshold)
        cut = cuts(probabilities, labels, lengths, speaker, threshold=threshold).to_json()
        points.append(
            {
                "threshold": threshold,
                "accuracy": by_class["accuracy"],
                "style_f1": by_class["style"]["f1"],
                "capability_f1": by_class["capability"]["f1"],
                **{name: cut[f"{name}_share"] for name in ("early", "exact", "late")},
            }
        )
    return points


def by_token_type(
    probabilities: Floats, labels: Labels, texts: Sequence[str], *, threshold: float
) -> dict[str, dict[str, int]]:
    """Confusion counts (`style_as_style` etc.: truth, then prediction) by type of the classified token, the next one."""
    labelled = np.flatnonzero(labels != UNKNOWN)
    types = np.array([TYPES.index(token_type(texts[j + 1])) for j in labelled.tolist()], np.int64)
    truth, style = labels[labelled] == STYLE, probabilities[labelled] > threshold
    counts = np.bincount(types * 4 + truth * 2 + style, minlength=4 * len(TYPES)).reshape(-1, 4).tolist()
    names = [f"{a}_as_{b}" for a in ("capability", "style") for b in ("capability", "style")]
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(TYPES, counts, strict=True) if sum(row)}


def token_type(text: str) -> str:
    """One of TYPES: the kind of a token's characters, without surrounding white space."""
    bare = text.strip()
    if not bare:
        return "white space"
    letters = [c.isalpha() or unicodedata.category(c).startswith("M") for c in bare]
    if all(letters) or (any(letters) and all(letter or c in "'’-" for letter, c in zip(letters, bare, strict=True))):
        return "word"
    if any(c.isdigit() for c in bare) and all(c.isdigit() or c in ".,-+%" for c in bare):
        return "number"
    if all(c in PUNCTUATION for c in bare):
        return "punctuation"
    if "\ufffd" not in bare and not any(c.isalnum() for c in bare.replace("_", "")):
        return "symbol"
    return "other"


def _limits(labels: Labels, lengths: Labels) -> NDArray[np.int64]:
    """For each position, the first position at or after it that has no label or is in a later segment."""
    size = len(labels)
    limit = np.full(size, size, np.int64)
    ends = np.cumsum(lengths)[lengths > 0]
    limit[ends - 1] = ends
    unknown = np.flatnonzero(labels == UNKNOWN)
    limit[unknown] = unknown
    return np.minimum.accumulate(limit[::-1])[::-1]


def _next(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N + 1]: for each position, the first position at or after it where the condition holds, or N."""
    size = len(holds)
    positions = np.append(np.where(holds, np.arange(size), size), size)
    return np.minimum.accumulate(positions[::-1])[::-1]


def _mean(values: NDArray[np.int64]) -> float:
    return float(values.mean()) if len(values) else 0.0
