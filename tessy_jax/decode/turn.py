"""One side's turn: it catches up on the other side's text, then samples token by token.

A listening model does not run. At its turn, `bridge_text` tokenizes the text that the model has not read. Every `step` is
one forward pass. A lane reads the tokens that are not in its cache, one chunk at most, and samples its next token when none
are left, so that catch-up needs no passes of its own. A turn ends when no lane of the side can continue, when most of them
have handed over, or after as many steps as a proposal has tokens. The remaining lanes continue in the next round.
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
from tessy_jax.decode.cut import complete_chars
from tessy_jax.decode.proposal import append_tokens, resolve_proposal, run_predictor, trim_caches
from tessy_jax.decode.sampling import position_keys, sample
from tessy_jax.decode.state import (
    ANSWER,
    CLOSED,
    CONTINUES,
    CONTROL_TOKEN,
    ENDED,
    LENGTH,
    THINK,
    UNENCODABLE,
    Lanes,
    LoopConfig,
    Side,
    replace_at,
)
from tessy_jax.decode.windows import read_window, write_window
from tessy_jax.models.attention import Packing
from tessy_jax.models.transformer import Decoder


def turn(ctx: LoopContext, m: int, lanes: Lanes) -> Lanes:
    """Side m's turn."""
    config = ctx.config
    lanes = jax.lax.while_loop(lambda x: needs_bridge_B(x, m).any(), lambda x: bridge_text(ctx, m, x), lanes)
    lanes = start_answers(ctx, m, lanes)
    room = lanes.longest(m) + ctx.params.steps[m] + 2 <= config.capacity
    v = config.predictor_reads[m]
    if v is not None:
        side = lanes.sides[v]
        target_B = jnp.where(lanes.speaks_B(m) & lanes.interleaves_B, side.up_to(lanes.committed_B) - side.prompt_B, 0)
        lanes = run_predictor(ctx, m, lanes, target_B, side.known_B, config.predictor_chunk)
    _, lanes = jax.lax.while_loop(
        lambda x: room & turn_continues(ctx, m, x[0], x[1]), lambda x: (x[0] + 1, step(ctx, m, x[1])), (jnp.int32(0), lanes)
    )
    return lanes


def bridge_target_B(lanes: Lanes) -> jax.Array:
    """Bytes [B] up to which the text has to be tokenized: to the end of the thinking once it has closed, since the text
    after it has tokens already."""
    return jnp.where(lanes.scalars.thinking_bytes >= 0, lanes.scalars.thinking_bytes, lanes.committed_B)


def needs_bridge_B(lanes: Lanes, m: int) -> jax.Array:
    """Whether side m is the speaker and its tokens do not cover the text yet [B]."""
    return lanes.speaks_B(m) & (lanes.sides[m].encoded_B < bridge_target_B(lanes))


@jax.named_scope("bridge_text")
def bridge_text(ctx: LoopContext, m: int, lanes: Lanes) -> Lanes:
    """Tokenizes the next piece of text that side m has not read: all of it if it fits into `window_bytes`, else as much as
    no following text can change."""
    size = ctx.config.window_bytes
    side = lanes.sides[m]
    who_B = needs_bridge_B(lanes, m)
    start_B = side.encoded_B
    left_B = jnp.where(who_B, bridge_target_B(lanes) - start_B, 0)
    bytes_BP = read_window(lanes.text_BY, start_B, size)
    counts_B = jnp.where(left_B > size, complete_chars(bytes_BP, jnp.minimum(left_B, size)), left_B)
    seen = ctx.tables.bridges[m].encode(bytes_BP, counts_B)
    at_P = jnp.arange(size, dtype=jnp.int32)
    closed_BP = seen.starts_BP & (at_P <= seen.final_B[:, None]) & (at_P < counts_B[:, None])
    until_B = jnp.where(closed_BP, at_P, 0).max(axis=1)
    until_B = jnp.where((left_B <= size) | (until_B == 0), counts_B, until_B)
    taken_B = ((at_P < seen.tokens_B[:, None]) & (seen.ends_BP <= until_B[:, None])).sum(axis=1, dtype=jnp.int32)
    side = append_tokens(side, seen.ids_BP, start_B[:, None] + seen.ends_BP)
    side = replace(side, known_B=side.known_B + taken_B)
    unspelled_B = ((seen.ids_BP < 0) & (at_P < taken_B[:, None])).any(axis=1)
    status_B = jnp.where(who_B & (side.response_B > ctx.params.max_response_tokens), LENGTH, lanes.scalars.status)
    counts = lanes.counts
    bridged = counts.bridged[m] + taken_B.sum().astype(jnp.float32)
    lanes = replace(lanes.with_side(m, side), counts=replace(counts, bridged=replace_at(counts.bridged, m, bridged)))
    return lanes.with_scalars(status=jnp.where(who_B & unspelled_B, UNENCODABLE, status_B))


