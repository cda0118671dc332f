"""The probabilities of a predictor on segments, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from tessy_jax.boundary.examples import Tokens, examples, gathered
from tessy_jax.boundary.metrics import classes, measure
from tessy_jax.config.recipes import Writer
from tessy_jax.sharding import Partitioner, put
from tessy_jax.train.data import BatchPlan
from tessy_jax.train.step import computed_in


@dataclass(frozen=True)
class SegmentScores:
    """Segments and decisions: per segment, the probability that the next token is style, after each token;
    NaN after the last."""

    segments: Sequence[Tokens]
    probabilities: Sequence[NDArray[np.floating]]

    def flat(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Probabilities [N], labels [N], and the tokens of each segment, as `metrics` takes them."""
        lengths = np.array([len(tokens.ids) for tokens in self.segments], np.int64)
        probabilities = np.nan_to_num(np.concatenate([*self.probabilities, np.zeros(0)]))
        return probabilities, np.concatenate([tokens.labels for tokens in self.segments]), lengths

    def classes(self, threshold: float) -> dict[str, Any]:
        """Accuracy, and precision, recall and F1 of each class."""
        probabilities, labels, _ = self.flat()
        return classes(probabilities, labels, threshold=threshold)

    def measured(self, speaker: Writer, threshold: float) -> dict[str, Any]:
        """All metrics; see `metrics.measure`.

        Raises:
            DataError: no token is labelled.
        """
        texts = [t.annotation.segment.text[start:end] for t in self.segments for start, end in t.offsets]
        after = [*texts[1:], ""]  # a decision is about the token that follows
        return measure(*self.flat(), speaker, threshold=threshold, texts=after)


class SegmentScorer:
    """Scores segments with a predictor's parameters. graph: of the predictor. size, rows: tokens per row, and rows per
    batch. dtype: of computation."""

    def __init__(
        self,
        graph: Any,
        segments: Sequence[Tokens],
        *,
        window: int,
        size: int,
        rows: int,
        dtype: Any,
        partitioner: Partitioner,
    ) -> None:
        self.segments, self.window, self.partitioner = segments, window, partitioner
        self.plan = BatchPlan(examples(segments, window), size, rows, seed=0)
        self._style = jax.jit(
            partial(_style, graph, dtype=jnp.dtype(dtype)), out_shardings=partitioner.sharding((None, None))
        )

    def __call__(self, *state: Any) -> SegmentScores:
        """state: the parts of the predictor's parameters, as they were split."""
        decisions: list[NDArray[np.floating]] = [np.zeros(0)] * len(self.plan.data)
        lengths = self.plan.data.lengths
        for rows in self.plan.epoch(0):
            batch = self.plan.assembled(rows)
            tokens, segments = (put(x, self.partitioner, ("lanes", None)) for x in (batch.tokens_BT, batch.segments_BT))
            style_probabilities = np.asarray(self._style(state, tokens, segments))
            for row, numbers in enumerate(rows):
                at = 0
                for number in numbers:
                    length = int(lengths[number])
                    decisions[number] = style_probabilities[row, at : at + length]
                    at += length
        return SegmentScores(self.segments, gathered(self.segments, self.window, decisions))


def _style(graph: Any, state: Any, tokens_BT: jax.Array, segments_BT: jax.Array, *, dtype: Any) -> jax.Array:
    """The probability of style after each token [B, T]."""
    model = nnx.merge(graph, *computed_in(dtype, state))
    hidden_BTD, _ = model(tokens_BT, segments_BT=segments_BT)
    return jax.nn.softmax(model.logits(hidden_BTD), axis=-1)[..., 1]
