"""The key/value cache: contiguous slots per lane, in buckets, with rollback as a lower length.

A lane's length says which slots are valid; what lies beyond is garbage that no query sees. Full-attention layers keep token
p in slot p. Sliding-window layers keep it in slot p mod size, where size covers the window and `slack` tokens more, so
that a chunk of up to `slack` tokens can be written, and up to `slack` tokens rolled back, before anything that a later
query needs is overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from tessy_jax.models.attention import LayerCache
from tessy_jax.models.config import ModelConfig
from tessy_jax.sharding import Axes, Partitioner, zeros


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerKV:
    """One layer's keys and values; `values` is None where the keys hold everything (latent attention)."""

    keys: jax.Array  # [B, K, S, H]
    values: jax.Array | None  # [B, K, S, H]

    def append(
        self,
        keys_BKTH: jax.Array,
        values_BKTH: jax.Array | None,
        lengths_B: jax.Array,
        counts_B: jax.Array,
        rows_B: jax.Array | None = None,
    ) -> LayerKV:
        """Writes the first counts_B tokens of each lane after its lengths_B cached ones; the rest is dropped. rows_B: the
        cache row of each lane, without duplicates (default: the lane's index). Lanes with a row out of range are dropped."""
        size, T = self.keys.shape[2], keys_BKTH.shape[2]
        time_T = jnp.arange(T, dtype=jnp.int32)
        # dropped tokens go to distinct slots beyond the end, because the scatter requires unique indices
        slots_BT = jnp.where(time_T < counts_B[:, None], (lengths_B[:, None] + time_T) % size, size + time_T)

        def write(old_BKSH: jax.Array, new_BKTH: jax.Array) -> jax.Array:
            new_BKTH = new_BKTH.astype(old_BKSH.dtype)
            if T > 1 or old_BKSH.dtype.itemsize > 2 or rows_B is not None:
                return _scatter(old_BKSH, new_BKTH, slots_BT, rows_B)
            return jax.lax.platform_dependent(old_BKSH, new_BKTH, slots_BT, cpu=_select, default=_scatter)

        values = None
        if self.values is not None and values_BKTH is not None:
            values = write(self.values, values_BKTH)
        return LayerKV(write(self.keys, keys_BKTH), values)

    def read(self, rows_B: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
        """Keys and values. rows_B: see `append`; a row out of range is clipped, so it gives the values of another row."""
        if rows_B is None:
            return self.keys, self.values
        keys, values = jax.tree.map(lambda x: x.at[rows_B].get(mode="clip"), (self.keys, self.values))
        return keys, values

    def positions(self, lengths_B: jax.Array) -> jax.Array:
        """The position in each slot [B, S] when lengths_B tokens are cached: the largest one below the length that
        belongs there; negative if there is none."""
        size = self.keys.shape[2]
        slots_S = jnp.arange(size, dtype=jnp.int32)
        return slots_S + size * ((lengths_B[:, None] - 1 - slots_S) // size)


def _scatter(old_BKSH: jax.Array, new_BKTH: jax.Array, slots_BT: jax.Array, rows_B: jax.Array | None = None) -> jax.Array:
    """Writes new tokens to their slots; slots and rows out of range are dropped."""
    rows_B = jnp.arange(old_BKSH.shape[0], dtype=jnp.int32) if rows_B is None else rows_B
    return old_BKSH.at[rows_B[:, None], :, slots_BT].set(new_BKTH.swapaxes(1, 2), mode="drop", unique_indices=True)


def _select(old_BKSH: jax.Array, new_BK1H: jax.Array, slots_B1: jax.Array) -> jax.Array:
    """The same for one 16-bit token a lane on CPUs, where XLA widens a scatter to float32 and so copies the whole cache
    twice in every step; one pass of a select costs half of that."""
    hit_BS = jnp.arange(old_BKSH.shape[2], dtype=jnp.int32) == slots_B1
    return jnp.where(hit_BS[:, None, :, None], new_BK1H, old_BKSH)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """All layers of one model. lengths_B: tokens cached per lane."""

    layers: tuple[LayerKV, ...]
    lengths_B: jax.Array

    def advance(self, layers: Sequence[LayerCache], counts_B: jax.Array) -> KVCache:
        return KVCache(tuple(layers), self.lengths_B + counts_B)  # type: ignore[arg-type]

    def rollback(self, lengths_B: jax.Array) -> KVCache:
        """With lower lengths; on sliding layers at most `slack` tokens lower than the longest the lane ever was."""
        return replace(self, lengths_B=lengths_B)


def layer_kv_shape(config: ModelConfig, lanes: int, capacity: int, window: int | None, slack: int) -> tuple[int, ...]:
    """[B, K, S, H] of one layer's keys."""
    size = capacity if window is None else min(capacity, window + slack)
    if config.latent:
        return (lanes, 1, size, config.latent.kv_rank + config.latent.rope_dim)
    return (lanes, config.kv_heads, size, config.head_dim)


def layer_kv_axes(config: ModelConfig) -> Axes:
    return ("lanes", None if config.latent else "kv_heads", None, None)


def new_cache(
    config: ModelConfig, lanes: int, capacity: int, *, slack: int, dtype: Any, partitioner: Partitioner | None = None
) -> KVCache:
    """An empty cache for `lanes` lanes of up to `capacity` tokens.

    slack: the most tokens that one chunk appends, or that are rolled back at once.

    Raises:
        ShardingError: lanes that the mesh does not divide.
    """
    partitioner = partitioner or Partitioner()
    partitioner.check({"lanes": (lanes, "the number of lanes")})

    def empty(window: int | None) -> jax.Array:
        return zeros(layer_kv_shape(config, lanes, capacity, window, slack), dtype, partitioner, layer_kv_axes(config))

    layers = tuple(LayerKV(empty(w), None if config.latent else empty(w)) for w in config.windows)
    return KVCache(layers, zeros((lanes,), jnp.int32, partitioner, ("lanes",)))


def grow(config: ModelConfig, capacity: int, slack: int, cache: KVCache) -> KVCache:
    """The same tokens in a larger bucket. A sliding layer that is not full-sized yet has not wrapped, so its slots stay."""

    def wider(old: jax.Array, window: int | None) -> jax.Array:
        size = layer_kv_shape(config, old.shape[0], capacity, window, slack)[2]
        return jnp.pad(old, ((0, 0), (0, 0), (0, size - old.shape[2]), (0, 0)))

    layers = tuple(
        LayerKV(wider(layer.keys, w), None if layer.values is None else wider(layer.values, w))
        for layer, w in zip(cache.layers, config.windows, strict=True)
    )
    return KVCache(layers, cache.lengths_B)