@jax.named_scope("start_answers")
def start_answers(ctx: LoopContext, m: int, lanes: Lanes) -> Lanes:
    """Appends side m's own tokens between thinking and answer in lanes whose thinking has closed."""
    side = lanes.sides[m]
    ids_X = ctx.tables.vocabs[m].answer_X
    # the text between them is not empty, so tokens that end where the thinking does are those of the thinking
    starts_B = lanes.speaks_B(m) & (lanes.scalars.phase == ANSWER) & (side.encoded_B == lanes.scalars.thinking_bytes)
    ids_BX = jnp.broadcast_to(ids_X, (starts_B.shape[0], ids_X.shape[0]))
    ends_BX = jnp.broadcast_to((lanes.scalars.thinking_bytes + ctx.tables.close_X.shape[0])[:, None], ids_BX.shape)
    side = append_tokens(side, ids_BX, ends_BX)
    return lanes.with_side(m, replace(side, known_B=side.known_B + jnp.where(starts_B, ids_X.shape[0], 0)))


@jax.named_scope("step")
def step(ctx: LoopContext, m: int, lanes: Lanes) -> Lanes:
    """Runs one forward pass of side m over the lanes it may write. Lanes that have read all their tokens sample the next."""
    params = ctx.params
    side = lanes.sides[m]
    left_B = jnp.where(lanes.ready_B(m), side.known_B - side.cache.lengths_B, 0)
    model = nnx.merge(ctx.graphs.writers[m], ctx.weights.writers[m])
    behind = (left_B > 1).any()
    hidden_B1D, cache, counts_B = cond_in_place(
        behind,
        lambda cache: mixed_step(ctx.config, model, side, cache, left_B),
        lambda cache: decode_step(model, side, cache, left_B),
        side.cache,
    )
    samples_B = (left_B > 0) & (counts_B == left_B)
    # each side counts its own tokens; twice the position plus the side is distinct for both
    keys_B = position_keys(params.seed, lanes.scalars.sample, lanes.scalars.attempt, 2 * side.response_B + m)
    token_B = sample(model.logits(hidden_B1D)[:, 0], keys_B, params.samplings[m])
    lanes = lanes.with_side(m, replace(side, cache=cache))
    lanes = append_sampled(ctx, m, lanes, token_B, samples_B)
    counts, sampled = lanes.counts, samples_B.sum().astype(jnp.float32)
    counts = replace(
        counts,
        passes=replace_at(counts.passes, m, counts.passes[m] + 1),
        sampled=replace_at(counts.sampled, m, counts.sampled[m] + sampled),
        chunked_passes=replace_at(counts.chunked_passes, m, counts.chunked_passes[m] + behind),
        caught_up=replace_at(counts.caught_up, m, counts.caught_up[m] + counts_B.sum().astype(jnp.float32) - sampled),
    )
    return trim_caches(resolve_proposal(ctx, m, replace(lanes, counts=counts), samples_B))


ForwardResult = tuple[jax.Array, Any, jax.Array]
"""Hidden states [B, 1, D] after the last token that each lane read, the cache, and the number of tokens read [B]."""


