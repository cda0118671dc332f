"""Choosing the next token, in float32, with randomness that belongs to a position.

A token's noise depends on the seed, the sample, the attempt and the position, and on nothing else: a response is the same
in every lane, beside any neighbours, on any number of devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def position_keys(seed: jax.Array, samples_B: jax.Array, attempts_B: jax.Array, positions_B: jax.Array) -> jax.Array:
    """One key per lane: fold_in of sample, attempt and position, in this order, into the seed."""

    def one(sample: jax.Array, attempt: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        for part in (sample, attempt, position):
            key = jax.random.fold_in(key, part)
        return key

    return jax.vmap(one)(samples_B, attempts_B, positions_B)


def sample(logits_BV: jax.Array, keys_B: jax.Array, temperature: jax.Array) -> jax.Array:
    """Token ids [B] from the softmax of logits / temperature; the largest logit where temperature is 0."""
    logits_BV = logits_BV.astype(jnp.float32)

    def draw() -> jax.Array:
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV / temperature)

    def greedy() -> jax.Array:
        # the first of the largest, as argmax, whose reduction of pairs XLA's CPU backend runs three times slower
        largest = logits_BV == logits_BV.max(axis=-1, keepdims=True)
        index = jnp.arange(logits_BV.shape[-1])
        return jnp.where(largest, index, logits_BV.shape[-1] - 1).min(axis=-1)

    return jax.lax.cond(temperature > 0, draw, greedy).astype(jnp.int32)
