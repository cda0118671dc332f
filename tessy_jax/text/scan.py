"""Searches among the bytes of a text: the next, last or n-th byte with a property, their number, and the minima of runs.

A property of P bytes is packed into X = P / 32 numbers of 32 bits. Each search then takes a few operations on a block of 32
bytes and on the X blocks. There are no scatters, and no operation takes P² steps or log P passes over the text.

On TPUs, each operation on blocks of 32 bytes would need a new memory layout, so a search among few bytes compares all pairs
instead. With many bytes, XLA for v6e does not compile this within ten minutes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from tessy_jax.backend import backend
from tessy_jax.text.characters import shifted

BLOCK = 32
FEW = 64  # largest number of bytes of which all pairs are compared


@dataclass(frozen=True)
class Marks(ABC):
    """The bytes of each text that have a property [B, P]."""

    marked_BP: jax.Array

    @classmethod
    def of(cls, marked_BP: jax.Array) -> Marks:
        """The bytes with a property. They are packed, except texts of at most `FEW` bytes on a TPU."""
        few = marked_BP.shape[1] <= FEW and backend().platform == "tpu"
        return DenseMarks(marked_BP) if few else PackedMarks(marked_BP)

    @property
    def size(self) -> int:
        """P."""
        return self.marked_BP.shape[1]

    @abstractmethod
    def next(self) -> jax.Array:
        """The first marked byte from each byte on [B, P], P if there is none."""

    @abstractmethod
    def last(self) -> jax.Array:
        """The last marked byte up to each byte [B, P], -1 if there is none."""

    @abstractmethod
    def count(self) -> jax.Array:
        """The number of marked bytes up to each byte, itself included [B, P]."""

    @property
    @abstractmethod
    def total_B(self) -> jax.Array:
        """The number of marked bytes [B]."""

    @abstractmethod
    def nth(self, n_BX: jax.Array) -> jax.Array:
        """The marked byte with n marked bytes before it [B, X], P if there is none. n_BX: [B, X] or [X]."""

    def after(self) -> jax.Array:
        """The first marked byte after each byte [B, P], P if there is none."""
        return shifted(self.next(), 1, self.size)

    def before(self) -> jax.Array:
        """The last marked byte before each byte [B, P], -1 if there is none."""
        return jnp.pad(self.last()[:, :-1], ((0, 0), (1, 0)), constant_values=-1)


class DenseMarks(Marks):
    """Compares all pairs of bytes."""

    def next(self) -> jax.Array:
        at_P = jnp.arange(self.size, dtype=jnp.int32)
        return jnp.where(self.marked_BP[:, None, :] & (at_P >= at_P[:, None]), at_P, self.size).min(axis=-1)

    def last(self) -> jax.Array:
        at_P = jnp.arange(self.size, dtype=jnp.int32)
        return jnp.where(self.marked_BP[:, None, :] & (at_P <= at_P[:, None]), at_P, -1).max(axis=-1)

    def count(self) -> jax.Array:
        at_P = jnp.arange(self.size, dtype=jnp.int32)
        return (self.marked_BP[:, None, :] & (at_P <= at_P[:, None])).sum(axis=-1, dtype=jnp.int32)

    @property
    def total_B(self) -> jax.Array:
        return self.marked_BP.sum(axis=-1, dtype=jnp.int32)

    def nth(self, n_BX: jax.Array) -> jax.Array:
        before_BP = self.count() - 1
        found_BNP = self.marked_BP[:, None, :] & (before_BP[:, None, :] == n_BX[..., None])
        return jnp.where(found_BNP, jnp.arange(self.size, dtype=jnp.int32), self.size).min(axis=-1)


class PackedMarks(Marks):
    """Packs the marks of 32 bytes into one number, the first byte into its lowest bit."""

    @cached_property
    def bits_BX(self) -> jax.Array:
        """The bits [B, X]."""
        bits_BX32 = _blocks(self.marked_BP, False).astype(jnp.uint32) << _bit()
        return bits_BX32.sum(axis=-1, dtype=jnp.uint32)

    def next(self) -> jax.Array:
        rest_BX32 = self.bits_BX[..., None] >> _bit()
        first_BX = jnp.where(self.bits_BX != 0, _starts(self.bits_BX) + _lowest(self.bits_BX), self.size)
        later_BX = _carried(first_BX, self.size, jnp.minimum, back=True)
        own_BX32 = _at(self.bits_BX) + _lowest(rest_BX32)
        return self._per_byte(jnp.where(rest_BX32 != 0, own_BX32, later_BX[..., None]))

    def last(self) -> jax.Array:
        rest_BX32 = self.bits_BX[..., None] << (np.uint32(BLOCK - 1) - _bit())
        highest_BX = jnp.where(self.bits_BX != 0, _starts(self.bits_BX) + _highest(self.bits_BX), -1)
        earlier_BX = _carried(highest_BX, -1, jnp.maximum, back=False)
        own_BX32 = _at(self.bits_BX) + _highest(rest_BX32) - (BLOCK - 1)
        return self._per_byte(jnp.where(rest_BX32 != 0, own_BX32, earlier_BX[..., None]))

    def count(self) -> jax.Array:
        rest_BX32 = self.bits_BX[..., None] << (np.uint32(BLOCK - 1) - _bit())
        earlier_BX = _carried(self._counts_BX, 0, jnp.add, back=False)
        return self._per_byte(_ones(rest_BX32) + earlier_BX[..., None])

    @property
    def total_B(self) -> jax.Array:
        return self._counts_BX.sum(axis=-1, dtype=jnp.int32)

    def nth(self, n_BX: jax.Array) -> jax.Array:
        earlier_BX = _carried(self._counts_BX, 0, jnp.add, back=False)
        rank_BNX = n_BX[..., None] - earlier_BX[:, None, :]
        inside_BNX = (rank_BNX >= 0) & (rank_BNX < self._counts_BX[:, None, :])
        first_X = jnp.arange(earlier_BX.shape[1]) * BLOCK
        rank_BN = jnp.where(inside_BNX, rank_BNX, 0).sum(axis=-1, dtype=jnp.int32)
        bits_BN = jnp.where(inside_BNX, self.bits_BX[:, None, :], 0).sum(axis=-1, dtype=jnp.uint32)
        at_BN = jnp.where(inside_BNX, first_X, 0).sum(axis=-1, dtype=jnp.int32)
        for width in (16, 8, 4, 2, 1):
            below_BN = _ones(bits_BN & np.uint32((1 << width) - 1))
            above_BN = rank_BN >= below_BN
            rank_BN -= jnp.where(above_BN, below_BN, 0)
            bits_BN = jnp.where(above_BN, bits_BN >> np.uint32(width), bits_BN)
            at_BN += jnp.where(above_BN, width, 0)
        return jnp.where(inside_BNX.any(axis=-1), at_BN, self.size)

    @property
    def _counts_BX(self) -> jax.Array:
        return _ones(self.bits_BX)

    def _per_byte(self, x_BX32: jax.Array) -> jax.Array:
        return x_BX32.reshape(x_BX32.shape[0], -1)[:, : self.size]


def pick(x_BP: jax.Array, index_BX: jax.Array) -> jax.Array:
    """x[b, index[b, n]]; every index must be in 0 … P−1."""
    return jax.vmap(lambda x_P, index_N: x_P.at[index_N].get(mode="promise_in_bounds", wrap_negative_indices=False))(
        x_BP, index_BX
    )


def lowest_in_run(values_BP: jax.Array, run_BP: jax.Array, fill: int) -> jax.Array:
    """The minimum of values over all bytes of the same run, at each byte [B, P]. run_BP: ascending numbers of runs. fill:
    at least the maximum of values."""
    if values_BP.shape[1] <= FEW:
        same_BPP = run_BP[:, :, None] == run_BP[:, None, :]
        return jnp.where(same_BPP, values_BP[:, None, :], fill).min(axis=-1)
    values_BX32, run_BX32 = _blocks(values_BP, fill), _blocks(run_BP, -1)
    same_BX3232 = run_BX32[..., :, None] == run_BX32[..., None, :]
    inside_BX32 = jnp.where(same_BX3232, values_BX32[..., None, :], fill).min(axis=-1)
    lowest_BX32 = inside_BX32
    for end in (0, BLOCK - 1):  # a run that leaves a block touches one of its ends
        other_B11X, run_B11X = inside_BX32[:, None, None, :, end], run_BX32[:, None, None, :, end]
        reached_BX32 = jnp.where(run_BX32[..., None] == run_B11X, other_B11X, fill).min(axis=-1)
        lowest_BX32 = jnp.minimum(lowest_BX32, reached_BX32)
    return lowest_BX32.reshape(values_BP.shape[0], -1)[:, : values_BP.shape[1]]


def _blocks(x_BP: jax.Array, fill: int | bool) -> jax.Array:
    """[B, X, 32]."""
    B, P = x_BP.shape
    padded = jnp.pad(x_BP, ((0, 0), (0, -P % BLOCK)), constant_values=fill) if P % BLOCK else x_BP
    return padded.reshape(B, -1, BLOCK)


def _bit() -> jax.Array:
    return jnp.arange(BLOCK, dtype=jnp.uint32)


def _starts(bits_BX: jax.Array) -> jax.Array:
    """The first byte of each block [X]."""
    return jnp.arange(bits_BX.shape[1], dtype=jnp.int32) * BLOCK


def _at(bits_BX: jax.Array) -> jax.Array:
    """The byte of each bit [X, 32]."""
    return _starts(bits_BX)[:, None] + jnp.arange(BLOCK, dtype=jnp.int32)


def _ones(bits: jax.Array) -> jax.Array:
    return jax.lax.population_count(bits).astype(jnp.int32)


def _lowest(bits: jax.Array) -> jax.Array:
    """The lowest bit that is set; 32 if there is none."""
    return _ones((bits & -bits) - np.uint32(1))


def _highest(bits: jax.Array) -> jax.Array:
    """The highest bit that is set; -1 if there is none."""
    return BLOCK - 1 - jax.lax.clz(bits).astype(jnp.int32)


def _carried(x_BX: jax.Array, fill: int, combine: Callable[[jax.Array, jax.Array], jax.Array], *, back: bool) -> jax.Array:
    """The combined values [B, X] of all blocks before each block, or, if `back`, of all blocks after it."""
    X = x_BX.shape[1]

    def moved(x_BX: jax.Array, by: int) -> jax.Array:
        if back:
            return shifted(x_BX, by, fill)
        return jnp.pad(x_BX[:, : X - by], ((0, 0), (by, 0)), constant_values=fill)

    x_BX = moved(x_BX, 1)
    by = 1
    while by < X - 1:
        x_BX = combine(x_BX, moved(x_BX, by))
        by *= 2
    return x_BX
