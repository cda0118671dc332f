"""Annotated segments as input of predictors: tokens, labels, and the windows of inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessy_jax.boundary.labels import CAPABILITY, STYLE, crops, shifted, token_labels
from tessy_jax.boundary.spans import Annotation
from tessy_jax.models.hf_config import read_config
from tessy_jax.text.host_bridge import plain_tokenizer
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.train.data import TokenizedDataset, to_memmap
from tessy_jax.train.pack import NO_TARGET, Example

NAMES = ("none", "style", "capability")
"""The names of the kinds of targets, in the order of their numbers: `Example.kinds` of a predictor's data."""
TARGET_KINDS = {STYLE: NAMES.index("style"), CAPABILITY: NAMES.index("capability")}
"""The kind of a target by its label."""


@dataclass(frozen=True)
class Tokens:
    """A segment's tokens. ids [T], offsets [T, 2] in code points; labels int8 [T]: the kind of the *next* token, UNKNOWN at
    the last."""

    annotation: Annotation
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int8]


def reader(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of the predictor in a folder, configured as in the decode loop.

    Raises:
        ConfigError, TokenizerError: the folder's configuration or tokenizer cannot be read.
    """
    return plain_tokenizer(Tokenizer(folder, read_config(folder).vocab).content)


def tokens_of(annotation: Annotation, tokenizer: Any) -> Tokens:
    """The tokens of a segment."""
    encoding = tokenizer.encode(annotation.segment.text, add_special_tokens=False)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return Tokens(annotation, np.array(encoding.ids, np.int32), offsets, shifted(token_labels(offsets, annotation.spans)))


def examples(segments: Sequence[Tokens], window: int) -> TokenizedDataset:
    """The training examples: every decision once, in the window of inference.

    The example of a window holds one more token, whose kind is the last target.
    """
    return to_memmap((example for tokens in segments for example in _windows(tokens, window)), NAMES, labelled=True)


def _windows(tokens: Tokens, window: int) -> Iterator[Example]:
    count = len(tokens.ids)
    for crop in crops(count, window):
        end = min(crop.end + 1, count)
        targets, kinds = np.zeros(end - crop.start, np.int32), np.full(end - crop.start, NO_TARGET, np.uint8)
        learnt = slice(crop.first - crop.start + 1, None)
        labels = tokens.labels[crop.first : end - 1]
        targets[learnt] = labels
        kinds[learnt] = np.where(labels == STYLE, TARGET_KINDS[STYLE], TARGET_KINDS[CAPABILITY])
        yield Example(tokens.ids[crop.start : end], targets, kinds)


def gathered(segments: Sequence[Tokens], window: int, decisions: Sequence[NDArray[np.floating]]) -> list[NDArray[Any]]:
    """Per segment, the decision after each of its tokens; NaN after the last. decisions: per example, one after each of its
    tokens."""
    values_of_segments, at = [], 0
    for tokens in segments:
        values = np.full(len(tokens.ids), np.nan)
        for crop in crops(len(tokens.ids), window):
            end = min(crop.end, len(tokens.ids) - 1)
            values[crop.first : end] = decisions[at][crop.first - crop.start : end - crop.start]
            at += 1
        values_of_segments.append(values)
    return values_of_segments
