"""Commits a proposal: its text joins the response, and the lane continues, hands over, answers, or ends."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.predictor_window import rolled_back
from tessy_jax.decode.state import (
    ANSWER,
    CLOSED,
    CONTINUES,
    CONTROL,
    CONTROL_TOKEN,
    DONE,
    EARLY_END,
    ENDED,
    LENGTH,
    REPETITION,
    TEMPLATE,
    THINK,
    Index,
    Lanes,
    add_at,
)
from tessy_jax.decode.tokenize import Reading, add_known
from tessy_jax.decode.windows import read_window, write_window

MAX_STRIPPED_BYTES = 64  # most bytes of white space that are stripped from the end of the thinking


@jax.named_scope("commit")
def commit(ctx: LoopContext, m: Index, lanes: Lanes, commits_B: jax.Array, cut_B: jax.Array, reading: Reading) -> Lanes:
    """Commits the text up to byte cut_B of the response in lanes commits_B. Each of these lanes then continues, hands over,
    answers, or ends. reading: see `tokenize`."""
    config, params, tokens = ctx.config, ctx.params, lanes.tokens
    turned_B = commits_B & (lanes.flip_B >= 0)
    over_B = jnp.where(commits_B & ~turned_B, lanes.stop_B, CONTINUES)
    kept_B = tokens.up_to(m, cut_B)
    aligned_B = tokens.end_B(m, jnp.maximum(kept_B, 1)) == cut_B
    # the rest of a proposal without a flip would be sampled again with the same result: it begins the next proposal
    carries_B = commits_B & ~turned_B & (over_B == CONTINUES) & aligned_B
    before_B = tokens.known_B(m)
    known_B = jnp.where(commits_B & ~carries_B, kept_B, before_B)
    dropped_B = jnp.where(commits_B & (over_B != CLOSED), before_B - known_B, 0)
    dropped_B += turned_B & (lanes.stop_B != CONTINUES)  # the token that would have ended the turn

    writer_BP = jnp.full((cut_B.shape[0], config.window_bytes), m)
    scalars = lanes.scalars
    lanes = replace(
        lanes,
        source_BY=write_window(lanes.source_BY, writer_BP, lanes.committed_B),
        committed_B=jnp.where(commits_B, cut_B, lanes.committed_B),
        written_B=jnp.where(commits_B & ~carries_B, cut_B, lanes.written_B),
        proposed_B=jnp.where(commits_B, known_B - kept_B, lanes.proposed_B),
        stop_B=jnp.where(commits_B, CONTINUES, lanes.stop_B),
        flip_B=jnp.where(commits_B, -1, lanes.flip_B),
        pending_B=jnp.where(commits_B, 0, lanes.pending_B),
        tokens=tokens.with_known(m, known_B),
    ).with_scalars(
        discarded=add_at(scalars.discarded, m, dropped_B),
        switches=scalars.switches + turned_B,
        speaker=jnp.where(turned_B, 1 - m, scalars.speaker),
    )
    reads = ctx.reads(m)
    lanes = _adopt_heard(ctx, reads, lanes, commits_B & ~turned_B & (reads != m), reading)
    for i, predictor in enumerate(lanes.predictors):
        if predictor is None:
            continue
        kept_tokens_B = jnp.where(commits_B & (m == i), lanes.tokens.response_B(reads), predictor.read_B)
        lanes = lanes.with_predictor(i, rolled_back(predictor, kept_tokens_B, config.half_window))

    repeats_B = commits_B & is_repetitive(lanes, m, kept_B, config.repetition_period, config.repetition_window)
    lanes = close_thinking(ctx, lanes, over_B == CLOSED)
    spent_B = (kept_B - lanes.tokens.prompt_B(m) >= params.max_response_tokens) | (cut_B >= params.max_response_bytes)
    status_B = lanes.scalars.status
    for condition_B, status in (
        (repeats_B & (over_B != CLOSED), REPETITION),
        (commits_B & spent_B & (over_B != CLOSED), LENGTH),
        ((over_B == ENDED) & (lanes.scalars.phase == THINK), EARLY_END),
        ((over_B == ENDED) & (lanes.scalars.phase == ANSWER), DONE),
        (over_B == CONTROL_TOKEN, CONTROL),
    ):
        status_B = jnp.where(condition_B, status, status_B)
    return trim_caches(lanes.with_scalars(status=status_B))


def _adopt_heard(ctx: LoopContext, v: Index, lanes: Lanes, commits_B: jax.Array, reading: Reading) -> Lanes:
    """Makes the listener's tokens of the committed text known, in lanes commits_B: those of `reading` that no following text
    can change, or all of them if an unfinished word has more than `max_pending_bytes` bytes. v: the listener's side. After a
    flip, this side speaks next and tokenizes the text itself."""
    final_B = jnp.minimum(lanes.tokens.end_B(v, reading.sure_B), lanes.committed_B)
    waits_B = lanes.committed_B - final_B > ctx.config.max_pending_bytes
    final_B = jnp.where(waits_B, lanes.committed_B, final_B)
    taken_B = lanes.tokens.up_to(v, final_B, reading.total_B)
    return add_known(v, lanes, commits_B, jnp.maximum(taken_B, lanes.tokens.known_B(v)))


def close_thinking(ctx: LoopContext, lanes: Lanes, closes_B: jax.Array) -> Lanes:
    """Ends the thinking of lanes closes_B: removes white space from the end of the committed text and appends the template's
    text between thinking and answer. The answering side appends its own tokens of that text at its turn (`tokenize`)."""
    tail_BW = read_window(lanes.text_BY, lanes.committed_B - MAX_STRIPPED_BYTES, MAX_STRIPPED_BYTES)
    at_W = jnp.arange(MAX_STRIPPED_BYTES)
    inside_BW = lanes.committed_B[:, None] - MAX_STRIPPED_BYTES + at_W >= 0
    blank_BW = (tail_BW == 0x20) | ((tail_BW >= 0x09) & (tail_BW <= 0x0D))
    last_B = jnp.where(inside_BW & ~blank_BW, at_W + 1, 0).max(axis=1)
    thought_B = jnp.maximum(lanes.committed_B - MAX_STRIPPED_BYTES + last_B, 0)
    close_X, scalars = ctx.tables.close_X, lanes.scalars
    size = close_X.shape[0]
    close_BX = jnp.broadcast_to(close_X, (closes_B.shape[0], size))
    end_B = thought_B + size
    return replace(
        lanes,
        # in other lanes, this overwrites bytes after the text, which do not count
        text_BY=write_window(lanes.text_BY, close_BX, jnp.where(closes_B, thought_B, lanes.written_B)),
        source_BY=write_window(
            lanes.source_BY, jnp.full_like(close_BX, TEMPLATE), jnp.where(closes_B, thought_B, lanes.committed_B)
        ),
        committed_B=jnp.where(closes_B, end_B, lanes.committed_B),
        written_B=jnp.where(closes_B, end_B, lanes.written_B),
        tokens=lanes.tokens.truncated(closes_B, thought_B),
    ).with_scalars(
        thinking_bytes=jnp.where(closes_B, thought_B, scalars.thinking_bytes),
        phase=jnp.where(closes_B, ANSWER, scalars.phase),
        speaker=jnp.where(closes_B, scalars.answerer, scalars.speaker),
    )


@jax.named_scope("is_repetitive")
def is_repetitive(lanes: Lanes, m: Index, known_B: jax.Array, period: int, repeats_in: int) -> jax.Array:
    """Whether the last `repeats_in` of the first known_B tokens of side m repeat with a period of at most `period`."""
    if repeats_in == 0:
        return jnp.zeros(known_B.shape, bool)
    tail_BW = read_window(lanes.tokens.ids_MBS, known_B - repeats_in, repeats_in, m)
    before_JW = jnp.arange(repeats_in) - jnp.arange(1, period + 1)[:, None]
    same_BJW = (tail_BW[:, None, :] == tail_BW[:, jnp.maximum(before_JW, 0)]) | (before_JW < 0)
    return same_BJW.all(axis=2).any(axis=1) & (known_B - lanes.tokens.prompt_B(m) >= repeats_in)


def trim_caches(lanes: Lanes) -> Lanes:
    """Rolls each cache back to at most all known tokens except the last. The model must read the last one for its logits."""
    caches = tuple(
        cache.rollback(jnp.minimum(cache.lengths_B, lanes.tokens.known_B(m) - 1)) for m, cache in enumerate(lanes.caches)
    )
    return replace(lanes, caches=caches)
