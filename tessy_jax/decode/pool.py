"""How many tokens the caches of an engine hold."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import jax

from tessy_jax.backend import backend
from tessy_jax.decode.cache import columns
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.pages import PAGE
from tessy_jax.models.transformer import Decoder
from tessy_jax.sharding import Partitioner

HOST_SHARE = 0.5  # of the machine's memory that the pools may take on CPUs
DEVICE_SHARE = 0.8  # of an accelerator's memory for weights and pools; the rest is for rings and temporary arrays


def bytes_per_token(config: ModelConfig, itemsize: int, partitioner: Partitioner) -> int:
    """Bytes that a token in the pool takes on each device: keys and values of all full-attention layers."""
    heads = 1 if config.latent else config.kv_heads // partitioner.num_shards("kv_heads")
    return config.windows.count(None) * heads * columns(config) * itemsize


def fitting_pool(models: Sequence[Decoder], weights: object, tokens: int, least: int, partitioner: Partitioner) -> int:
    """The size, in tokens, of the largest pool that memory holds for each of these models: at most `tokens`, and otherwise
    at least `least` on each shard. It is `tokens` if a device is absent or does not report its memory.

    weights: arrays that take device memory, too; on CPUs they do not count. The result is the same in all processes if their
    machines are equal.
    """
    shards = partitioner.num_shards("lanes")
    each = sum(bytes_per_token(m.config, m.embed.dtype.itemsize, partitioner) for m in models)
    if partitioner.absent or not each:
        return tokens
    if backend().platform == "cpu":
        room = HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()
    else:
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        if limit is None:
            return tokens
        arrays = jax.tree.leaves(weights)
        taken = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
        room = DEVICE_SHARE * limit - taken
    pages = max(int(room / (each * PAGE)), -(-least // PAGE))
    return min(tokens, shards * pages * PAGE)
