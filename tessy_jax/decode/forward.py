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

from tessy_jax.decode.cache import KVCache
from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.sampling import choose, position_keys, uniform
from tessy_jax.decode.state import Index, Lanes, LoopConfig, Tokens, replace_at
from tessy_jax.decode.windows import read_window
from tessy_jax.models.attention import Packing
from tessy_jax.models.transformer import Decoder

Pass = tuple[jax.Array, Any, jax.Array]
"""Hidden states [B, 1, D] after the last token that each lane read, the cache, and the number of tokens read [B]."""


@jax.named_scope("forward")
def forward(ctx: LoopContext, m: Index, lanes: Lanes, runs: jax.Array) -> tuple[Lanes, jax.Array, jax.Array]:
    """One forward pass of side m over the lanes that it may write; none if `runs` is false. Returns the lanes, a token per
    lane [B], and whether the lane sampled it [B]. A lane samples once it has read all of its tokens."""
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
    cache, tokens = lanes.caches[m], lanes.tokens
    left_B = jnp.where(lanes.ready_B(m) & runs, tokens.known_B(m) - cache.lengths_B, 0)
    model = nnx.merge(ctx.graphs.writers[m], ctx.weights.writers[m])
    behind, some = (left_B > 1).any(), (left_B > 0).any()

    def one_token(cache: KVCache) -> Pass:
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
    return replace(lanes, caches=replace_at(lanes.caches, m, cache), counts=counts), token_B, samples_B


def once(when: jax.Array, step: Callable[[KVCache], Pass], state: Pass) -> Pass:
    """The state after `step` if `when` is true. `lax.cond` would copy the cache; a loop of at most one iteration updates it
    in place."""

    def body(x: tuple[jax.Array, Pass]) -> tuple[jax.Array, Pass]:
        return jnp.bool_(False), step(x[1][1])

    return jax.lax.while_loop(lambda x: x[0], body, (when, state))[1]


@jax.named_scope("decode_step")
def decode_step(model: Decoder, tokens: Tokens, m: int, cache: KVCache, left_B: jax.Array) -> Pass:
    """The forward pass when every lane lacks at most its last token."""
    counts_B = jnp.minimum(left_B, 1)
    last_B1 = read_window(tokens.ids_MBS, tokens.known_B(m) - 1, 1, m)
    hidden_B1D, new = model(last_B1, cache=cache, counts_B=counts_B)
    return hidden_B1D, new, counts_B


@jax.named_scope("mixed_step")
def mixed_step(config: LoopConfig, model: Decoder, tokens: Tokens, m: int, cache: KVCache, left_B: jax.Array) -> Pass:
    """The forward pass when a lane lacks more than its last token. If packed, it is one row of at most `packed_tokens`
    tokens of all lanes."""
    T, U = config.chunk, config.packed_tokens
    tokens_BT = read_window(tokens.ids_MBS, cache.lengths_B, T, m)
    counts_B = jnp.minimum(left_B, T)
    if not U:
        hidden_BTD, new = model(tokens_BT, cache=cache, counts_B=counts_B)
        last_B11 = jnp.maximum(counts_B - 1, 0)[:, None, None]
        return jnp.take_along_axis(hidden_BTD, last_B11, axis=1), new, counts_B
    counts_B = jnp.clip(U - (jnp.cumsum(counts_B) - counts_B), 0, counts_B)
    upto_B = jnp.cumsum(counts_B)
    lanes_U = jnp.minimum((jnp.arange(U)[:, None] >= upto_B).sum(axis=1), len(upto_B) - 1)
    times_U = jnp.minimum(jnp.arange(U) - (upto_B - counts_B)[lanes_U], T - 1)
    packing = Packing(lanes_U, times_U, jnp.minimum((upto_B - counts_B)[:, None] + jnp.arange(T), U - 1))
    hidden_1UD, new = model(packing.pack(tokens_BT), cache=cache, counts_B=counts_B, packing=packing)
    return hidden_1UD[0, jnp.maximum(upto_B - 1, 0)][:, None], new, counts_B
