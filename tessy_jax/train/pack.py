"""Packing of examples into rows of one length, and the arrays of a batch.

The plan of an epoch depends only on the lengths, the seed and the epoch's number. The state of the data iterator is
therefore two numbers: epoch and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from tessy_jax.errors import ConfigError

OPEN = 256  # number of open rows while packing; with more, packing is tighter and slower


class TargetKind(IntEnum):
    """The writer of a target. NONE: the token is context, not a target. UNKNOWN: the row names no writer."""

    NONE = 0
    STUDENT = 1
    TEACHER = 2
    TEMPLATE = 3
    UNKNOWN = 4


NO_TARGET = TargetKind.NONE
"""The kind of tokens that are no targets, in every data set. Its other kinds may be those of another enumeration."""


class Example(NamedTuple):
    """One tokenized text [n].

    targets: the value to predict for each token from the tokens before it: the token itself in language modelling, the label
    of the token in classification. kinds: the kind of each target.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    kinds: NDArray[np.uint8]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows. segments_BT: the number of the token's example in its row, from 1; 0 is padding. targets_BT: the next
    token of the example, or its label. kinds_BT: the kind of the target."""

    tokens_BT: NDArray[np.int32] | jax.Array
    segments_BT: NDArray[np.int32] | jax.Array
    targets_BT: NDArray[np.int32] | jax.Array
    kinds_BT: NDArray[np.uint8] | jax.Array


def pack(lengths: Sequence[int] | NDArray[np.int64], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Rows of example numbers: every example once, at most `size` tokens in a row.

    First fit: each example, in an order drawn from seed and epoch, goes into the first open row that has room. If none has
    room, a new row opens; with OPEN open rows, it replaces the fullest one.

    Raises:
        ConfigError: an example is longer than a row, or empty.
    """
    sizes: NDArray[np.int64] = np.asarray(lengths, np.int64)
    if len(sizes) and (np.max(sizes) > size or np.min(sizes) < 1):
        worst = int(np.argmax(sizes) if np.max(sizes) > size else np.argmin(sizes))
        raise ConfigError(f"example {worst} has {sizes[worst]} tokens; it should have 1 to {size}, the size of a row")
    rng = np.random.default_rng([seed, epoch])
    rows: list[list[int]] = []
    # the numbers of the open rows, and their free tokens; -1: the slot is unused
    row_numbers, free = np.zeros(OPEN, np.int64), np.full(OPEN, -1, np.int64)
    for number in rng.permutation(len(sizes)).tolist():
        needed = sizes[number]
        fits = np.flatnonzero(free >= needed)
        if len(fits):
            slot = int(fits[np.argmin(row_numbers[fits])])
        else:
            slot = int(np.argmin(free))
            row_numbers[slot], free[slot] = len(rows), size
            rows.append([])
        rows[row_numbers[slot]].append(number)
        free[slot] -= needed
    return [rows[i] for i in rng.permutation(len(rows)).tolist()]


def batches(rows: Sequence[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    """Batches of `size` rows. Empty rows complete the last batch, so that no example is dropped."""
    result = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
    if result:
        result[-1] += [[]] * (size - len(result[-1]))
    return result


def assemble(rows: Sequence[Sequence[Example]], size: int) -> Batch:
    """The arrays of a batch, with `size` tokens per row. Targets move one place to the left, to the token before them."""
    shape = (len(rows), size)
    tokens, segments, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    kinds = np.zeros(shape, np.uint8)
    for row, examples in enumerate(rows):
        start = 0
        for number, example in enumerate(examples, 1):
            end = start + len(example.tokens)
            tokens[row, start:end] = example.tokens
            segments[row, start:end] = number
            targets[row, start : end - 1] = example.targets[1:]
            kinds[row, start : end - 1] = example.kinds[1:]
            start = end
    return Batch(tokens, segments, targets, kinds)
