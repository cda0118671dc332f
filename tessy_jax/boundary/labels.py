"""Style spans as labels of tokens, and the windows in which a predictor reads them (method, sections 2 and 3).

A label is 1 for style and 0 for capability. A token is style if its first character is in a style span, or if a span begins
inside it. A predictor classifies the next token: its targets are the labels, shifted one place to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CAPABILITY, STYLE, UNKNOWN = 0, 1, -1
"""Labels, and the value of a token without one."""


class Crop(NamedTuple):
    """A window: a predictor reads tokens start … end−1 and makes the decisions after tokens first … end−1."""

    start: int
    end: int
    first: int


def token_labels(offsets: NDArray[np.integer], spans: Sequence[tuple[int, int]]) -> NDArray[np.int8]:
    """The label of every token: int8 [T].

    offsets [T, 2]: the code points start … end−1 that a token covers at least partly, as tokenizers return them. Tokens
    that share a character all cover it. A token of trimmed white space covers none; its start decides. spans: code points
    start … end−1, sorted and disjoint.
    """
    offsets = np.asarray(offsets, np.int64).reshape(-1, 2)
    edges = np.asarray(spans, np.int64).reshape(-1, 2)
    starts, ends = offsets.T
    opened = np.searchsorted(edges[:, 0], starts, side="right")  # spans that begin at or before the token's first character
    closed = np.searchsorted(edges[:, 1], starts, side="right")  # spans that end before it
    opened_by_end = np.searchsorted(edges[:, 0], ends, side="left")
    return ((opened > closed) | (opened_by_end > opened)).astype(np.int8)


def shifted(labels: NDArray[np.int8]) -> NDArray[np.int8]:
    """Targets: at each token the label of the next one; UNKNOWN at the last."""
    return np.append(labels[1:], np.int8(UNKNOWN))[: len(labels)]


def crops(tokens: int, window: int) -> list[Crop]:
    """The windows of inference over a text of `tokens` tokens; each decision is made in exactly one of them.

    With h = window / 2, the decision after token t reads tokens a(t) … t with a(t) = max(0, (⌊t / h⌋ − 1) h). So the first
    two blocks of h tokens are one window, and each further block is the second half of one.
    """
    half = window // 2
    first_window = [Crop(0, min(window, tokens), 0)] if tokens else []
    return first_window + [Crop(at - half, min(at + half, tokens), at) for at in range(window, tokens, half)]
