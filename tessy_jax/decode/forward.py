"""Forward passes of the writing models.

A listening model does not run. In a pass, a lane reads the tokens that are not in its cache, one chunk at most, and samples
its next token when none are left, so that catch-up needs no passes of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.decode.cache import PageCache
from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.sampling import choose, position_keys, uniform
from tessy_jax.decode.state import Index, Lanes, LoopConfig, Tokens, replace_at
from tessy_jax.decode.windows import read_window
from tessy_jax.models.pages import Packing, Rows
from tessy_jax.models.transformer import Decoder

Pass = tuple[jax.Array, Any, jax.Array]
"""Hidden states [B, 1, D] after the last token that each lane read, the cache, and the number of tokens read [B]."""


@jax.named_scope("forward")
def forward(ctx: LoopContext, m: Index, lanes: Lanes, runs: jax.Array) -> tuple[Lanes, jax.Array, jax.Array]:
    """One forward pass of side m over the lanes that it may write; none if `runs` is false. Returns the lanes, a token per
    lane [B], and whether the lane sampled it [B]. A lane samples once it has read all of its tokens. A lane that finds no
    free page does not run and is marked in `starved_B`."""
    params, token_B = ctx.params, jnp.zeros_like(lanes.committed_B)
    # each side counts its own tokens; twice the position plus the side is distinct for both
    position_B = 2 * lanes.tokens.response_B(m) + m
    uniform_B1 = uniform(position_keys(params.seed, lanes.scalars.sample, lanes.scalars.attempt, position_B))
    samples_B = jnp.zeros_like(lanes.running_B)
    for i in range(len(lanes.caches)):
        with jax.named_scope(f"side{i}"):
            lanes, tokens_B, sampled_B = _forward(ctx, i, lanes, uniform_B1, runs & (m == i))
        token_B, samples_B = jnp.where(sampled_B, tokens_B, token_B), samples_B | sampled_B
    return lanes, token_B, samples_B


def _forward(
    ctx: LoopContext, m: int, lanes: Lanes, uniform_B1: jax.Array, runs: jax.Array
) -> tuple[Lanes, jax.Array, jax.Array]:
    tokens = lanes.tokens
    left_B = jnp.where(lanes.ready_B(m) & runs, tokens.known_B(m) - lanes.caches[m].lengths_B, 0)
    wanted_B = jnp.minimum(left_B, ctx.config.chunk)
    cache, ok_B = lanes.caches[m].reserve(jnp.where(wanted_B > 0, lanes.caches[m].lengths_B + wanted_B, 0))
    left_B, starved_B = jnp.where(ok_B, left_B, 0), lanes.starved_B | ~ok_B
    model = nnx.merge(ctx.graphs.writers[m], ctx.weights.writers[m])
    behind, some = (left_B > 1).any(), (left_B > 0).any()

    def one_token(cache: PageCache) -> Pass:
        return decode_step(model, tokens, m, cache, left_B)

    hidden, _, counts = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one_token, cache))
    with jax.named_scope("mixed"):
        state = once(behind, lambda cache: mixed_step(ctx.config, model, tokens, m, cache, left_B), (hidden, cache, counts))
    hidden_B1D, cache, counts_B = once(some & ~behind, one_token, state)
    samples_B = (left_B > 0) & (counts_B == left_B)

    def draw() -> jax.Array:
        return choose(model.logits(hidden_B1D)[:, 0], uniform_B1, ctx.params.samplings[m])

    token_B = jax.lax.cond(some, draw, lambda: jnp.zeros_like(counts_B))
    sampled = samples_B.sum().astype(jnp.float32)
    counts = lanes.counts.add(
        m,
        passes=some,
        sampled=sampled,
        chunked_passes=behind,
        caught_up=counts_B.sum().astype(jnp.float32) - sampled,
    )
    lanes = replace(lanes, caches=replace_at(lanes.caches, m, cache), counts=counts, starved_B=starved_B)
    return lanes, token_B, samples_B


def once(when: jax.Array, step: Callable[[PageCache], Pass], state: Pass) -> Pass:
    """The state after `step` if `when` is true. `lax.cond` would copy the cache; a loop of at most one iteration updates it
    in place."""

    def body(x: tuple[jax.Array, Pass]) -> tuple[jax.Array, Pass]:
        return jnp.bool_(False), step(x[1][1])

    return jax.lax.while_loop(lambda x: x[0], body, (when, state))[1]


@jax.named_scope("decode_step")
def decode_step(model: Decoder, tokens: Tokens, m: int, cache: PageCache, left_B: jax.Array) -> Pass:
    """The forward pass when every lane lacks at most its last token."""
    counts_B = jnp.minimum(left_B, 1)
    last_B1 = read_window(tokens.ids_MBS, tokens.known_B(m) - 1, 1, m)
    hidden_B1D, kv = model(last_B1, cache=cache.kv, rows=Rows(cache.lengths_B, counts_B))
    return hidden_B1D, cache.filled(kv, cache.lengths_B + counts_B), counts_B


@jax.named_scope("mixed_step")
def mixed_step(config: LoopConfig, model: Decoder, tokens: Tokens, m: int, cache: PageCache, left_B: jax.Array) -> Pass:
    """The forward pass when a lane lacks more than its last token: at most `packed_tokens` tokens of each shard's lanes, and
    at most `chunk` of a lane."""
    T, u, D = config.chunk, config.packed_tokens, cache.free_DP.shape[0]
    tokens_BT = read_window(tokens.ids_MBS, cache.lengths_B, T, m)
    counts_Db = jnp.minimum(left_B, T).reshape(D, -1)
    counts_Db = jnp.clip(u - (jnp.cumsum(counts_Db, axis=1) - counts_Db), 0, counts_Db)
    upto_Db = jnp.cumsum(counts_Db, axis=1)
    first_Db = upto_Db - counts_Db
    rows_Du = jnp.minimum((jnp.arange(u)[:, None] >= upto_Db[:, None]).sum(axis=2), upto_Db.shape[1] - 1)
    times_Du = jnp.minimum(jnp.arange(u) - jnp.take_along_axis(first_Db, rows_Du, axis=1), T - 1)
    index_BT = jnp.minimum(first_Db.reshape(-1, 1) + jnp.arange(T), u - 1)
    packing, counts_B = Packing(rows_Du, times_Du, index_BT), counts_Db.reshape(-1)
    rows = Rows(cache.lengths_B, counts_B, packing=packing)
    hidden_DuD, kv = model(packing.pack(tokens_BT), cache=cache.kv, rows=rows)
    last_Db1 = jnp.maximum(upto_Db - 1, 0)[..., None]
    hidden_B1D = jnp.take_along_axis(hidden_DuD, last_Db1, axis=1).reshape(len(left_B), 1, -1)
    return hidden_B1D, cache.filled(kv, cache.lengths_B + counts_B), counts_B
