"""Running minima, maxima and sums along the bytes of a text, in few operations. JAX unrolls its cumulative functions on
CPUs, which makes programs with many of them slow to compile."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def running_min(x: jax.Array, fill: int) -> jax.Array:
    """The minimum of x [..., P] from each index to the end; fill: at least the maximum of x."""
    return _doubled(x, fill, back=True, combine=jnp.minimum)


def running_max(x: jax.Array, fill: int = -1) -> jax.Array:
    """The maximum of x [..., P] up to each index; fill: at most the minimum of x."""
    return _doubled(x, fill, back=False, combine=jnp.maximum)


def running_sum(x: jax.Array) -> jax.Array:
    """The sum of x [..., P] up to each index, in int32."""
    return _doubled(x.astype(jnp.int32), 0, back=False, combine=jnp.add)


def _doubled(x: jax.Array, fill: int, *, back: bool, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Combines each index with the ones at distances 1, 2, 4, …, which covers all of one side after log P rounds."""
    P, axis = x.shape[-1], x.ndim - 1
    border = jnp.full(x.shape, fill, x.dtype)

    def body(i: jax.Array, x: jax.Array) -> jax.Array:
        distance = jnp.left_shift(1, i)
        padded = jnp.concatenate([x, border] if back else [border, x], axis=axis)
        start = distance if back else P - distance
        return combine(x, jax.lax.dynamic_slice_in_dim(padded, start, P, axis))

    return jax.lax.fori_loop(0, (P - 1).bit_length(), body, x)
