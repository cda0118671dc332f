"""Appends tokens to pages and attends to them on TPUs, in one Mosaic kernel.

A step of the grid takes one row. It copies blocks of pages to VMEM with double buffering, inserts the row's new tokens
there, writes what has changed back to HBM, and attends. Steps run one after another, so a row sees the tokens of earlier
rows of its lane. XLA would copy all pages to append to them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tessy_jax.models.layers import MASKED, precision

if TYPE_CHECKING:
    from tessy_jax.models.pages import Heads, Where

BLOCK = 4  # pages per block
TILE = 16  # tokens of a tile of 16-bit numbers: the least that a copy may change
LANES = 128  # lanes of a vector register
MEMORY = 64 << 20  # bytes of VMEM that the kernel may take


def supports(pages: jax.Array) -> bool:
    """Whether the kernel supports these pages."""
    return pages.shape[4] % LANES == 0 and pages.shape[3] % TILE == 0 and pages.dtype in (jnp.bfloat16, jnp.float32)


def append_attend(
    q_RKMC: jax.Array,
    new_RKTC: jax.Array,
    pages: jax.Array,
    where: Where,
    heads: Heads,
    sinks_KM: jax.Array | None,
    *,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Appends and attends. q: M = groups × times, times last, and zeros in the columns that hold no keys. Returns
    [R, K, M, C], of which only the value columns are valid, and the pages."""
    R, K, M, C = q_RKMC.shape
    T, page = new_RKTC.shape[2], pages.shape[3]
    layer, table, starts, counts, lanes, lowest, ring = where
    scalars = (layer.reshape(1), table.reshape(-1), lanes, starts, counts, lowest)
    vectors = [q_RKMC, new_RKTC]
    specs = [
        pl.BlockSpec((1, K, M, C), lambda r, *_: (r, 0, 0, 0)),
        pl.BlockSpec((1, K, T, C), lambda r, *_: (r, 0, 0, 0)),
    ]
    if sinks_KM is not None:
        vectors.append(sinks_KM.astype(jnp.float32)[..., None])
        specs.append(pl.BlockSpec((K, M, 1), lambda r, *_: (0, 0, 0)))
    kernel = partial(
        _kernel,
        has_sinks=sinks_KM is not None,
        columns=table.shape[1],
        window=heads.window,
        scale=heads.scale,
        ring=ring,
    )
    out, pages = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(R,),
            in_specs=[*specs, pl.BlockSpec(memory_space=pltpu.HBM)],
            out_specs=[specs[0], pl.BlockSpec(memory_space=pltpu.HBM)],
            scratch_shapes=[
                pltpu.VMEM((2, BLOCK, K, page, C), pages.dtype),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SemaphoreType.DMA,
                pltpu.VMEM((K, M, C), jnp.float32),
                pltpu.VMEM((K, M, LANES), jnp.float32),
                pltpu.VMEM((K, M, LANES), jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(q_RKMC.shape, q_RKMC.dtype), pltpu.HBM(pages.shape, pages.dtype)],
        input_output_aliases={len(scalars) + len(vectors): 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=MEMORY),
        interpret=interpret,
        name="append_attend",
    )(*scalars, *vectors, pages if interpret else pltpu.with_memory_space_constraint(pages, pltpu.HBM))
    return out, pages


