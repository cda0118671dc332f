"""Runs the boundary predictors until the label of a proposal flips."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from tessy_jax.backend import backend
from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.predictor_window import Group, predict
from tessy_jax.decode.sampling import position_keys
from tessy_jax.decode.state import TEACHER, Index, Lanes, PredictorState
from tessy_jax.decode.tokenize import Reading

Carry = tuple[PredictorState, jax.Array, jax.Array]
"""The predictor's state, flip_B, and the number of passes."""
PREDICTOR_TOKENS = {"cpu": (16, 1)}
"""The default of `LoopConfig.predictor_tokens` by platform: on CPUs, slots without tokens cost time."""
ONE_FORM = (4,)
"""The default on other platforms, where slots without tokens are almost free. A predictor with one number of tokens per pass
is compiled once, which takes less time and memory."""


@jax.named_scope("read_predictors")
def read_predictors(
    ctx: LoopContext, m: Index, lanes: Lanes, moved_B: jax.Array, over_B: jax.Array, certain_B: jax.Array, reading: Reading
) -> Lanes:
    """Runs the predictor of side m in the lanes that this side writes. It reads the committed tokens and, in lanes moved_B,
    the tokens of the proposal: all of them if the proposal is over; otherwise those that no following text can change if
    the predictors are online, and none if not.

    moved_B: lanes that sampled a token. over_B: the proposal is over. certain_B: see `Sampled`. reading: see `tokenize`.
    """
    tokens, v = lanes.tokens, ctx.reads(m)
    own = v == m
    total_B = jnp.where(own, tokens.known_B(v), reading.total_B)
    stable_B = jnp.where(own, tokens.up_to(v, certain_B), reading.sure_B)
    proposed_B = jnp.where(over_B, total_B, stable_B) if ctx.config.online else jnp.where(over_B, total_B, 0)
    known_B = jnp.where(moved_B, total_B, tokens.known_B(v))
    before_B = tokens.up_to(v, lanes.committed_B, known_B) - tokens.prompt_B(v)
    target_B = jnp.where(moved_B, proposed_B - tokens.prompt_B(v), before_B)
    target_B = jnp.where(lanes.speaks_B(m) & lanes.interleaves_B, target_B, 0)
    for i, predictor in enumerate(lanes.predictors):
        if predictor is not None:
            with jax.named_scope(f"side{i}"):
                lanes = run_predictor(ctx, i, lanes, jnp.where(m == i, target_B, 0), before_B, moved_B)
    return lanes


def run_predictor(
    ctx: LoopContext, m: int, lanes: Lanes, target_B: jax.Array, before_B: jax.Array, moved_B: jax.Array
) -> Lanes:
    """Runs the predictor of side m over the first target_B tokens of the response until the flip. The flip is the end of the
    first token of the proposal, from token number `min_span_tokens` on, after which the predictor expects the other kind of
    text.

    before_B: tokens of the response before the proposal. moved_B: lanes that sampled a token; online, they have few tokens
    to read.
    """
    v, predictor, config = ctx.config.predictor_reads[m], lanes.predictors[m], ctx.config
    assert v is not None
    assert predictor is not None
    tokens, half = lanes.tokens, config.half_window
    graph, params = ctx.graphs.predictors[m], ctx.weights.predictors[m]
    prompt_B = tokens.prompt_B(v)

    def left_B(carry: Carry) -> jax.Array:
        return jnp.where(carry[1] < 0, jnp.maximum(target_B - carry[0].read_B, 0), 0)

    def read(carry: Carry, where_B: jax.Array, size: int, lanes_each: int) -> Carry:
        predictor, flip_B, passes = carry
        at_T = jnp.arange(size, dtype=jnp.int32)
        todo_B = jnp.where(where_B, left_B(carry), 0)
        group = Group.first(todo_B > 0, lanes_each) if 0 < lanes_each < todo_B.shape[0] else Group(None)
        start_G, flip_G = group.take(predictor.read_B), group.take(flip_B)
        counts_G = jnp.minimum(group.take(todo_B), jnp.minimum(size, half - start_G % half))
        first_G = group.take(prompt_B) + start_G
        tokens_GT = group.window(tokens.ids_MBS, v, first_G, size)
        ends_GT = group.window(tokens.ends_MBS, v, first_G, size)
        predictor, style_GT = predict(graph, params, predictor, tokens_GT, counts_G, half, ctx.params.logit_threshold, group)
        if ctx.params.label_flip_prob is not None:
            sample_G, attempt_G = group.take(lanes.scalars.sample), group.take(lanes.scalars.attempt)
            style_GT ^= label_flips(ctx, m, sample_G, attempt_G, start_G[:, None] + at_T, ctx.params.label_flip_prob)
        number_GT = (start_G - group.take(before_B))[:, None] + at_T + 1  # of the token in the proposal, from 1 on
        turns_GT = (style_GT if m == TEACHER else ~style_GT) & (number_GT >= ctx.params.min_span_tokens) & (number_GT > 0)
        turns_GT &= at_T < counts_G[:, None]
        big = jnp.iinfo(jnp.int32).max
        turn_G = jnp.where(turns_GT, ends_GT, big).min(axis=1)
        flip_G = jnp.where((flip_G < 0) & (turn_G < big), turn_G, flip_G)
        return predictor, group.put(flip_B, flip_G), passes + 1

    def reads(carry: Carry, where_B: jax.Array, size: int, lanes_each: int) -> Carry:
        return jax.lax.while_loop(
            lambda carry: (where_B & (left_B(carry) > 0)).any(), lambda carry: read(carry, where_B, size, lanes_each), carry
        )

    carry = predictor, lanes.flip_B, jnp.float32(0)
    chunk, *step = config.predictor_tokens or PREDICTOR_TOKENS.get(backend().platform, ONE_FORM)
    if config.online and step:
        with jax.named_scope("catch_up"):
            carry = reads(carry, ~moved_B, chunk, config.predictor_lanes)
        with jax.named_scope("read_token"):
            carry = reads(carry, moved_B, step[0], 0)
    else:
        with jax.named_scope("read_token"):
            carry = reads(carry, jnp.ones_like(moved_B), chunk, 0 if config.online else config.predictor_lanes)
    predictor, flip_B, passes = carry
    lanes = replace(lanes.with_predictor(m, predictor), flip_B=flip_B)
    return replace(lanes, counts=lanes.counts.add(m, predictor_passes=passes))


@jax.named_scope("label_flips")
def label_flips(
    ctx: LoopContext, m: int, sample_G: jax.Array, attempt_G: jax.Array, tokens_GT: jax.Array, probability: jax.Array
) -> jax.Array:
    """Whether to invert the labels of side m's predictor [G, T]. tokens_GT: the tokens' numbers in the response, from 0 on.
    Each draw depends on the position, as in sampling; negative positions are reserved for these draws."""

    def one(places_G: jax.Array) -> jax.Array:
        keys_G = position_keys(ctx.params.seed, sample_G, attempt_G, -1 - (2 * places_G + m))
        return jax.vmap(jax.random.uniform)(keys_G) < probability

    return jax.vmap(one, in_axes=1, out_axes=1)(tokens_GT)
