"""Examples of many lengths in rows of one length: which example goes where, and the arrays of a batch.

The plan of an epoch follows from the lengths, the seed and the epoch's number alone, so that the state of the data iterator
is two numbers: epoch and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from tessy_jax.errors import ConfigError

OPEN = 256  # rows that are still filled while packing: more pack tighter and take longer
NO_TARGET = 0
"""In `kinds`: a token that is read and not learnt. The others are 1 + the writer's place in `records.SOURCES`."""


class Example(NamedTuple):
    """One tokenized conversation: token ids, and the kind of each token as a target [n]."""

    tokens: NDArray[np.int32]
    kinds: NDArray[np.uint8]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows. segments_BT: the example of a token, from 1 on within its row; 0 is padding. targets_BT: the token that
    follows within the example, or its label. kinds_BT: the target's kind."""

    tokens_BT: NDArray[np.int32] | jax.Array
    segments_BT: NDArray[np.int32] | jax.Array
    targets_BT: NDArray[np.int32] | jax.Array
    kinds_BT: NDArray[np.uint8] | jax.Array


def pack(lengths: Sequence[int] | NDArray[np.int64], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Rows of example numbers: every example once, at most `size` tokens to a row.

    First fit: the examples, in an order drawn from seed and epoch, go into the first open row that has room. A row that is
    full, or the fullest one when OPEN rows are open, is closed.

    Raises:
        ConfigError: an example is longer than a row, or empty.
    """
    sizes: NDArray[np.int64] = np.asarray(lengths, np.int64)
    if len(sizes) and (np.max(sizes) > size or np.min(sizes) < 1):
        worst = int(np.argmax(sizes) if np.max(sizes) > size else np.argmin(sizes))
        raise ConfigError(f"example {worst} has {sizes[worst]} tokens; it should have 1 to {size}, as many as a row")
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
    """Batches of `size` rows; the last is filled up with empty ones, so that no example is left out."""
    cut = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
    if cut:
        cut[-1] += [[]] * (size - len(cut[-1]))
    return cut


def assemble(rows: Sequence[Sequence[Example]], size: int, *, labels: bool = False) -> Batch:
    """The arrays of a batch, `size` tokens to a row. labels: what is predicted is not the next token but whether it is of
    the first kind (1, else 0)."""
    shape = (len(rows), size)
    tokens, segments, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    kinds = np.zeros(shape, np.uint8)
    for row, examples in enumerate(rows):
        start = 0
        for number, example in enumerate(examples, 1):
            end = start + len(example.tokens)
            tokens[row, start:end] = example.tokens
            segments[row, start:end] = number
            targets[row, start : end - 1] = example.kinds[1:] == 1 if labels else example.tokens[1:]
            kinds[row, start : end - 1] = example.kinds[1:]
            start = end
    return Batch(tokens, segments, targets, kinds)
