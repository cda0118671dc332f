"""Reads and writes a window of each lane's row, at a position per lane.

Rows are those of an array [B, X], or of part m of an array [M, B, X]; m is the same for all lanes, or one per lane [B].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def read_window(old: jax.Array, start_B: jax.Array, size: int, m: int | jax.Array | None = None) -> jax.Array:
    """`size` elements of each lane from start_B on [B, size]; positions outside the row are clipped to it."""
    index_BW = jnp.clip(start_B[:, None] + jnp.arange(size), 0, old.shape[-1] - 1)
    if m is None:
        return jnp.take_along_axis(old, index_BW, axis=1)
    lanes_B1 = jnp.arange(old.shape[1], dtype=jnp.int32)[:, None]
    return old.at[jnp.reshape(m, (-1, 1)), lanes_B1, index_BW].get(mode="promise_in_bounds")


def write_window(old: jax.Array, new_BW: jax.Array, start_B: jax.Array, m: int | jax.Array | None = None) -> jax.Array:
    """Overwrites each lane from start_B on. The row must have room for the whole window, including elements that do not
    count: `dynamic_update_slice` shifts a window that exceeds the row back to its end."""

    def one(row_X: jax.Array, new_W: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row_X, new_W, start, 0)

    def one_of(row_MX: jax.Array, new_W: jax.Array, start: jax.Array, m: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row_MX, new_W[None], (m, start))

    new_BW = new_BW.astype(old.dtype)
    if m is None:
        return jax.vmap(one)(old, new_BW, start_B)
    m_B = jnp.broadcast_to(jnp.asarray(m, start_B.dtype), start_B.shape)
    return jax.vmap(one_of, in_axes=(1, 0, 0, 0), out_axes=1)(old, new_BW, start_B, m_B)
