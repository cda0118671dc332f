"""Choosing the next token, in float32, with randomness that belongs to a position.

A token's noise depends on the seed, the sample, the attempt and the position, and on nothing else: a response is the same
in every lane, with any neighbours, on any number of devices. Each draw uses one uniform number per lane and inverts the
cumulative distribution, so no random array has the size of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from tessy_jax.backend import backend

FEW = 64  # the largest top_k that is drawn from sorted candidates
GROUP = 128  # tokens per group in the search for candidates
WEIGHT_BITS = 30  # of a float32 from 0 to 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How a model samples, the same for all lanes. top_k is static, as is whether temperature and top_p are None. All
    other values are traced scalars.

    The filters apply in Hugging Face's order: top_k, top_p, min_p. Tokens that tie at a threshold all stay. With a top_k of
    at most `FEW`, ties at top_k and top_p are broken by id instead: lower ids stay.
    """

    temperature: jax.Array | None
    """None selects greedy decoding, which ignores the filters."""
    top_p: jax.Array | None
    """The most probable tokens stay, up to this cumulative probability; None keeps all."""
    top_k: int = field(metadata={"static": True})
    """Number of the most probable tokens that stay; 0 keeps all."""
    min_p: jax.Array
    """Tokens stay whose probability is at least min_p times the largest."""

    @classmethod
    def of(cls, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> Sampling:
        """temperature: 0 is greedy. top_p 1, top_k 0 and min_p 0 keep all tokens."""
        return cls(
            temperature=jnp.float32(temperature) if temperature > 0 else None,
            top_p=jnp.float32(top_p) if top_p < 1 else None,
            top_k=top_k,
            min_p=jnp.float32(min_p),
        )


@jax.named_scope("sample")
def position_keys(seed: jax.Array, samples_B: jax.Array, attempts_B: jax.Array, positions_B: jax.Array) -> jax.Array:
    """One key per lane: fold_in of sample, attempt and position, in this order, into the seed."""

    def one(sample: jax.Array, attempt: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        for part in (sample, attempt, position):
            key = jax.random.fold_in(key, part)
        return key

    return jax.vmap(one)(samples_B, attempts_B, positions_B)


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Token ids [B] drawn from the filtered softmax of logits / temperature; the largest logit if greedy."""
    return choose(logits_BV, uniform(keys_B), sampling)


@jax.named_scope("sample")
def uniform(keys_B: jax.Array) -> jax.Array:
    """One uniform number [B, 1] per key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (1,)))(keys_B)


@jax.named_scope("sample")
def choose(logits_BV: jax.Array, uniform_B1: jax.Array, sampling: Sampling) -> jax.Array:
    """Token ids [B] as `sample` draws them, for given uniform numbers."""
    logits_BV = logits_BV.astype(jnp.float32)
    if sampling.temperature is None:
        return _greedy(logits_BV)
    draw = _draw_few if 0 < sampling.top_k <= FEW else _draw_many
    return draw(logits_BV, uniform_B1, sampling, sampling.temperature)


@jax.named_scope("greedy")
def _greedy(logits_BV: jax.Array) -> jax.Array:
    """The token [B] with the largest logit, the first if several are equal. It is in the first group with the maximum."""
    logits_BGX = _groups(logits_BV, GROUP, -jnp.inf)
    largest_BG = logits_BGX.max(axis=-1)
    largest_B1 = largest_BG.max(axis=-1, keepdims=True)
    group_B1 = _first(largest_BG == largest_B1)
    logits_BX = jnp.take_along_axis(logits_BGX, group_B1[:, :, None], axis=1)[:, 0]
    return (group_B1 * GROUP + _first(logits_BX == largest_B1))[:, 0]


@jax.named_scope("few")
def _draw_few(logits_BV: jax.Array, uniform_B1: jax.Array, sampling: Sampling, temperature: jax.Array) -> jax.Array:
    """A draw [B] from the top_k largest tokens, in the order of their rank."""
    values_BZ, ids_BZ = _largest(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))
    scaled_BZ = values_BZ / temperature
    weights_BZ = jnp.exp(scaled_BZ - scaled_BZ[:, :1])
    if sampling.top_p is not None:
        before_BZ = _cumulative(weights_BZ) - weights_BZ
        weights_BZ = jnp.where(before_BZ < sampling.top_p * weights_BZ.sum(axis=-1, keepdims=True), weights_BZ, 0.0)
    weights_BZ = jnp.where(weights_BZ >= sampling.min_p, weights_BZ, 0.0)
    rank_B1, _ = _invert(weights_BZ, uniform_B1 * weights_BZ.sum(axis=-1, keepdims=True))
    return jnp.take_along_axis(ids_BZ, rank_B1, axis=-1)[:, 0]


