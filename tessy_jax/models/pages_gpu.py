"""Attention to pages on NVIDIA GPUs, in Triton; XLA appends the tokens.

A program attends for some queries of one row and key/value head, and reads one of several splits of the row's pages. XLA
combines the splits and adds the sinks.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tessy_jax.models.layers import MASKED

if TYPE_CHECKING:
    from tessy_jax.models.pages import Heads, Where

SPLITS = 8  # parts into which the pages of a row are split
LEAST = 16  # the smallest dimension of a product
WIDE = 256  # from this many value columns on, a program takes few queries, so that its accumulators fit in registers


def supports(heads: Heads, page: int, dtype: Any) -> bool:
    """Whether the kernel supports these pages: 16-bit numbers, and blocks whose sizes are powers of two from `LEAST` on."""
    width = heads.values[1] - heads.values[0]
    powers = all(size >= LEAST for size in _powers(*heads.keys)[1]) and width & (width - 1) == 0 and width >= LEAST
    return powers and page >= LEAST and jnp.dtype(dtype).itemsize == 2


def attend(
    q_RKMH: jax.Array,
    pages: jax.Array,
    where: Where,
    heads: Heads,
    times: int,
    sinks_KM: jax.Array | None,
    *,
    splits: int = SPLITS,
    interpret: bool = False,
) -> jax.Array:
    """Attention after the tokens are appended. q: M = groups × times, times last. Returns [R, K, M, H'] in float32."""
    R, K, M, H = q_RKMH.shape
    page, width = pages.shape[3], heads.values[1] - heads.values[0]
    most = LEAST if width >= WIDE else 64
    rows = min(most, max(LEAST, 1 << (M - 1).bit_length()))
    blocks = -(-M // rows)
    q = jnp.pad(q_RKMH, ((0, 0), (0, 0), (0, blocks * rows - M), (0, 0)))
    kernel = partial(
        _kernel, times=times, page=page, columns=where.table.shape[1], splits=splits, heads=heads, ring=where.ring, rows=rows
    )
    shape = (splits, R, K, blocks * rows)

    def block(*, last: int | None) -> pl.BlockSpec:
        size = (1, 1, 1, rows) if last is None else (1, 1, 1, rows, last)
        return pl.BlockSpec(size, lambda rb, k, s: (s, rb // blocks, k, rb % blocks, *(() if last is None else (0,))))

    out, top, total = pl.pallas_call(
        kernel,
        grid=(R * blocks, K, splits),
        in_specs=[pl.no_block_spec] * 6
        + [pl.BlockSpec((1, 1, rows, H), lambda rb, k, s: (rb // blocks, k, rb % blocks, 0)), pl.no_block_spec],
        out_specs=[block(last=width), block(last=None), block(last=None)],
        out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in ((*shape, width), shape, shape)],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="attend_pages",
    )(where.layer.reshape(1), where.table, where.lanes, where.starts, where.counts, where.lowest, q, pages)
    out, top, total = out[:, :, :, :M], top[..., :M], total[..., :M]
    highest = top.max(axis=0)
    if sinks_KM is not None:
        highest = jnp.maximum(highest, sinks_KM)
    share = jnp.exp(top - highest)
    total = (total * share).sum(axis=0)
    if sinks_KM is not None:
        total += jnp.exp(sinks_KM - highest)
    return (out * share[..., None]).sum(axis=0) / jnp.where(total > 0, total, 1)[..., None]


def _kernel(
    layer_ref: Any,
    table_ref: Any,
    lanes_ref: Any,
    starts_ref: Any,
    counts_ref: Any,
    lowest_ref: Any,
    q_ref: Any,
    pages_ref: Any,
    out_ref: Any,
    top_ref: Any,
    total_ref: Any,
    *,
    times: int,
    page: int,
    columns: int,
    splits: int,
    heads: Heads,
    ring: bool,
    rows: int,
) -> None:
    blocks = pl.num_programs(0) // starts_ref.shape[0]
    r, k, s = pl.program_id(0) // blocks, pl.program_id(1), pl.program_id(2)
    first_query = pl.program_id(0) % blocks * rows
    layer, lane, start, count, lowest = layer_ref[0], lanes_ref[r], starts_ref[r], counts_ref[r], lowest_ref[r]
    total_tokens = start + count
    oldest = lowest if heads.window is None else jnp.maximum(lowest, start - heads.window + 1)
    first = oldest // page
    last = jnp.where(count > 0, pl.cdiv(total_tokens, page), first)
    each = pl.cdiv(last - first, splits)
    begin = first + s * each
    at = start + (first_query + jax.lax.broadcasted_iota(jnp.int32, (rows, page), 0)) % times
    offsets, sizes = _powers(*heads.keys)
    queries = [q_ref[0, 0, :, pl.ds(offset - heads.keys[0], size)] for offset, size in zip(offsets, sizes, strict=True)]
    width = heads.values[1] - heads.values[0]

    def body(number: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        acc, top, total = carry
        place = number % columns if ring else jnp.minimum(number, columns - 1)
        page_id = table_ref[lane, place]

        def columns_of(offset: int, size: int) -> jax.Array:
            return plgpu.load(pages_ref.at[layer, page_id, k, :, pl.ds(offset, size)])

        keys = [columns_of(offset, size) for offset, size in zip(offsets, sizes, strict=True)]
        scores = sum(plgpu.dot(q, key, trans_b=True) for q, key in zip(queries, keys, strict=True)) * heads.scale
        position = number * page + jax.lax.broadcasted_iota(jnp.int32, (rows, page), 1)
        seen = (position <= at) & (position < total_tokens) & (position >= lowest)
        if heads.window is not None:
            seen &= position > at - heads.window
        scores = jnp.where(seen, scores, MASKED)
        above = jnp.maximum(top, scores.max(axis=1))
        weights = jnp.where(seen, jnp.exp(scores - above[:, None]), 0.0)
        keeps = jnp.exp(top - above)
        values = columns_of(heads.values[0], width)
        # what was never written may be NaN, and 0 · NaN is not 0
        written = number * page + jax.lax.broadcasted_iota(jnp.int32, (page, width), 0) < total_tokens
        values = jnp.where(written, values, jnp.zeros_like(values))
        acc = acc * keeps[:, None] + plgpu.dot(weights.astype(values.dtype), values)
        return acc, above, total * keeps + weights.sum(axis=1)

    top = jnp.full((rows,), MASKED, jnp.float32)
    start_values = jnp.zeros((rows, width), jnp.float32), top, jnp.zeros_like(top)
    acc, top, total = jax.lax.fori_loop(begin, jnp.minimum(begin + each, last), body, start_values)
    out_ref[0, 0, 0], top_ref[0, 0, 0], total_ref[0, 0, 0] = acc, top, total


def _powers(start: int, end: int) -> tuple[list[int], list[int]]:
    """The offsets and sizes, which are powers of two, of blocks that cover columns start … end − 1."""
    offsets, sizes = [], []
    while start < end:
        size = 1 << ((end - start).bit_length() - 1)
        offsets.append(start)
        sizes.append(size)
        start += size
    return offsets, sizes
