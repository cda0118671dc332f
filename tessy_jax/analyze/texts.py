"""The words of the thinking of each variant: TF-IDF similarity between variants, and frequent words.

Words are case-folded runs of letters with inner apostrophes. Numbers and symbols are ignored, because they belong to the
problem. The template text that opens and closes the thinking is ignored, too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from tessy_jax.records import Row

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
DIGITS = 5
DENSE = 4_000_000
"""Matrix size up to which the principal components are computed densely; larger matrices use a sparse iterative solver."""


def thinking(row: Row) -> str:
    """Returns the text that the models wrote in the thinking."""
    return "".join(
        row.content[span.start : span.end] for span in row.spans if span.phase == "think" and span.source != "template"
    )


def words(text: str) -> list[str]:
    """Returns the words of a text in order."""
    return [word.replace("’", "'") for word in WORD.findall(text.casefold())]


class Space(NamedTuple):
    """Texts as TF-IDF bags of words. matrix: sparse, one row of Euclidean norm 1 per text. own: the rows of each variant.
    words: the number of distinct words."""

    matrix: Any
    own: dict[str, slice]
    words: int


def space_of(texts: Mapping[str, Sequence[str]]) -> Space | None:
    """Returns the TF-IDF space of the texts of some variants, at least one each; None if they have no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped, unused-ignore]

    everything = [text for own in texts.values() for text in own]
    if not any(WORD.search(text) for text in everything):
        return None
    vectorizer = TfidfVectorizer(analyzer=words)
    matrix = vectorizer.fit_transform(everything)
    ends = [0, *accumulate(map(len, texts.values()))]
    return Space(matrix, dict(zip(texts, map(slice, ends, ends[1:]), strict=True)), len(vectorizer.vocabulary_))


def plane(matrix: Any) -> tuple[np.ndarray, list[float]]:
    """Returns the first two principal components of the rows, [rows, 2], and their explained variance ratios."""
    from sklearn.decomposition import PCA  # type: ignore[import-untyped, unused-ignore]

    rows, terms = matrix.shape
    places, explained = np.zeros((rows, 2)), [0.0, 0.0]
    components = min(2, rows, terms)
    dense = rows * terms <= DENSE
    spread = matrix.toarray() if dense else matrix
    if not dense or np.ptp(spread, axis=0).any():
        pca = PCA(components, svd_solver="full" if dense else "arpack", random_state=0)
        places[:, :components] = pca.fit_transform(spread)
        explained[:components] = pca.explained_variance_ratio_
    return places, [_rounded(share) for share in explained]


def map_of(space: Space) -> dict[str, Any]:
    """Returns the coordinates of responses in the plane of the first two principal components of their TF-IDF vectors, and
    the centroid of each variant (Fig. 8)."""
    coordinates, explained = plane(space.matrix)
    return {
        "words": space.words,
        "explained": explained,
        "centroids": {name: _point(coordinates[own].mean(0)) for name, own in space.own.items()},
        "points": {name: [_point(point) for point in coordinates[own]] for name, own in space.own.items()},
    }


def similarity(space: Space) -> dict[str, Any]:
    """Returns the mean cosine similarity over all pairs of distinct responses, one of each variant (Fig. 14). A diagonal
    value is None if the variant has a single response.

    All rows have norm 1, so the mean over all pairs is the product of the means.
    """
    means = np.stack([np.asarray(space.matrix[own].mean(0)).ravel() for own in space.own.values()])
    product = means @ means.T
    values: list[list[float | None]] = [[_rounded(value) for value in line] for line in product]
    for i, own in enumerate(space.own.values()):
        count = own.stop - own.start
        selves = float(space.matrix[own].multiply(space.matrix[own]).sum())  # a response without words has norm 0
        pairs = count * (count - 1)
        values[i][i] = _rounded((count**2 * product[i, i] - selves) / pairs) if pairs else None
    return {"variants": list(space.own), "matrix": values}


def frequent(texts: Mapping[str, Sequence[str]], count: int) -> dict[str, Any] | None:
    """Returns the occurrences per thousand words, by variant, of the words that are most frequent in any variant, in
    descending order (Fig. 16); None if there are no words."""
    counts = {name: Counter(word for text in own for word in words(text)) for name, own in texts.items()}
    totals = {name: own.total() for name, own in counts.items()}
    rates = {name: {word: 1000 * times / totals[name] for word, times in own.items()} for name, own in counts.items() if own}
    if not rates:
        return None
    highest: dict[str, float] = {}
    for own in rates.values():
        for word, rate in own.items():
            highest[word] = max(rate, highest.get(word, 0.0))
    order = sorted(highest, key=lambda word: (-highest[word], word))[:count]
    return {
        "words": order,
        "total": totals,
        "per_thousand": {name: [round(own.get(word, 0.0), 3) for word in order] for name, own in rates.items()},
        "most_frequent": {
            name: [[word, round(own[word], 3)] for word in sorted(own, key=lambda word: (-own[word], word))[:count]]
            for name, own in rates.items()
        },
    }


def _point(place: Sequence[float]) -> list[float]:
    return [_rounded(value) for value in place]


def _rounded(value: float) -> float:
    return round(float(value), DIGITS) + 0.0  # no negative zero
