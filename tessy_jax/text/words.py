"""Hash tables on the device: the tokens that are pre-tokens by themselves, found by their bytes, and the merges of pairs.

A table has rows of 128 numbers, one row per bucket, so that a look-up reads one row. Each field of the bucket's entries lies
in its own part of the row. The number of buckets grows until no bucket overflows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

ROW = 128
WIDTH = 64
"""Bytes of the longest token that a table of words holds by default."""
PAIRS = 1 << 13
"""Pairs that are looked up at a time; their rows fit into a cache of 4 MB."""
NONE = np.iinfo(np.int32).max
ABSENT = -1
EMPTY = -2
FACTORS = (0x9E3779B1, 0x85EBCA6B)
"""Bases of the two polynomials that hash a word."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table:
    """The hash tables of M vocabularies, one after another. rows_X128: the buckets of all. first_M, buckets_M: the first
    bucket of each vocabulary, and their number, a power of two."""

    rows_X128: jax.Array
    first_M: jax.Array
    buckets_M: jax.Array

    @classmethod
    def of(cls, tables: Sequence[Any]) -> Table:
        """The tables [buckets, 128] of several vocabularies."""
        sizes = np.array([table.shape[0] for table in tables])
        return cls(jnp.concatenate(tables), _array(np.cumsum(sizes) - sizes), _array(sizes))

    def parts(self) -> list[jax.Array]:
        """The table [buckets, 128] of each vocabulary."""
        return [self.rows_X128[first : first + size] for first, size in zip(self.first_M, self.buckets_M, strict=True)]

    def look_up(self, left: jax.Array, right: jax.Array, v: jax.Array, fields: int) -> jax.Array:
        """The bucket of each key in the table of vocabulary v [..., fields, entries]."""
        bucket = bucket_of(left, right, self.buckets_M[v].astype(jnp.uint32)).astype(jnp.int32)
        return self.rows_X128[self.first_M[v] + bucket].reshape(*left.shape, fields, ROW // fields)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Words:
    """The tokens of M vocabularies that are pre-tokens by themselves. table: 64 entries (hash, id) per bucket. spelled_XI:
    the bytes of each token, zeros after its end, one vocabulary after another. first_M: the first row of each vocabulary."""

    table: Table
    spelled_XI: jax.Array
    first_M: jax.Array

    def find(self, bytes_BP: jax.Array, starts_BW: jax.Array, ends_BW: jax.Array, v_B: jax.Array) -> jax.Array:
        """The token of each word [B, W] in vocabulary v_B, ABSENT if it has none. A word is the bytes from its start to its
        end; an empty word has no token."""
        B, P = bytes_BP.shape
        L = self.spelled_XI.shape[1]
        at_BWI = starts_BW[..., None] + jnp.arange(L, dtype=jnp.int32)
        lanes_B11 = jnp.arange(B)[:, None, None]
        inside_BWI = at_BWI < ends_BW[..., None]
        word_BWI = jnp.where(inside_BWI, bytes_BP[lanes_B11, jnp.minimum(at_BWI, P - 1)], 0)
        key_BW, tag_BW = _hashes(jnp.where(inside_BWI, word_BWI.astype(jnp.uint32) + 1, 0), jnp)
        rows_BW264 = self.table.look_up(key_BW, tag_BW, v_B[:, None], fields=2)
        found_BW64 = rows_BW264[..., 0, :] == tag_BW.astype(jnp.int32)[..., None]
        ids_BW = jnp.where(found_BW64, rows_BW264[..., 1, :], ABSENT).max(axis=-1)
        spelled_BWI = self.spelled_XI[self.first_M[v_B][:, None] + jnp.maximum(ids_BW, 0)]
        same_BW = (spelled_BWI == word_BWI).all(axis=-1)  # other words may have equal hashes
        fits_BW = (starts_BW < ends_BW) & (ends_BW - starts_BW <= L)
        return jnp.where(same_BW & fits_BW, ids_BW, ABSENT)


def word_table(tokens: Mapping[int, bytes], width: int = WIDTH) -> Words:
    """The table of these tokens, without those of more than `width` bytes."""
    kept = {i: word for i, word in tokens.items() if 0 < len(word) <= width}
    ids = np.array(list(kept), np.int32).reshape(-1)
    lengths = np.array([len(word) for word in kept.values()], np.int64).reshape(-1, 1)
    spelled_XI = np.zeros((len(kept), width), np.uint8)
    spelled_XI[np.arange(width) < lengths] = np.frombuffer(b"".join(kept.values()), np.uint8)
    keys, tags = _hashes(np.where(np.arange(width) < lengths, spelled_XI.astype(np.uint32) + 1, 0).astype(np.uint32), np)
    buckets_X128 = hash_table(keys, tags, np.stack([tags.view(np.int32), ids], axis=1), compared=1)
    spelled_VI = np.zeros((int(ids.max(initial=0)) + 1, width), np.uint8)
    spelled_VI[ids] = spelled_XI
    return Words(Table.of([buckets_X128]), jnp.asarray(spelled_VI), _array([0]))


def joined_words(words: Sequence[Words]) -> Words:
    """The words of several vocabularies."""
    width, counts = max(w.spelled_XI.shape[1] for w in words), [w.spelled_XI.shape[0] for w in words]
    spelled = [jnp.pad(w.spelled_XI, ((0, 0), (0, width - w.spelled_XI.shape[1]))) for w in words]
    table = Table.of([part for w in words for part in w.table.parts()])
    return Words(table, jnp.concatenate(spelled), _array(np.cumsum(counts) - counts))


def find_merges(merges: Table, left: jax.Array, right: jax.Array, v_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rank of the merge of each pair [B, P] in vocabulary v_B, NONE if it has none, and the merged token."""

    def find(pair: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, right, v = pair
        rows = merges.look_up(left.astype(jnp.uint32), right.astype(jnp.uint32), v, fields=4)
        hit = (rows[..., 0, :] == left[..., None]) & (rows[..., 1, :] == right[..., None])
        return jnp.where(hit, rows[..., 2, :], NONE).min(axis=-1), jnp.where(hit, rows[..., 3, :], 0).max(axis=-1)

    v = jnp.broadcast_to(v_B[:, None], left.shape)
    if left.size <= PAIRS:
        return find((left, right, v))
    found = jax.lax.map(find, (left.reshape(-1), right.reshape(-1), v.reshape(-1)), batch_size=PAIRS)
    return found[0].reshape(left.shape), found[1].reshape(left.shape)


def merge_table(merges: NDArray[np.int32]) -> NDArray[np.int32]:
    """The table [buckets, 128] of all merges [count, 4] (left, right, rank, merged id), 32 per bucket."""
    return hash_table(merges[:, 0].astype(np.uint32), merges[:, 1].astype(np.uint32), merges, compared=2)


def hash_table(
    left: NDArray[np.uint32], right: NDArray[np.uint32], entries: NDArray[np.int32], compared: int
) -> NDArray[np.int32]:
    """A table [buckets, 128] of entries [count, fields] by their keys (left, right); empty entries are EMPTY. A look-up
    compares the first `compared` fields, which differ among the entries of a bucket."""
    fields = entries.shape[1]
    ways = ROW // fields
    buckets = 1 << (2 * len(entries) // ways).bit_length()
    while True:
        place = bucket_of(left, right, np.uint32(buckets)).astype(np.int64)
        order = np.argsort(place, kind="stable")
        place = place[order]
        way = np.arange(len(place)) - np.searchsorted(place, place)
        shown = np.concatenate([place[:, None], entries[order, :compared]], axis=1)
        if way.max(initial=0) < ways and len(np.unique(shown, axis=0)) == len(shown):
            break
        buckets *= 2
    table = np.full((buckets, fields, ways), EMPTY, np.int32)
    table[place, :, way] = entries[order]
    return table.reshape(buckets, ROW)


def bucket_of(left: Any, right: Any, buckets: Any) -> Any:
    """The bucket of each key, for NumPy or JAX arrays of uint32; `buckets`, also uint32, are powers of two."""
    uint = np.uint32
    mixed = (left * uint(0x9E3779B1)) ^ (right * uint(0x85EBCA77))
    mixed = (mixed ^ (mixed >> uint(15))) * uint(0xC2B2AE3D)
    return (mixed >> uint(8)) & (buckets - uint(1))


def _array(numbers: Any) -> jax.Array:
    return jnp.asarray(numbers, jnp.int32)


def _hashes(values: Any, module: Any) -> tuple[Any, Any]:
    """Two hashes of words [..., L], for arrays of uint32 of NumPy or JAX (`module`)."""
    powers_2I = np.ones((2, values.shape[-1]), np.uint32)
    for powers, factor in zip(powers_2I, FACTORS, strict=True):
        powers[1:] = factor
        np.multiply.accumulate(powers, out=powers)
    return tuple((values * module.asarray(powers)).sum(axis=-1, dtype=np.uint32) for powers in powers_2I)
