"""Choosing the next token, in float32, with randomness that belongs to a position.

A token's noise depends on the seed, the sample, the attempt and the position, and on nothing else: a response is the same
in every lane, with any neighbours, on any number of devices. Each draw uses one uniform number per lane and inverts the
cumulative distribution, so that nothing as large as the vocabulary has to be random.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

FEW = 64  # a top-k up to this many is drawn from that many sorted candidates
GROUP = 128  # tokens per group in the search for candidates


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How a model samples; scalars, the same for all lanes.

    temperature: 0 is greedy. top_k: 0 keeps all tokens. top_p: 1 keeps all. min_p: 0 keeps all; tokens stay whose
    probability is at least min_p times the largest. Applied in this order (Hugging Face's), ties at an edge all kept
    by top_p and cut by token id by top_k.
    """

    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    min_p: jax.Array

    @classmethod
    def of(cls, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> Sampling:
        return cls(jnp.float32(temperature), jnp.float32(top_p), jnp.int32(top_k), jnp.float32(min_p))


@jax.named_scope("sample")
def position_keys(seed: jax.Array, samples_B: jax.Array, attempts_B: jax.Array, positions_B: jax.Array) -> jax.Array:
    """One key per lane: fold_in of sample, attempt and position, in this order, into the seed."""

    def one(sample: jax.Array, attempt: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        for part in (sample, attempt, position):
            key = jax.random.fold_in(key, part)
        return key

    return jax.vmap(one)(samples_B, attempts_B, positions_B)


@jax.named_scope("sample")
def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Token ids [B] drawn from the filtered softmax of logits / temperature; the largest logit where temperature is 0."""
    logits_BV = logits_BV.astype(jnp.float32)
    V = logits_BV.shape[-1]

    def uniform_B1() -> jax.Array:
        return jax.vmap(lambda key: jax.random.uniform(key, (1,)))(keys_B)

    @jax.named_scope("greedy")
    def greedy() -> jax.Array:
        # the first of the largest, as argmax, whose reduction of pairs XLA's CPU backend runs three times slower
        largest = logits_BV == logits_BV.max(axis=-1, keepdims=True)
        return jnp.where(largest, jnp.arange(V), V - 1).min(axis=-1)

    @jax.named_scope("few")
    def few() -> jax.Array:
        values_BZ, ids_BZ = _largest(logits_BV, min(FEW, V))
        rank_Z = jnp.arange(values_BZ.shape[-1])
        kept_BZ = jnp.where(rank_Z < sampling.top_k, values_BZ / sampling.temperature, -jnp.inf)
        weights_BZ = jnp.exp(kept_BZ - kept_BZ[:, :1])
        before_BZ = jnp.cumsum(weights_BZ, axis=-1) - weights_BZ
        weights_BZ = jnp.where(before_BZ < sampling.top_p * weights_BZ.sum(axis=-1, keepdims=True), weights_BZ, 0.0)
        weights_BZ = jnp.where(weights_BZ >= sampling.min_p, weights_BZ, 0.0)
        return jnp.take_along_axis(ids_BZ, _invert(weights_BZ, uniform_B1()), axis=-1)[:, 0]

    @jax.named_scope("many")
    def many() -> jax.Array:
        scaled_BV = logits_BV / sampling.temperature
        weights_BV = jnp.exp(scaled_BV - scaled_BV.max(axis=-1, keepdims=True))
        ones = jnp.ones_like(weights_BV)
        top_k = jnp.where(sampling.top_k > 0, sampling.top_k, V).astype(jnp.float32)
        weights_BV = jnp.where(weights_BV >= _edge(weights_BV, ones, top_k), weights_BV, 0.0)
        mass_B1 = sampling.top_p * weights_BV.sum(axis=-1, keepdims=True)
        weights_BV = jnp.where(weights_BV >= _edge(weights_BV, weights_BV, mass_B1), weights_BV, 0.0)
        weights_BV = jnp.where(weights_BV >= sampling.min_p, weights_BV, 0.0)
        return _invert(weights_BV, uniform_B1())[:, 0]

    def draw() -> jax.Array:
        is_few = (sampling.top_k > 0) & (sampling.top_k <= FEW)
        return jax.lax.cond(is_few, few, many)

    return jax.lax.cond(sampling.temperature > 0, draw, greedy).astype(jnp.int32)


def _largest(logits_BV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest logits and their ids [B, count], largest first, equal ones by id. The winners lie in the groups with the
    largest maxima, so that only those are sorted."""
    B, V = logits_BV.shape
    groups = -(-V // GROUP)
    if groups <= count:
        return jax.lax.top_k(logits_BV, count)
    padded = jnp.pad(logits_BV, ((0, 0), (0, groups * GROUP - V)), constant_values=-jnp.inf).reshape(B, groups, GROUP)
    _, best_BZ = jax.lax.top_k(padded.max(axis=-1), count)
    best_BZ = jnp.sort(best_BZ, axis=-1)  # candidates in the order of their ids, so that ties resolve by id
    candidates = jnp.take_along_axis(padded, best_BZ[:, :, None], axis=1).reshape(B, count * GROUP)
    values_BZ, index_BZ = jax.lax.top_k(candidates, count)
    return values_BZ, jnp.take_along_axis(best_BZ, index_BZ // GROUP, axis=1) * GROUP + index_BZ % GROUP


def _edge(weights_BV: jax.Array, mass_BV: jax.Array, target_mass: jax.Array) -> jax.Array:
    """The largest weight [B, 1] such that the tokens of at least that weight hold the target mass; bisection over the bits
    of the float, whose order is that of non-negative numbers, needs no sort."""
    bits_BV = jax.lax.bitcast_convert_type(weights_BV, jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        kept_mass = jnp.where(bits_BV >= middle, mass_BV, 0.0).sum(axis=-1, keepdims=True)
        enough = kept_mass >= target_mass
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros((weights_BV.shape[0], 1), jnp.int32)
    high = bits_BV.max(axis=-1, keepdims=True) + 1
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _invert(weights_BX: jax.Array, uniform_B1: jax.Array) -> jax.Array:
    """The first index [B, 1] of non-zero weight at which the cumulative weight exceeds the uniform share of the total; the
    last such index where rounding leaves none. (A parallel cumulative sum need not be monotonous.)"""
    total_BX = jnp.cumsum(weights_BX, axis=-1)
    kept_BX = weights_BX > 0
    at_X = jnp.arange(weights_BX.shape[-1])
    last_B1 = jnp.where(kept_BX, at_X, 0).max(axis=-1, keepdims=True)
    passed_BX = kept_BX & (total_BX > uniform_B1 * total_BX[:, -1:])
    return jnp.where(passed_BX, at_X, last_B1).min(axis=-1, keepdims=True)