def cond_in_place(
    which: jax.Array, first: Callable[[KVCache], ForwardResult], second: Callable[[KVCache], ForwardResult], cache: KVCache
) -> ForwardResult:
    """Runs `first` if `which` is true, else `second`. `lax.cond` would copy the cache in its branches; two loops of at most
    one iteration update it in place."""
    hidden, _, counts = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(second, cache))
    state = (jnp.bool_(True), (hidden, cache, counts))
    state = jax.lax.while_loop(lambda x: x[0] & which, lambda x: (jnp.bool_(False), first(x[1][1])), state)
    return jax.lax.while_loop(lambda x: x[0], lambda x: (jnp.bool_(False), second(x[1][1])), state)[1]


@jax.named_scope("decode_step")
def decode_step(model: Decoder, side: Side, cache: KVCache, left_B: jax.Array) -> ForwardResult:
    """The forward pass when every lane lacks at most its last token."""
    counts_B = jnp.minimum(left_B, 1)
    last_B1 = jnp.take_along_axis(side.tokens_BS, side.known_B[:, None] - 1, axis=1)
    hidden_B1D, new = model(last_B1, cache=cache, counts_B=counts_B)
    return hidden_B1D, new, counts_B


@jax.named_scope("mixed_step")
def mixed_step(config: LoopConfig, model: Decoder, side: Side, cache: KVCache, left_B: jax.Array) -> ForwardResult:
    """The forward pass when a lane lacks more than its last token. If packed, it is one row of at most `packed_tokens`
    tokens of all lanes."""
    T, U = config.chunk, config.packed_tokens
    tokens_BT = read_window(side.tokens_BS, cache.lengths_B, T)
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


@jax.named_scope("append_sampled")
def append_sampled(ctx: LoopContext, m: int, lanes: Lanes, token_B: jax.Array, ready_B: jax.Array) -> Lanes:
    """Appends a sampled token to the proposal; a token that is not text ends the proposal."""
    vocab = ctx.tables.vocabs[m]
    ends_B = (token_B[:, None] == vocab.ends_X).any(axis=1)
    closes_B = (token_B[:, None] == vocab.closing_X).any(axis=1) & (lanes.scalars.phase == THINK)
    broken_B = vocab.control_V[token_B]
    over_B = jnp.where(ends_B, ENDED, jnp.where(closes_B, CLOSED, jnp.where(broken_B, CONTROL_TOKEN, CONTINUES)))
    text_B = ready_B & (over_B == CONTINUES)

    written_B = lanes.written_B + jnp.where(text_B, vocab.lengths_V[token_B], 0)
    one_B = text_B.astype(jnp.int32)
    side = append_tokens(lanes.sides[m], token_B[:, None], written_B[:, None])
    generated = lanes.scalars.generated
    lanes = replace(
        lanes,
        text_BY=write_window(lanes.text_BY, vocab.bytes_VI[token_B], lanes.written_B),
        written_B=written_B,
        proposed_B=lanes.proposed_B + one_B,
        stop_B=jnp.where(ready_B, over_B, lanes.stop_B),
    ).with_side(m, replace(side, known_B=side.known_B + one_B))
    return lanes.with_scalars(generated=replace_at(generated, m, generated[m] + ready_B))


def turn_continues(ctx: LoopContext, m: int, steps: jax.Array, lanes: Lanes) -> jax.Array:
    """Whether side m takes another step before the other side's turn.

    Lanes that answer do not count for or against another step while lanes of the other side wait.
    """
    ready_B = lanes.ready_B(m)
    thinking = (ready_B & (lanes.scalars.phase == THINK)).sum()
    waiting = (lanes.running_B & ~ready_B).sum()
    few = thinking < (1 - ctx.params.handover) * (thinking + waiting)
    keeps = (steps == 0) | (waiting == 0) | ((thinking > 0) & ~few)
    harvested = (lanes.ended_B.sum() >= ctx.params.harvest) & (steps > 0)
    return ready_B.any() & (steps < ctx.params.steps[m]) & keeps & ~harvested
