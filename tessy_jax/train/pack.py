"""Packing of examples into rows of one length, and the arrays of a batch.

The plan of an epoch depends on the lengths, the seed and the epoch's number alone, so that the state of the data iterator is
two numbers: epoch and step.
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

OPEN = 256  # rows that are open while packing; more rows pack tighter and take longer


class TargetKind(IntEnum):
    """The writer of a token that the student learns. NONE: the token is read and not learnt. UNKNOWN: the row names no
    writer."""

    NONE = 0
    STUDENT = 1
    TEACHER = 2
    TEMPLATE = 3
    UNKNOWN = 4


NO_TARGET = TargetKind.NONE
"""The kind that is not learnt in every data set. Other kinds may be of another enumeration than `TargetKind`."""


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

    First fit: the examples, in an order drawn from seed and epoch, go into the first open row that has room. A row that is
    full, or the fullest one when OPEN rows are open, is closed.

    Raises:
        ConfigError: an example is longer than a row, or empty.
    """
    sizes: NDArray[np.int64] = np.asarray(lengths, np.int64)
    if len(sizes) and (np.max(sizes) > size or np.min(sizes) < 1):
        worst = int(np.argmax(sizes) if np.max(sizes) > size else np.argmin(sizes))
        raise ConfigError(f"example {worst} has {sizes[worst]} tokens; it should have 1 to {size}, the size of a row")
    rng = np.random.default_rng([seed, epoch])
    rows: list[list[int]] = []
    names, room = np.zeros(OPEN, np.int64), np.full(OPEN, -1, np.int64)  # open rows, and the room each has left; -1: none
    for number in rng.permutation(len(sizes)).tolist():
        need = sizes[number]
        fits = np.flatnonzero(room >= need)
        if len(fits):
            slot = int(fits[np.argmin(names[fits])])
        else:
            slot = int(np.argmin(room))
            names[slot], room[slot] = len(rows), size
            rows.append([])
        rows[names[slot]].append(number)
        room[slot] -= need
    return [rows[i] for i in rng.permutation(len(rows)).tolist()]


def batches(rows: Sequence[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    """Batches of `size` rows; empty rows fill up the last, so that no example is dropped."""
    cut = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
    if cut:
        cut[-1] += [[]] * (size - len(cut[-1]))
    return cut


def assemble(rows: Sequence[Sequence[Example]], size: int) -> Batch:
    """The arrays of a batch, `size` tokens to a row. Targets move one place to the left, to the token they follow."""
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
