"""How many tokens the caches of an engine hold."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import jax

from tessy_jax.backend import backend
from tessy_jax.decode.cache import columns, ring_pages
from tessy_jax.models.transformer import Decoder

SHARE = 0.8  # of a device's memory that weights and caches may take; the rest is for temporary arrays


def token_bytes(model: Decoder, layers: int) -> int:
    """Bytes on each device of the keys and values of a token in `layers` layers."""
    config = model.config
    heads = 1 if config.latent else config.kv_heads // model.partitioner.num_shards("kv_heads")
    return layers * heads * columns(config) * model.embed.dtype.itemsize


def ring_bytes(model: Decoder, slack: int, page: int) -> int:
    """Bytes on each device of the rings of a lane; see `cache.new_cache`."""
    windows = [window for window in model.config.windows if window is not None]
    return sum(ring_pages(window + slack, page) * page * token_bytes(model, 1) for window in windows)


def fitting_pool(
    models: Sequence[Decoder], held: object, *, lanes: int, slack: int, page: int, tokens: int, least: int
) -> int:
    """The size, in tokens, of the largest pool that memory holds for each of these models: at most `tokens`, and at least
    `least` on each shard. It is `tokens` if devices are absent or do not report their memory.

    held: arrays that are in memory besides, such as weights. lanes, slack, page: see `cache.new_cache`. The result is the
    same in all processes if their machines are equal.
    """
    partitioner = models[0].partitioner
    shards = partitioner.num_shards("lanes")
    each = sum(token_bytes(m, m.config.windows.count(None)) for m in models)
    if partitioner.absent or not each:
        return tokens
    if backend().platform == "cpu":
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    else:
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
        if not limit:
            return tokens
    taken = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(held))
    taken += lanes // shards * sum(ring_bytes(model, slack, page) for model in models)
    pages = max(int((SHARE * limit - taken) / (each * page)), -(-least // page))
    return min(tokens, shards * pages * page)
