"""The key/value cache of one model: pages that lanes take from a pool, with rollback as a lower length.

A lane's length says which of its tokens are valid; what lies beyond is garbage that no query sees. Full-attention layers
share one table of pages. A lane takes pages from the pool of its shard before a pass (`reserve`) and keeps them until the
lane is released. Lanes may own the same page if its tokens are equal in all of them and never change, such as those of a
prompt; a reference count per page says how many lanes own it.

Sliding-window layers own a ring of pages per lane. A ring covers the window and `slack` tokens more, so that a pass of up
to `slack` tokens can be appended, and up to `slack` tokens rolled back, without overwriting anything that a later query
needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tessy_jax.backend import backend
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.pages import PAGE, LayerPages, PagedKV, page_count, stored_dtype
from tessy_jax.sharding import Axes, Partitioner, put, zeros


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PageCache:
    """The pages of one model and who owns them. D: shards of the lanes; P: pages of one shard."""

    kv: PagedKV
    """Keys and values. The first kind is full attention; the others are rings."""
    lengths_B: jax.Array
    """Tokens cached per lane."""
    owned_B: jax.Array
    """Pages per lane: the valid part of its table row."""
    free_DP: jax.Array
    """Ids of the free pages: the first `left_D` of each shard."""
    left_D: jax.Array
    """Number of free pages."""
    owners_DP: jax.Array
    """Number of lanes that own each page; 1 for a free page, so that a lane that takes it need not write the count."""

    @property
    def page(self) -> int:
        """Tokens per page."""
        return self.kv.pages[0].shape[3]

    def without_pages(self) -> PageCache:
        """Without keys and values, for programs that need the rest only."""
        return replace(self, kv=replace(self.kv, pages=()))

    def with_pages(self, other: PageCache) -> PageCache:
        """With the keys and values of another cache."""
        return replace(self, kv=replace(self.kv, pages=other.kv.pages))

    def filled(self, kv: PagedKV | None, lengths_B: jax.Array) -> PageCache:
        """With the keys, values and lengths after a forward pass."""
        assert kv is not None
        return replace(self, kv=kv, lengths_B=lengths_B)

    def rollback(self, lengths_B: jax.Array) -> PageCache:
        """With lower lengths; lanes keep their pages. If there are rings, a length must be at most `slack` tokens below the
        greatest one since the lane was last empty."""
        return replace(self, lengths_B=lengths_B)

    def reserve(self, tokens_B: jax.Array) -> tuple[PageCache, jax.Array]:
        """Takes free pages until each lane owns enough for tokens_B tokens. Also returns [B]: whether the lane now does.
        Lanes of a shard are served in order. If a lane needs more pages than are left, it and all later lanes that need
        pages get none."""
        D, P = self.free_DP.shape
        short_B = jnp.maximum(page_count(tokens_B, self.page) - self.owned_B, 0)
        short_Db = short_B.reshape(D, -1)
        upto_Db = jnp.cumsum(short_Db, axis=1)
        ok_Db = (short_Db == 0) | (upto_Db <= self.left_D[:, None])
        taken_Db = jnp.where(ok_Db, short_Db, 0)
        table_BN = self.kv.tables[0]
        number_DbN = jnp.arange(table_BN.shape[1], dtype=jnp.int32) - self.owned_B.reshape(D, -1, 1)
        new_DbN = (number_DbN >= 0) & (number_DbN < taken_Db[..., None])
        index_DbN = self.left_D[:, None, None] - 1 - (upto_Db - short_Db)[..., None] - number_DbN
        index_DbN = jnp.clip(index_DbN, 0, P - 1).reshape(D, -1)
        ids_DbN = jnp.take_along_axis(self.free_DP, index_DbN, axis=1).reshape(new_DbN.shape)
        table_BN = jnp.where(new_DbN, ids_DbN, table_BN.reshape(new_DbN.shape)).reshape(table_BN.shape)
        return replace(
            self,
            kv=replace(self.kv, tables=(table_BN, *self.kv.tables[1:])),
            owned_B=self.owned_B + taken_Db.reshape(-1),
            left_D=self.left_D - taken_Db.sum(axis=1),
        ), ok_Db.reshape(-1)

    def grown(self, pages: int) -> PageCache:
        """With a pool of `pages` pages per shard, at least as many as now."""
        D, P = self.free_DP.shape
        full, more = self.kv.pages[0], pages - P
        by_shard = full.reshape(full.shape[0], D, P, *full.shape[2:])
        wider = jnp.pad(by_shard, ((0, 0), (0, 0), (0, more), (0, 0), (0, 0), (0, 0)))
        new = jnp.arange(P, pages, dtype=jnp.int32)
        moved_DP = jax.vmap(lambda row, left: jax.lax.dynamic_update_slice(row, new, (left,)))
        return replace(
            self,
            kv=replace(self.kv, pages=(wider.reshape(full.shape[0], -1, *full.shape[2:]), *self.kv.pages[1:])),
            free_DP=moved_DP(jnp.pad(self.free_DP, ((0, 0), (0, more))), self.left_D),
            left_D=self.left_D + more,
            owners_DP=jnp.pad(self.owners_DP, ((0, 0), (0, more)), constant_values=1),
        )

    def release(self, lane: jax.Array) -> PageCache:
        """Without the tokens of one lane. Its pages that no other lane owns are free again."""
        D, P = self.free_DP.shape
        d, at_N = lane // (self.owned_B.shape[0] // D), jnp.arange(self.kv.tables[0].shape[1], dtype=jnp.int32)
        ids_N = jnp.where(at_N < self.owned_B[lane], self.kv.tables[0][lane], P)
        alone_N = (ids_N < P) & (self.owners_DP[d, jnp.minimum(ids_N, P - 1)] == 1)
        place_N = jnp.where(alone_N, self.left_D[d] + jnp.cumsum(alone_N) - 1, P)
        return replace(
            self,
            lengths_B=self.lengths_B.at[lane].set(0),
            owned_B=self.owned_B.at[lane].set(0),
            free_DP=self.free_DP.at[d, place_N].set(ids_N, mode="drop"),
            left_D=self.left_D.at[d].add(alone_N.sum(dtype=jnp.int32)),
            owners_DP=self.owners_DP.at[d, jnp.where(alone_N, P, ids_N)].add(-1, mode="drop"),
        )

    def share(self, source: jax.Array, lane: jax.Array, tokens: jax.Array, partitioner: Partitioner) -> PageCache:
        """Gives an empty lane the first `tokens` tokens of another lane of its shard. Full pages are shared; the last page,
        if it is not full, and rings are copied. Without a free page for the copy, the lane gets the full pages only. It gets
        nothing if the source has fewer tokens.

        The source must not be rolled back below these tokens while another lane shares them. If there are rings, the
        source must hold no more than `slack` tokens beyond them.
        """
        D, P = self.free_DP.shape
        tokens = jnp.where(self.lengths_B[source] >= tokens, tokens, 0)
        d, count = lane // (self.owned_B.shape[0] // D), tokens // self.page
        at_N = jnp.arange(self.kv.tables[0].shape[1], dtype=jnp.int32)
        row_N, own_N = self.kv.tables[0][source], self.kv.tables[0][lane]
        table_BN = self.kv.tables[0].at[lane].set(jnp.where(at_N < count, row_N, own_N))
        cache = replace(
            self,
            kv=replace(self.kv, tables=(table_BN, *self.kv.tables[1:])),
            owned_B=self.owned_B.at[lane].set(count),
            owners_DP=self.owners_DP.at[d, jnp.where(at_N < count, row_N, P)].add(1, mode="drop"),
        )
        cache, ok_B = cache.reserve(jnp.zeros_like(self.owned_B).at[lane].set(tokens))
        tokens = jnp.where(ok_B[lane], tokens, count * self.page)
        tail_N = (at_N >= count) & (at_N < cache.owned_B[lane])
        copied = [_copy(cache.kv.pages[0], row_N, cache.kv.tables[0][lane], tail_N, d, D, partitioner)]
        for pages, table_BN in zip(cache.kv.pages[1:], cache.kv.tables[1:], strict=True):
            every_N = jnp.ones(table_BN.shape[1], bool)
            copied.append(_copy(pages, table_BN[source], table_BN[lane], every_N, d, D, partitioner))
        return replace(cache, kv=replace(cache.kv, pages=tuple(copied)), lengths_B=cache.lengths_B.at[lane].set(tokens))


def _copy(
    pages: jax.Array,
    sources_N: jax.Array,
    targets_N: jax.Array,
    where_N: jax.Array,
    shard: jax.Array,
    shards: int,
    partitioner: Partitioner,
) -> jax.Array:
    """Pages [L, P, K, page, C] after the pages sources_N of a shard are copied to targets_N, where where_N holds."""
    here_DN = where_N & (jnp.arange(shards) == shard)[:, None]
    targets_DN = jnp.where(here_DN, targets_N, pages.shape[1])
    sources_DN = jnp.broadcast_to(sources_N, targets_DN.shape)

    def body(x: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        pages = x["pages"]
        return (pages.at[:, x["targets"][0]].set(pages[:, x["sources"][0]], mode="drop"),)

    arrays = {"pages": pages, "sources": sources_DN, "targets": targets_DN}
    keys = "kv_heads" if pages.shape[2] > 1 else None
    axes: dict[str, Axes] = {"pages": (None, "lanes", keys, None, None)}
    axes |= {"sources": ("lanes", None), "targets": ("lanes", None)}
    return partitioner.by_shard(body, arrays, axes, (axes["pages"],))[0]


def columns(config: ModelConfig) -> int:
    """Numbers per token and key/value head in a layer's pages: key and value, or DeepSeek's latent and rotary key. On TPUs,
    which transfer multiples of 128, padding is included."""
    size = config.latent.kv_rank + config.latent.rope_dim if config.latent else 2 * config.head_dim
    return -(-size // 128) * 128 if backend().platform == "tpu" else size


def new_pages(
    config: ModelConfig, layers: int, pages: int, dtype: Any, partitioner: Partitioner, page: int = PAGE
) -> jax.Array:
    """Empty pages [L, P, K, page, C] for layers of one kind; `pages` of all shards together."""
    axes: Axes = (None, "lanes", None if config.latent else "kv_heads", None, None)
    shape = (layers, pages, 1 if config.latent else config.kv_heads, page, columns(config))
    return zeros(shape, stored_dtype(dtype), partitioner, axes)


def ring_table(rows: int, pages: int, partitioner: Partitioner) -> jax.Array:
    """The table [rows, pages] of a ring of `pages` pages per row."""
    own = rows // partitioner.num_shards("lanes")
    table = np.arange(own * pages, dtype=np.int32).reshape(own, pages)
    return put(np.tile(table, (rows // own, 1)), partitioner, ("lanes", None))


def new_cache(
    config: ModelConfig,
    lanes: int,
    tokens: int,
    *,
    slack: int,
    dtype: Any,
    partitioner: Partitioner | None = None,
    pool: int | None = None,
    page: int = PAGE,
) -> PageCache:
    """An empty cache for `lanes` lanes of up to `tokens` tokens.

    slack: the most tokens that a lane appends in one pass, or that are rolled back at once. pool: tokens that
    full-attention layers hold, all lanes together, and at least `tokens` on each shard (default: `tokens` for every lane).
    page: tokens per page; it must divide `PAGE`.

    Raises:
        ShardingError: lanes that the mesh does not divide.
    """
    partitioner = partitioner or Partitioner()
    partitioner.check({"lanes": (lanes, "the number of lanes")})
    assert PAGE % page == 0
    shards, each = partitioner.num_shards("lanes"), page_count(tokens, page)
    P = lanes // shards * each if pool is None else max(each, pool // shards // page)
    kinds: list[int | None] = [None, *sorted({w for w in config.windows if w is not None})]
    count = [sum(window == kind for window in config.windows) for kind in kinds]
    sizes = [P * shards, *(lanes * page_count(min(tokens, w + slack), page) for w in kinds[1:] if w is not None)]
    seen = [0] * len(kinds)
    layers = []
    for window in config.windows:
        kind = kinds.index(window)
        layers.append(LayerPages(kind, seen[kind]))
        seen[kind] += 1
    kv = PagedKV(
        pages=tuple(new_pages(config, n, size, dtype, partitioner, page) for n, size in zip(count, sizes, strict=True)),
        tables=(
            zeros((lanes, each), jnp.int32, partitioner, ("lanes", None)),
            *(ring_table(lanes, size // lanes, partitioner) for size in sizes[1:]),
        ),
        rings=tuple(kind is not None for kind in kinds),
        layers=tuple(layers),
    )

    def numbers(value: np.ndarray) -> jax.Array:
        return put(value.astype(np.int32), partitioner, ("lanes", *(None,) * (value.ndim - 1)))

    return PageCache(
        kv=kv,
        lengths_B=numbers(np.zeros(lanes)),
        owned_B=numbers(np.zeros(lanes)),
        free_DP=numbers(np.tile(np.arange(P)[::-1], (shards, 1))),
        left_D=numbers(np.full(shards, P)),
        owners_DP=numbers(np.ones((shards, P))),
    )