def _kernel(*refs: Any, has_sinks: bool, columns: int, window: int | None, scale: float, ring: bool) -> None:
    layer_ref, table_ref, lanes_ref, starts_ref, counts_ref, lowest_ref, q_ref, new_ref, *rest = refs
    sinks_ref = rest.pop(0) if has_sinks else None
    _, out_ref, pages_ref, buffer, sems, write_sem, acc_ref, top_ref, total_ref = rest
    r, layer = pl.program_id(0), layer_ref[0]
    K, M, C = q_ref.shape[1:]
    T, page = new_ref.shape[2], buffer.shape[3]
    row, old, count, lowest = lanes_ref[r] * columns, starts_ref[r], counts_ref[r], lowest_ref[r]
    total_tokens, size = old + count, BLOCK * page
    oldest = lowest if window is None else jnp.maximum(lowest, old - window + 1)
    first, last = oldest // size, pl.cdiv(total_tokens, size)

    def page_of(number: Any) -> Any:
        return table_ref[row + (number % columns if ring else jnp.minimum(number, columns - 1))]

    def in_block(j: Any) -> Any:
        """The pages of block j: place in the block, number in the lane, and whether there are tokens."""
        for i in range(BLOCK):
            yield i, j * BLOCK + i, (j * BLOCK + i) * page < total_tokens

    def copy(number: Any, slot: Any, i: int) -> Any:
        return pltpu.make_async_copy(pages_ref.at[layer, page_of(number)], buffer.at[slot, i], sems.at[slot])

    def begin(j: Any, slot: Any) -> None:
        for i, number, has_tokens in in_block(j):
            pl.when(has_tokens)(copy(number, slot, i).start)

    def wait(j: Any, slot: Any) -> None:
        for i, number, has_tokens in in_block(j):
            pl.when(has_tokens)(copy(number, slot, i).wait)

            @pl.when(~has_tokens)  # what was never written may be NaN, and 0 · NaN is not 0
            def clear(i: int = i) -> None:
                buffer[slot, i] = jnp.zeros_like(buffer[slot, i])

    def insert(j: Any, slot: Any) -> None:
        """Puts the new tokens into the pages of block j, in VMEM and in HBM."""
        for i, number, has_tokens in in_block(j):

            @pl.when(has_tokens & ((number + 1) * page > old))
            def put(i: int = i, number: Any = number) -> None:
                index = jax.lax.broadcasted_iota(jnp.int32, (page, C), 0) + number * page - old
                for k in range(K):
                    if T == 1:
                        new = jnp.broadcast_to(new_ref[0, k], (page, C))
                    else:
                        of_page = jax.lax.broadcasted_iota(jnp.int32, (page, T), 0) + number * page - old
                        hot = (of_page == jax.lax.broadcasted_iota(jnp.int32, (page, T), 1)).astype(buffer.dtype)
                        new = _dot(hot, new_ref[0, k], 1, 0).astype(buffer.dtype)
                    buffer[slot, i, k] = jnp.where((index >= 0) & (index < count), new, buffer[slot, i, k])
                source, target = buffer.at[slot, i], pages_ref.at[layer, page_of(number)]
                if T == 1:
                    tile = pl.ds(pl.multiple_of((old - number * page) // TILE * TILE, TILE), TILE)
                    source, target = source.at[:, tile], target.at[:, tile]
                write = pltpu.make_async_copy(source, target, write_sem)
                write.start()
                write.wait()
                for k in range(K):  # unwritten places of the page, see `wait`
                    buffer[slot, i, k] = jnp.where(index < count, buffer[slot, i, k], jnp.zeros((page, C), buffer.dtype))

    acc_ref[...] = jnp.zeros_like(acc_ref)
    top_ref[...] = jnp.full_like(top_ref, MASKED)
    total_ref[...] = jnp.zeros_like(total_ref)
    if sinks_ref is not None:
        top_ref[...] = jnp.broadcast_to(sinks_ref[...], top_ref.shape)
        total_ref[...] = jnp.ones_like(total_ref)

    def body(j: Any, carry: Any) -> Any:
        slot = (j - first) % 2
        pl.when(j + 1 < last)(lambda: begin(j + 1, 1 - slot))
        wait(j, slot)
        insert(j, slot)
        position = j * size + jax.lax.broadcasted_iota(jnp.int32, (M, size), 1)
        at = old + jax.lax.broadcasted_iota(jnp.int32, (M, size), 0) % T
        seen = (position <= at) & (position < total_tokens) & (position >= lowest)
        if window is not None:
            seen &= position > at - window
        for k in range(K):
            kv = buffer[slot, :, k].reshape(size, C)
            scores = jnp.where(seen, _dot(q_ref[0, k], kv, 1, 1) * scale, MASKED)
            top = top_ref[k][:, :1]
            above = jnp.maximum(top, scores.max(axis=1, keepdims=True))
            weights = jnp.where(seen, jnp.exp(scores - above), 0.0)
            keeps = jnp.exp(top - above)
            total = total_ref[k][:, :1] * keeps + weights.sum(axis=1, keepdims=True)
            total_ref[k] = jnp.broadcast_to(total, (M, LANES))
            top_ref[k] = jnp.broadcast_to(above, (M, LANES))
            acc_ref[k] = acc_ref[k] * keeps + _dot(weights.astype(kv.dtype), kv, 1, 0)
        return carry

    @pl.when(count > 0)
    def read() -> None:
        begin(first, 0)
        jax.lax.fori_loop(first, last, body, 0)

    for k in range(K):
        out_ref[0, k] = (acc_ref[k] / jnp.maximum(total_ref[k][:, :1], 1e-30)).astype(out_ref.dtype)


def _dot(a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
    dims = (((of_a,), (of_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision(b.dtype), preferred_element_type=jnp.float32)
