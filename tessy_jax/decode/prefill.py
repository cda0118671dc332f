"""Reads the known tokens of lanes into the caches, and copies what another lane has read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.decode.cache import KVCache
from tessy_jax.decode.windows import read_window

PREFILL_CHUNK = 128  # tokens per chunk when a prompt enters the cache


def prefill_lane(
    graph: Any, m: int, params: Any, ids_MBS: jax.Array, known_MB: jax.Array, cache: KVCache, lane: jax.Array
) -> KVCache:
    """Fills the cache of one lane of side m with its known tokens except the last. The lane is sliced out, filled and
    written back, so that the other lanes cost nothing. For caches that are not sharded over lanes."""

    def part(x: jax.Array, axis: int = 0) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, lane, 1, axis=axis)

    filled = prefill_lanes(graph, m, params, part(ids_MBS, 1), part(known_MB, 1), jax.tree.map(part, cache))

    def back(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, lane, axis=0)

    return jax.tree.map(back, cache, filled)


def copy_prefix(cache: KVCache, source: jax.Array, lane: jax.Array, count: jax.Array) -> KVCache:
    """Copies the cache row of lane `source` to `lane`, of which the first `count` tokens are valid."""

    def copied(x: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice_in_dim(x, source, 1, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(x, row, lane, axis=0)

    return KVCache(jax.tree.map(copied, cache.layers), cache.lengths_B.at[lane].set(count))


def prefill_lanes(graph: Any, m: int, params: Any, ids_MBS: jax.Array, known_MB: jax.Array, cache: KVCache) -> KVCache:
    """Fills the caches of all lanes of side m with their known tokens except the last."""
    model = nnx.merge(graph, params)

    def left_B(cache: KVCache) -> jax.Array:
        return jnp.maximum(known_MB[m] - 1 - cache.lengths_B, 0)

    def chunk(cache: KVCache) -> KVCache:
        tokens_BT = read_window(ids_MBS, cache.lengths_B, PREFILL_CHUNK, m)
        _, cache = model(tokens_BT, cache=cache, counts_B=jnp.minimum(left_B(cache), PREFILL_CHUNK))
        return cache

    return jax.lax.while_loop(lambda cache: (left_B(cache) > 0).any(), chunk, cache)
