"""Running minima, maxima and sums along the bytes of a text, in few operations: JAX unrolls its own on CPUs, which takes
long to compile where there are many."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def running_min(x: jax.Array, fill: int) -> jax.Array:
    """The smallest of x [..., P] from each place to the end; fill: at least as large as any."""
    return _doubled(x, fill, back=True, combine=jnp.minimum)


def running_max(x: jax.Array, fill: int = -1) -> jax.Array:
    """The largest of x [..., P] up to each place; fill: at most as large as any."""
    return _doubled(x, fill, back=False, combine=jnp.maximum)


def running_sum(x: jax.Array) -> jax.Array:
    """The sum of x [..., P] up to each place, in int32."""
    return _doubled(x.astype(jnp.int32), 0, back=False, combine=jnp.add)


def _doubled(x: jax.Array, fill: int, *, back: bool, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Each place combined with the one 1, 2, 4, … places away, so that after log P rounds it has met all of its side."""
    P, axis = x.shape[-1], x.ndim - 1
    border = jnp.full(x.shape, fill, x.dtype)

    def body(i: jax.Array, x: jax.Array) -> jax.Array:
        away = jnp.left_shift(1, i)
        padded = jnp.concatenate([x, border] if back else [border, x], axis=axis)
        start = away if back else P - away
        return combine(x, jax.lax.dynamic_slice_in_dim(padded, start, P, axis))

    return jax.lax.fori_loop(0, (P - 1).bit_length(), body, x)
