"""How many tokens the caches of an engine hold."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tessy_jax.backend import backend, is_planned
from tessy_jax.decode.cache import columns
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.pages import PAGE, page_count
from tessy_jax.models.transformer import Decoder
from tessy_jax.sharding import Partitioner

SHARE = 0.8  # of a device's memory that weights and caches may take; the rest is for temporary arrays


def token_bytes(config: ModelConfig, layers: int, dtype: Any, partitioner: Partitioner) -> int:
    """Bytes on each device of the keys and values of a token in `layers` layers."""
    heads = 1 if config.latent else config.kv_heads // partitioner.num_shards("kv_heads")
    return layers * heads * columns(config) * jnp.dtype(dtype).itemsize


def ring_bytes(
    config: ModelConfig, dtype: Any, partitioner: Partitioner, *, tokens: int, slack: int, page: int = PAGE
) -> int:
    """Bytes on each device of the rings of a lane of up to `tokens` tokens; see `cache.new_cache`."""
    pages = sum(page_count(min(tokens, window + slack), page) for window in config.windows if window is not None)
    return token_bytes(config, 1, dtype, partitioner) * page * pages


def device_memory() -> int | None:
    """Bytes of memory that programs may use on one device of the current or planned backend; None if that is unknown. CPUs
    share the memory of the machine."""
    if is_planned():
        return backend().memory
    if backend().platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


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
    each = sum(token_bytes(m.config, m.config.windows.count(None), m.embed.dtype, partitioner) for m in models)
    if partitioner.absent or not each:
        return tokens
    limit = device_memory()
    if limit is None:
        return tokens
    taken = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(held))
    rings = (ring_bytes(m.config, m.embed.dtype, partitioner, tokens=least, slack=slack, page=page) for m in models)
    taken += lanes // shards * sum(rings)
    pages = max(int((SHARE * limit - taken) / (each * page)), page_count(least, page))
    return min(tokens, shards * pages * page)
