"""Forward passes of the writing models.

A listening model does not run. A pass reads tokens that are not in the cache, of as many lanes as it has room for: one token
of most lanes, and several of lanes that catch up. A lane samples its next token when none are left. Lanes that found no room
come first in the side's next pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.decode.batch import Batch
from tessy_jax.decode.cache import PageCache
from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.sampling import choose, position_keys, uniform
from tessy_jax.decode.state import Index, Lanes, pick_side, replace_at


@jax.named_scope("forward")
def forward(ctx: LoopContext, m: Index, lanes: Lanes, runs: jax.Array) -> tuple[Lanes, jax.Array, jax.Array]:
    """One forward pass of side m over the lanes that it may write; none if `runs` is false. Returns the lanes, a token per
    lane [B], and whether the lane sampled it [B]. A lane samples once it has read all of its tokens. A lane that finds no
    free page does not run and is marked in `starved_B`."""
    params, tokens, room, sides = ctx.params, lanes.tokens, ctx.config.room, range(len(lanes.caches))
    assert room is not None
    # each side counts its own tokens; twice the position plus the side is distinct for both
    position_B = 2 * tokens.response_B(m) + m
    uniform_B1 = uniform(position_keys(params.seed, lanes.scalars.sample, lanes.scalars.attempt, position_B))
    left_B, first_D = jnp.where(runs, unread_B(lanes, m), 0), lanes.first_MD[m]
    counts_B, after_D = room.share(left_B, first_D)
    lengths_B = pick_side([cache.lengths_B for cache in lanes.caches], m)
    upto_B = jnp.where(counts_B > 0, lengths_B + counts_B, 0)
    reserved = [cache.reserve(jnp.where(m == i, upto_B, 0)) for i, cache in enumerate(lanes.caches)]
    ok_B = jnp.stack([ok_B for _, ok_B in reserved]).all(axis=0)
    counts_B = jnp.where(ok_B, counts_B, 0)
    batch = Batch.of(room, counts_B, lengths_B, first_D.shape[0])
    partitioner = nnx.merge(ctx.graphs.writers[0], ctx.weights.writers[0]).partitioner
    packed = batch.tokens(tokens.ids_MBS, m, room.row_tokens, partitioner)
    some, samples_B = (counts_B > 0).any(), (counts_B > 0) & (counts_B == left_B)
    caches, token_B = tuple(cache for cache, _ in reserved), jnp.zeros_like(counts_B)
    for i in sides:
        with jax.named_scope(f"side{i}"):
            cache, drawn_B = _forward(ctx, i, caches[i], batch, packed, counts_B, uniform_B1, some & (m == i))
        caches, token_B = replace_at(caches, i, cache), jnp.where(m == i, drawn_B, token_B)
    rows, sampled, read = (x.sum().astype(jnp.float32) for x in (room.rows_of(counts_B), samples_B, counts_B))
    lanes = replace(
        lanes,
        caches=caches,
        counts=lanes.counts.add(m, passes=some, rows=rows, sampled=sampled, caught_up=read - sampled),
        first_MD=jnp.where(jnp.arange(len(sides))[:, None] == m, after_D, lanes.first_MD),
        starved_B=lanes.starved_B | ~ok_B,
    )
    return lanes, token_B, samples_B


def unread_B(lanes: Lanes, m: Index) -> jax.Array:
    """The number of tokens of side m [B] that are not in its cache, 0 in lanes whose next token it may not write."""
    lengths_B = pick_side([cache.lengths_B for cache in lanes.caches], m)
    return jnp.where(lanes.ready_B(m), lanes.tokens.known_B(m) - lengths_B, 0)


def _forward(
    ctx: LoopContext,
    m: int,
    cache: PageCache,
    batch: Batch,
    packed: jax.Array,
    counts_B: jax.Array,
    uniform_B1: jax.Array,
    runs: jax.Array,
) -> tuple[PageCache, jax.Array]:
    """The cache of side m after a pass over a batch of counts_B tokens of each lane, and a token drawn for each lane [B]."""
    model = nnx.merge(ctx.graphs.writers[m], ctx.weights.writers[m])

    def step(cache: PageCache) -> tuple[jax.Array, PageCache]:
        hidden, kv = model(packed, cache=cache.kv, rows=batch.rows)
        return batch.last(hidden), cache.filled(kv, cache.lengths_B + counts_B)

    def draw() -> jax.Array:
        logits_NV = model.logits(hidden_N1D)[:, 0]
        return batch.of_lanes(choose(logits_NV, batch.of_outputs(uniform_B1), ctx.params.samplings[m]))

    with jax.named_scope("decode_step"):
        hidden_N1D, cache = once(runs, step, cache)
    return cache, jax.lax.cond(runs, draw, lambda: jnp.zeros_like(counts_B))


Pass = tuple[jax.Array, PageCache]
"""Hidden states from which lanes sample, and the cache."""


def once(when: jax.Array, step: Callable[[PageCache], Pass], cache: PageCache) -> Pass:
    """The result of `step` if `when` is true. `lax.cond` would copy the cache; a loop of at most one iteration updates it in
    place."""
    hidden = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, cache)[0])
    state = jax.lax.while_loop(lambda x: x[0], lambda x: (jnp.bool_(False), step(x[1][1])), (when, (hidden, cache)))
    return state[1]