@jax.named_scope("many")
def _draw_many(logits_BV: jax.Array, uniform_B1: jax.Array, sampling: Sampling, temperature: jax.Array) -> jax.Array:
    """A draw [B] from all tokens that the filters keep, in the order of their ids. The tokens form rows of a length
    near the square root of V. The draw finds a row by the sums of the rows, then a token in this row."""
    V = logits_BV.shape[-1]
    W = 1 << (V.bit_length() + 1) // 2
    largest_B1 = _groups(logits_BV, W, -jnp.inf).max(axis=-1).max(axis=-1, keepdims=True)
    weights_BV = jnp.exp(logits_BV / temperature - largest_B1 / temperature)
    if 0 < sampling.top_k < V:
        edge_B1 = _edge(weights_BV, jnp.ones_like(weights_BV), jnp.float32(sampling.top_k))
        weights_BV = jnp.where(weights_BV >= edge_B1, weights_BV, 0.0)
    if sampling.top_p is not None:
        edge_B1 = _edge(weights_BV, weights_BV, sampling.top_p * weights_BV.sum(axis=-1, keepdims=True))
        weights_BV = jnp.where(weights_BV >= edge_B1, weights_BV, 0.0)
    weights_BV = jnp.where(weights_BV >= sampling.min_p, weights_BV, 0.0)
    weights_BGW = _groups(weights_BV, W, 0.0)
    rows_BG = weights_BGW.sum(axis=-1)
    target_B1 = uniform_B1 * rows_BG.sum(axis=-1, keepdims=True)
    row_B1, before_B1 = _invert(rows_BG, target_B1)
    weights_BW = jnp.take_along_axis(weights_BGW, row_B1[:, :, None], axis=1)[:, 0]
    column_B1, _ = _invert(weights_BW, target_B1 - before_B1)
    return (row_B1 * W + column_B1)[:, 0]


def _groups(values_BV: jax.Array, size: int, filler: float) -> jax.Array:
    """The values in groups of `size` tokens [B, G, size]."""
    B, V = values_BV.shape
    return jnp.pad(values_BV, ((0, 0), (0, -V % size)), constant_values=filler).reshape(B, -1, size)


def _first(where_BX: jax.Array) -> jax.Array:
    """The first index [B, 1] that is True; the last index if none is."""
    X = where_BX.shape[-1]
    return jnp.where(where_BX, jnp.arange(X, dtype=jnp.int32), X - 1).min(axis=-1, keepdims=True)


def _largest(logits_BV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest logits and their ids [B, count], largest first, equal ones by id. They lie in the groups with the largest
    maxima, so only these groups are sorted."""
    B, V = logits_BV.shape
    groups = -(-V // GROUP)
    if groups <= count:
        return jax.lax.top_k(logits_BV, count)
    padded = _groups(logits_BV, GROUP, -jnp.inf)
    _, best_BZ = jax.lax.top_k(padded.max(axis=-1), count)
    best_BZ = jnp.sort(best_BZ, axis=-1)  # candidates in the order of their ids, so that ties resolve by id
    candidates = jnp.take_along_axis(padded, best_BZ[:, :, None], axis=1).reshape(B, count * GROUP)
    values_BZ, index_BZ = jax.lax.top_k(candidates, count)
    return values_BZ, jnp.take_along_axis(best_BZ, index_BZ // GROUP, axis=1) * GROUP + index_BZ % GROUP


def _edge(weights_BV: jax.Array, mass_BV: jax.Array, target: jax.Array) -> jax.Array:
    """The largest threshold [B, 1] such that the tokens with at least this weight have at least the target mass. The bit
    patterns of non-negative floats have the order of their values, so a search from the highest bit needs no sort."""
    bits_BV = jax.lax.bitcast_convert_type(weights_BV, jnp.int32)
    # bits per pass: passes are slow on accelerators, and the seven sums of a three-bit pass are slow on CPUs
    size = 1 if backend().platform == "cpu" else 3

    def refine(i: jax.Array, found_B1: jax.Array) -> jax.Array:
        shift = WEIGHT_BITS - size * (i + 1)
        tried_BX = found_B1 + (jnp.arange(1, 1 << size) << shift)
        mass_BX = jnp.where(bits_BV[:, None] >= tried_BX[:, :, None], mass_BV[:, None], 0.0).sum(axis=-1)
        return found_B1 + ((mass_BX >= target).sum(axis=-1, dtype=jnp.int32, keepdims=True) << shift)

    found_B1 = jnp.zeros((weights_BV.shape[0], 1), jnp.int32)
    found_B1 = jax.lax.fori_loop(0, WEIGHT_BITS // size, refine, found_B1)
    return jax.lax.bitcast_convert_type(found_B1, jnp.float32)


def _cumulative(weights_BX: jax.Array) -> jax.Array:
    """The cumulative sum [B, X]. It never decreases: every entry sums all positions in the same order, with 0 in place of
    later weights."""
    at_X = jnp.arange(weights_BX.shape[-1])
    return jnp.where(at_X[:, None] <= at_X, weights_BX[:, :, None], 0.0).sum(axis=1)


def _invert(weights_BX: jax.Array, target_B1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index [B, 1] at which the cumulative weight exceeds the target, and the cumulative weight [B, 1] before it.
    If rounding leaves no such index, it is the first at which the cumulative weight is complete. The weight at the index is
    not 0."""
    total_BX = _cumulative(weights_BX)
    before_BX = (total_BX <= target_B1) & (total_BX < total_BX[:, -1:])
    index_B1 = before_BX.sum(axis=-1, dtype=jnp.int32, keepdims=True)
    return index_B1, jnp.where(before_BX, total_BX, 0.0).max(axis=-1, keepdims=True)
