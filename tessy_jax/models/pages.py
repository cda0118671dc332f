"""Keys and values in pages (PagedAttention, Kwon et al. 2023), and attention to them.

Layers with the same window are one kind. A kind keeps its keys and values in an array of pages [L, P, K, page, C]: L layers
of the kind, and `page` tokens per page. C holds the key and the value of a token, or one latent vector that serves as both.
A table says which page holds tokens n·page … (n + 1)·page − 1 of a lane. A table can be a ring: it reuses its pages in turn,
so it holds the last tokens only.

A pass appends rows of consecutive tokens to lanes, and attends to what the lanes then hold. The pages are updated in place.
There are three implementations: plain XLA, Mosaic on TPUs, and Triton on NVIDIA GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tessy_jax.backend import backend, is_planned, kernels_enabled
from tessy_jax.models import pages_gpu, pages_tpu
from tessy_jax.models.layers import MASKED, einsum_f32
from tessy_jax.models.pages_check import Case, agrees
from tessy_jax.sharding import Axes, Partitioner

PAGE = 128
"""The default number of tokens per page, which TPUs copy in one transfer. Other page sizes must divide it."""


def page_count(tokens: Any, page: int = PAGE) -> Any:
    """The number of pages that hold `tokens` tokens. Accepts integers and arrays."""
    return -(-tokens // page)


@dataclass(frozen=True)
class Packing:
    """Tokens of many rows side by side, so that only attention works on [R, T] and unused times of a row cost nothing
    elsewhere. D: shards of the lanes, each with R / D rows and u packed tokens.

    tokens_Du: where each packed token is among the rows of its shard, as row · T + time. index_RT: the packed index of each
    token within its shard, the inverse.
    """

    tokens_Du: jax.Array
    index_RT: jax.Array

    def unpack(self, x_Du: jax.Array) -> jax.Array:
        """[D, u, …] as [R, T, …]."""
        x = _take(x_Du, self.index_RT.reshape(len(x_Du), -1))
        return x.reshape(*self.index_RT.shape, *x.shape[2:])

    def pack(self, x_RT: jax.Array) -> jax.Array:
        """[R, T, …] as [D, u, …]."""
        return _take(x_RT.reshape(len(self.tokens_Du), -1, *x_RT.shape[2:]), self.tokens_Du)


@jax.vmap
def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


class Rows(NamedTuple):
    """The tokens that a pass appends: rows of up to T consecutive tokens, each of one lane."""

    starts_R: jax.Array
    """Index of the row's first token in its lane. Earlier tokens of the lane are in the pages or in earlier rows."""
    counts_R: jax.Array
    """Valid tokens of each row. Outputs of the other tokens are undefined."""
    lanes_R: jax.Array | None = None
    """Lane of each row, numbered within its shard; None: row r is lane r."""
    first_R: jax.Array | None = None
    """The first token that the row sees. Positions count from it. None: 0."""
    packing: Packing | None = None
    """How the tokens of all rows are packed; None: [R, T]."""

    def positions(self, size: int) -> jax.Array:
        """The position of each token [R, T], where T is `size`."""
        starts_R = self.starts_R if self.first_R is None else self.starts_R - self.first_R
        return starts_R[:, None] + jnp.arange(size, dtype=jnp.int32)


class Heads(NamedTuple):
    """How attention reads pages. keys, values: first column in C, and the column after the last. window: tokens that a query
    sees, itself included; None for all. scale: factor of the scores. latent: all heads read the same keys."""

    keys: tuple[int, int]
    values: tuple[int, int]
    window: int | None
    scale: float
    latent: bool = False


class LayerPages(NamedTuple):
    """Where a layer's keys and values are: its kind, and its number in the pages of that kind."""

    kind: int
    number: int | jax.Array


class Where(NamedTuple):
    """The rows of one kernel call: the arguments of `append_attend` with these names. lowest [R]: the first token that a row
    sees."""

    layer: jax.Array
    table: jax.Array
    starts: jax.Array
    counts: jax.Array
    lanes: jax.Array
    lowest: jax.Array
    ring: bool


