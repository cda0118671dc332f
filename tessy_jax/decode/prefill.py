"""Reads the known tokens of a lane into the cache of one side, and shares those of another lane."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.decode.cache import PageCache
from tessy_jax.decode.windows import read_window
from tessy_jax.models.pages import Rows
from tessy_jax.sharding import Partitioner

PREFILL_CHUNK = 128  # tokens per chunk when a prompt enters the cache


def prefill(
    graph: Any, m: int, params: Any, ids_MBS: jax.Array, known_MB: jax.Array, cache: PageCache, lane: jax.Array
) -> PageCache:
    """Fills the cache of one lane of side m with its known tokens except the last. Without enough free pages, the lane reads
    them later, in the loop. Each shard of the lanes runs one row; only the row of the lane's own shard has valid tokens."""
    model = nnx.merge(graph, params)
    D = cache.free_DP.shape[0]
    own = cache.owned_B.shape[0] // D
    here_D = jnp.arange(D) == lane // own
    lanes_D = jnp.full(D, lane % own, jnp.int32)
    ids_1S, target = ids_MBS[m, lane][None], known_MB[m, lane] - 1
    cache, ok_B = cache.reserve(jnp.zeros_like(cache.owned_B).at[lane].set(target))

    def chunk(cache: PageCache) -> PageCache:
        start_D = jnp.full(D, cache.lengths_B[lane])
        count = jnp.minimum(target - cache.lengths_B[lane], PREFILL_CHUNK)
        tokens_DT = jnp.tile(read_window(ids_1S, start_D[:1], PREFILL_CHUNK), (D, 1))
        _, kv = model(tokens_DT, cache=cache.kv, rows=Rows(start_D, jnp.where(here_D, count, 0), lanes_D))
        return cache.filled(kv, cache.lengths_B.at[lane].add(count))

    return jax.lax.while_loop(lambda cache: ok_B[lane] & (cache.lengths_B[lane] < target), chunk, cache)


def share(partitioner: Partitioner, cache: PageCache, source: jax.Array, lane: jax.Array, tokens: jax.Array) -> PageCache:
    """See `PageCache.share`."""
    return cache.share(source, lane, tokens, partitioner)
