"""Reads and writes a window of each lane's row, at a position per lane."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def read_window(old_BX: jax.Array, start_B: jax.Array, size: int) -> jax.Array:
    """`size` elements of each lane from start_B on [B, size]; positions outside the row are clipped to it."""
    index_BW = start_B[:, None] + jnp.arange(size)
    return jnp.take_along_axis(old_BX, jnp.clip(index_BW, 0, old_BX.shape[1] - 1), axis=1)


def write_window(old_BX: jax.Array, new_BW: jax.Array, start_B: jax.Array) -> jax.Array:
    """Overwrites each lane from start_B on. The row must have room for the whole window, including elements that do not
    count: `dynamic_update_slice` shifts a window that exceeds the row back to its end."""

    def one(row: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row, new, start, 0)

    return jax.vmap(one)(old_BX, new_BW.astype(old_BX.dtype), start_B)