@partial(jax.tree_util.register_dataclass, data_fields=("pages", "tables"), meta_fields=("rings", "layers"))
@dataclass(frozen=True)
class PagedKV:
    """Keys and values of all layers of a model."""

    pages: tuple[jax.Array, ...]
    """One array [L, P, K, page, C] per kind of layer. P: pages of all shards together."""
    tables: tuple[jax.Array, ...]
    """Page ids [B, N] of each kind, numbered within the shard of the lane."""
    rings: tuple[bool, ...] = field(default=())
    """Whether the table of each kind is a ring."""
    layers: tuple[LayerPages, ...] = field(default=())
    """Where the pages of each layer are."""

    def attend(
        self,
        layer: LayerPages,
        q_RTKGH: jax.Array,
        new_RKTC: jax.Array,
        rows: Rows,
        heads: Heads,
        sinks_KG: jax.Array | None,
        partitioner: Partitioner,
    ) -> tuple[jax.Array, PagedKV]:
        """Appends rows to the pages of a layer, and attends to the tokens of their lanes. Returns [R, T, K, G, H'] in q's
        dtype, and the new pages. sinks_KG: see `attention.attend`."""
        kind = layer.kind
        lanes, keys = "lanes", None if heads.latent else "kv_heads"
        groups = "heads" if heads.latent else None
        args = {
            "q": (q_RTKGH, (lanes, None, keys, groups, None)),
            "new": (new_RKTC, (lanes, keys, None, None)),
            "pages": (self.pages[kind], (None, lanes, keys, None, None)),
            "table": (self.tables[kind], (lanes, None)),
            "starts": (rows.starts_R, (lanes,)),
            "counts": (rows.counts_R, (lanes,)),
            "lanes": (rows.lanes_R, (lanes,)),
            "first": (rows.first_R, (lanes,)),
            "layer": (jnp.asarray(layer.number, jnp.int32), ()),
            "sinks": (sinks_KG, (keys, groups)),
        }
        given = {name: x for name, (x, _) in args.items() if x is not None}

        def body(given: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            return append_attend(heads=heads, ring=self.rings[kind], **given)

        axes: dict[str, Axes] = {name: args[name][1] for name in given}
        out, pages = partitioner.by_shard(body, given, axes, (axes["q"], axes["pages"]))
        return out, replace(self, pages=(*self.pages[:kind], pages, *self.pages[kind + 1 :]))


def stored_dtype(dtype: Any) -> Any:
    """The dtype in which pages store keys and values of a dtype. On CPUs, 16-bit numbers are stored as uint16: otherwise XLA
    would convert all pages to float32 to write or read some."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.uint16) if dtype.itemsize == 2 and backend().platform == "cpu" else dtype


def append_attend(
    *,
    q: jax.Array,
    new: jax.Array,
    pages: jax.Array,
    layer: int | jax.Array,
    table: jax.Array,
    starts: jax.Array,
    counts: jax.Array,
    heads: Heads,
    ring: bool,
    lanes: jax.Array | None = None,
    first: jax.Array | None = None,
    sinks: jax.Array | None = None,
    body: str = "",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Appends rows of tokens to one layer's pages, and attends to the tokens of their lanes, on one device.

    q [R, T, K, G, H], new [R, K, T, C] (columns that it lacks are zero), pages [L, P, K, page, C], layer: index in L, table
    [B, N], starts, counts, lanes and first [R], sinks [K, G]; see `Rows` and `Heads`. ring: whether the table is one.

    A query sees the tokens of its lane from `first` on up to itself, limited by the window. Scores and softmax are float32.
    body: "xla", "mosaic" or "triton" (default: see `proven_body`). interpret: for tests of the kernels on CPUs. Returns
    [R, T, K, G, H'] in q's dtype, where H' is the number of value columns, and the pages.
    """
    R, T, K, G, H = q.shape
    width = pages.shape[4] - new.shape[3]
    new = jnp.pad(new, ((0, 0), (0, 0), (0, 0), (0, width)))
    lanes = jnp.arange(R, dtype=jnp.int32) if lanes is None else lanes
    lowest = jnp.zeros_like(starts) if first is None else first
    # heads of a group and time form one dimension M of batched matrix products, for which every backend has a kernel
    q_RKMH = q.transpose(0, 2, 3, 1, 4).reshape(R, K, G * T, H)
    sinks_KM = None if sinks is None else jnp.repeat(sinks.astype(jnp.float32), T, axis=1)
    body = body or proven_body(q, pages, heads, ring, sinks is not None)
    where = Where(jnp.asarray(layer, jnp.int32), table, starts, counts, lanes, lowest, ring)
    if body == "mosaic":
        before = heads.keys[0]
        q_RKMC = jnp.pad(q_RKMH, ((0, 0), (0, 0), (0, 0), (before, pages.shape[4] - before - H)))
        out, pages = pages_tpu.append_attend(q_RKMC, new, pages, where, heads, sinks_KM, interpret=interpret)
        out = out[..., slice(*heads.values)]
    else:
        pages = _append(new, pages, where)
        if body == "triton":
            out = pages_gpu.attend(q_RKMH, pages, where, heads, T, sinks_KM, interpret=interpret)
        else:
            out = _attend(q_RKMH, pages, where, heads, T, sinks_KM)
    return out.astype(q.dtype).reshape(R, K, G, T, -1).transpose(0, 3, 1, 2, 4), pages


def proven_body(q: jax.Array, pages: jax.Array, heads: Heads, ring: bool, sinks: bool) -> str:
    """The body of `append_attend` on the current platform: a kernel if there is one and it agrees with plain XLA on this
    device. For a planned target, whose devices are absent, it is not compared."""
    body = chosen_body(heads, pages)
    if body == "xla" or is_planned():
        return body
    _, T, K, G, H = q.shape
    case = Case(body, T, K, G, H, pages.shape[4], pages.shape[3], pages.dtype, heads, ring, sinks)
    return body if agrees(case, append_attend) else "xla"


def chosen_body(heads: Heads, pages: jax.Array) -> str:
    """The body of `append_attend` for these pages on the current platform."""
    platform = backend().platform if kernels_enabled() else ""
    if platform == "tpu" and pages_tpu.supports(pages):
        return "mosaic"
    if platform in ("gpu", "cuda") and pages_gpu.supports(heads, pages.shape[3], pages.dtype):
        return "triton"
    return "xla"


def _append(new: jax.Array, pages: jax.Array, where: Where) -> jax.Array:
    """The pages with the new tokens."""
    T, page, N = new.shape[2], pages.shape[3], where.table.shape[1]
    places = where.starts[:, None] + jnp.arange(T, dtype=jnp.int32)
    valid = jnp.arange(T, dtype=jnp.int32) < where.counts[:, None]
    number = places // page
    ids = where.table[where.lanes[:, None], number % N if where.ring else jnp.minimum(number, N - 1)]
    new = new.swapaxes(1, 2)
    new = jax.lax.bitcast_convert_type(new, jnp.uint16) if pages.dtype == jnp.uint16 else new.astype(pages.dtype)
    return pages.at[where.layer, jnp.where(valid, ids, pages.shape[1]), :, places % page].set(new, mode="drop")


def _attend(
    q_RKMH: jax.Array, pages: jax.Array, where: Where, heads: Heads, times: int, sinks_KM: jax.Array | None
) -> jax.Array:
    """Attention [R, K, M, H'] in plain XLA. CPUs take one row at a time: its block stays in the processor's cache, and a row
    reads only the blocks that it sees, none if it has no tokens. Elsewhere, few large kernels are faster."""
    if backend().platform != "cpu":
        return _attend_rows(q_RKMH, pages, where, heads, times, sinks_KM)
    of_rows = (q_RKMH, where.starts, where.counts, where.lanes, where.lowest)

    def attend_row(row: tuple[jax.Array, ...]) -> jax.Array:
        q_1KMH, starts, counts, lanes, lowest = (x[None] for x in row)
        one = where._replace(starts=starts, counts=counts, lanes=lanes, lowest=lowest)
        return _attend_rows(q_1KMH, pages, one, heads, times, sinks_KM)[0]

    return jax.lax.map(attend_row, of_rows)


def _attend_rows(
    q_RKMH: jax.Array, pages: jax.Array, where: Where, heads: Heads, times: int, sinks_KM: jax.Array | None
) -> jax.Array:
    """Attention of all rows at once to blocks of `PAGE` tokens, from the first block that a row sees to its last."""
    R, K, M, _ = q_RKMH.shape
    layer, table, starts, counts, lanes, lowest, ring = where
    page, N = pages.shape[3], table.shape[1]
    each = PAGE // page  # pages per block
    total_R = starts + counts
    oldest_R = lowest if heads.window is None else jnp.maximum(lowest, starts - heads.window + 1)
    block_R = oldest_R // PAGE
    blocks = jnp.where(counts > 0, -(-total_R // PAGE) - block_R, 0).max()
    at_RM = starts[:, None] + jnp.arange(M, dtype=jnp.int32) % times

    def columns(ids: jax.Array, first: int, end: int) -> jax.Array:
        x = pages[layer, ids, :, :, first:end].swapaxes(1, 2).reshape(R, K, PAGE, -1)
        return jax.lax.bitcast_convert_type(x, q_RKMH.dtype) if pages.dtype == jnp.uint16 else x

    def body(x: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        j, acc, top, total = x
        number = (block_R + j)[:, None] * each + jnp.arange(each, dtype=jnp.int32)
        ids = table[lanes[:, None], number % N if ring else jnp.minimum(number, N - 1)]
        positions = ((block_R + j) * PAGE)[:, None] + jnp.arange(PAGE, dtype=jnp.int32)
        exists = positions < total_R[:, None]
        seen = (positions[:, None] <= at_RM[:, :, None]) & (positions >= lowest[:, None])[:, None] & exists[:, None]
        if heads.window is not None:
            seen &= positions[:, None] > at_RM[:, :, None] - heads.window
        scores = einsum_f32("rkmh,rksh->rkms", q_RKMH, columns(ids, *heads.keys)) * heads.scale
        scores = jnp.where(seen[:, None], scores, MASKED)
        above = jnp.maximum(top, scores.max(axis=-1))
        weights = jnp.where(seen[:, None], jnp.exp(scores - above[..., None]), 0)
        keeps = jnp.exp(top - above)
        # what was never written may be NaN, and 0 · NaN is not 0
        values = jnp.where(exists[:, None, :, None], columns(ids, *heads.values), 0)
        acc = acc * keeps[..., None] + einsum_f32("rkms,rksh->rkmh", weights.astype(values.dtype), values)
        return j + 1, acc, above, total * keeps + weights.sum(axis=-1)

    top, total = jnp.full((R, K, M), MASKED), jnp.zeros((R, K, M))
    if sinks_KM is not None:
        top, total = jnp.broadcast_to(sinks_KM, (R, K, M)), jnp.ones((R, K, M))
    start = jnp.int32(0), jnp.zeros((R, K, M, heads.values[1] - heads.values[0])), top, total
    _, acc, _, total = jax.lax.while_loop(lambda x: x[0] < blocks, body, start)
    return acc / jnp.where(total > 0, total, 1)[..., None]
