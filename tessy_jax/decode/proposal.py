"""A proposal, i.e. the text that the speaker has written since the last commit: the flip of its label, and its commit."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.cut import DISCARD, NONE, Cut, complete_chars, cut
from tessy_jax.decode.predictor_window import Group, predict, rolled_back
from tessy_jax.decode.sampling import position_keys
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
    TEACHER,
    TEMPLATE,
    THINK,
    UNENCODABLE,
    Lanes,
    PredictorState,
    Side,
    replace_at,
)
from tessy_jax.decode.windows import read_window, write_window

MAX_STRIPPED_BYTES = 64  # bytes of white space that are taken off the end of the thinking at most


class ReadableTokens(NamedTuple):
    """What a predictor may read. total_B: tokens of the response that its side holds, the proposal among them. stable_B: how
    many of them the predictor may read now. final_B: bytes of the response up to which no further text changes the
    tokens."""

    total_B: jax.Array
    stable_B: jax.Array
    final_B: jax.Array


@jax.named_scope("find_close_marker")
def find_close_marker(ctx: LoopContext, lanes: Lanes, moved_B: jax.Array) -> tuple[Lanes, jax.Array]:
    """Searches the end of the thinking for a marker and cuts the text there.

    Returns the lanes, and the number of bytes [B] before anything that may be the beginning of a marker.
    """
    markers, lengths = ctx.tables.markers_MI, ctx.tables.marker_lengths_M
    longest = markers.shape[1]
    size = ctx.config.max_token_bytes + longest
    start_B = lanes.written_B - size
    tail_BW = read_window(lanes.text_BY, start_B, size)
    at_W = jnp.arange(size)
    window = jnp.pad(tail_BW, ((0, 0), (0, longest)))
    pieces_BWI = jnp.stack([window[:, i : i + size] for i in range(longest)], axis=-1)
    equal_BWMI = pieces_BWI[:, :, None, :] == markers
    used_MI = jnp.arange(longest) < lengths[:, None]
    left_W1 = size - at_W[:, None]  # bytes of text from a position on
    whole_BWM = (equal_BWMI | ~used_MI).all(axis=-1) & (lengths <= left_W1)
    inside_BW = start_B[:, None] + at_W >= 0
    found_BW = whole_BWM.any(axis=-1) & inside_BW
    seen_WMI = jnp.arange(longest) < left_W1[:, :, None]
    begun_BW = ((equal_BWMI | ~seen_WMI | ~used_MI).all(axis=-1) & (lengths > left_W1)).any(axis=-1) & inside_BW
    certain_B = start_B + jnp.where(begun_BW, at_W, size).min(axis=1)

    first_B = jnp.where(found_BW, at_W, size).min(axis=1)
    hit_B = moved_B & (lanes.scalars.phase == THINK) & (lanes.stop_B == CONTINUES) & (first_B < size)
    written_B = jnp.where(hit_B, start_B + first_B, lanes.written_B)
    lanes = replace(
        lanes,
        written_B=written_B,
        committed_B=jnp.minimum(lanes.committed_B, written_B),
        stop_B=jnp.where(hit_B, CLOSED, lanes.stop_B),
        sides=tuple(_truncate_tokens(side, hit_B, written_B) for side in lanes.sides),
    )
    return lanes, jnp.minimum(certain_B, written_B)


@jax.named_scope("predictor_view")
def predictor_view(
    ctx: LoopContext, m: int, lanes: Lanes, who_B: jax.Array, over_B: jax.Array, certain_B: jax.Array
) -> tuple[Lanes, ReadableTokens]:
    """The tokens of the current text that the predictor of side m may read, in lanes who_B. If it reads the other side's
    tokens, the text that they do not cover yet is tokenized and appended after the known tokens; `known_B` stays.
    """
    v = ctx.config.predictor_reads[m]
    assert v is not None
    side = lanes.sides[v]
    if v == m:
        stable_B = side.up_to(certain_B) - side.prompt_B
        return lanes, ReadableTokens(side.response_B, jnp.where(over_B, side.response_B, stable_B), lanes.written_B)
    start_B = side.encoded_B
    counts_B = jnp.where(who_B, lanes.written_B - start_B, 0)
    seen = ctx.tables.bridges[v].encode(read_window(lanes.text_BY, start_B, ctx.config.window_bytes), counts_B)
    at_P = jnp.arange(ctx.config.window_bytes, dtype=jnp.int32)
    closed_BP = seen.starts_BP & (at_P <= jnp.minimum(seen.final_B, certain_B - start_B)[:, None])
    readable_B = start_B + jnp.where(closed_BP, at_P, 0).max(axis=1)
    readable_B = jnp.where(over_B, lanes.written_B, readable_B)
    ends_BP = start_B[:, None] + seen.ends_BP
    valid_BP = at_P < seen.tokens_B[:, None]
    stable_B = side.response_B + (valid_BP & (ends_BP <= readable_B[:, None])).sum(axis=1, dtype=jnp.int32)
    scratch = append_tokens(side, seen.ids_BP, ends_BP)
    # the predictor reads a stopped proposal to its end, although its last word may continue in the next one
    final_B = start_B + jnp.where(seen.starts_BP & (at_P <= seen.final_B[:, None]), at_P, 0).max(axis=1)
    return lanes.with_side(v, scratch), ReadableTokens(side.response_B + seen.tokens_B, stable_B, final_B)


def append_tokens(side: Side, ids_BQ: jax.Array, ends_BQ: jax.Array) -> Side:
    """Writes tokens and their byte ends after the known ones. `known_B` does not change; tokens beyond it do not count."""
    return replace(
        side,
        tokens_BS=write_window(side.tokens_BS, ids_BQ, side.known_B),
        ends_BS=write_window(side.ends_BS, ends_BQ, side.known_B),
    )


@jax.named_scope("run_predictor")
def run_predictor(ctx: LoopContext, m: int, lanes: Lanes, target_B: jax.Array, known_B: jax.Array, size: int) -> Lanes:
    """Runs the predictor of side m over tokens of the response up to target_B, at most `size` at once, until the flip: the
    first token of the proposal, from number `min_span_tokens` on, after which the other kind of text follows.

    known_B: tokens that may be read, the prompt included.
    """
    v = ctx.config.predictor_reads[m]
    predictor = lanes.predictors[m]
    assert v is not None
    assert predictor is not None
    side, half = lanes.sides[v], ctx.config.half_window
    graph, params = ctx.graphs.predictors[m], ctx.weights.predictors[m]
    before_B = side.up_to(lanes.committed_B, known_B) - side.prompt_B
    at_T = jnp.arange(size, dtype=jnp.int32)

    def left(read_B: jax.Array, flip_B: jax.Array) -> jax.Array:
        return jnp.where(flip_B < 0, jnp.maximum(target_B - read_B, 0), 0)

    lanes_each = ctx.config.predictor_lanes if size == ctx.config.predictor_chunk else 0

    def body(carry: tuple[PredictorState, jax.Array, jax.Array]) -> tuple[PredictorState, jax.Array, jax.Array]:
        predictor, flip_B, passes = carry
        left_B = left(predictor.read_B, flip_B)
        group = Group.first(left_B > 0, lanes_each) if 0 < lanes_each < left_B.shape[0] else Group(None)
        start_G, flip_G = group.take(predictor.read_B), group.take(flip_B)
        counts_G = jnp.minimum(group.take(left_B), jnp.minimum(size, half - start_G % half))
        first_G = group.take(side.prompt_B) + start_G
        tokens_GT = read_window(group.take(side.tokens_BS), first_G, size)
        ends_GT = read_window(group.take(side.ends_BS), first_G, size)
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

    predictor, flip_B, passes = jax.lax.while_loop(
        lambda carry: (left(carry[0].read_B, carry[1]) > 0).any(),
        body,
        (predictor, lanes.flip_B, lanes.counts.predictor_passes[m]),
    )
    counts = replace(lanes.counts, predictor_passes=replace_at(lanes.counts.predictor_passes, m, passes))
    return replace(lanes.with_predictor(m, predictor), flip_B=flip_B, counts=counts)


@jax.named_scope("label_flips")
def label_flips(
    ctx: LoopContext, m: int, sample_G: jax.Array, attempt_G: jax.Array, tokens_GT: jax.Array, probability: jax.Array
) -> jax.Array:
    """Whether the labels of side m's predictor for tokens of the responses [G, T], numbered from 0, are inverted. The draw
    depends on the position, as sampling does; negative positions are reserved for these draws."""

    def one(places_G: jax.Array) -> jax.Array:
        keys_G = position_keys(ctx.params.seed, sample_G, attempt_G, -1 - (2 * places_G + m))
        return jax.vmap(jax.random.uniform)(keys_G) < probability

    return jax.vmap(one, in_axes=1, out_axes=1)(tokens_GT)


@jax.named_scope("resolve_proposal")
def resolve_proposal(ctx: LoopContext, m: int, lanes: Lanes, moved_B: jax.Array) -> Lanes:
    """Checks after a new token in lanes moved_B whether their proposals flip or are over, and commits those decided."""
    config, params = ctx.config, ctx.params
    lanes, certain_B = find_close_marker(ctx, lanes, moved_B)
    side = lanes.sides[m]
    interleaves_B = lanes.interleaves_B
    n_B = lanes.written_B - lanes.committed_B
    proposal_BP = read_window(lanes.text_BY, lanes.committed_B, config.window_bytes)
    full_B = (lanes.proposed_B >= params.steps[m]) | (n_B >= config.max_proposal_bytes)
    spent_B = (side.response_B >= params.max_response_tokens) | (lanes.written_B >= params.max_response_bytes)
    closed_B = lanes.stop_B > CONTINUES
    over_B = closed_B | spent_B | (full_B & (complete_chars(proposal_BP, n_B) > 0)) | ~interleaves_B

    reading = None
    v = config.predictor_reads[m]
    if v is not None:
        lanes, reading = predictor_view(ctx, m, lanes, moved_B & interleaves_B, over_B, certain_B)
        target_B = jnp.where(over_B, reading.total_B, reading.stable_B if config.online else 0)
        target_B = jnp.where(moved_B & interleaves_B, target_B, 0)
        known_B = lanes.sides[v].prompt_B + reading.total_B
        lanes = run_predictor(ctx, m, lanes, target_B, known_B, 1 if config.online else config.predictor_chunk)

    turned_B = lanes.flip_B >= 0
    asked_B = moved_B & interleaves_B & (turned_B | over_B)

    @jax.named_scope("decide")
    def decide() -> Cut:
        splits = ()
        if config.word_rule == DISCARD:
            bridges = ctx.tables.bridges[:1] if config.one_vocabulary else ctx.tables.bridges
            splits = tuple(bridge.split(proposal_BP, n_B) for bridge in bridges)
        ends_BP = None
        if config.word_rule == NONE and config.one_vocabulary:
            tokens = config.max_proposal_tokens
            ends_BQ = read_window(side.ends_BS, side.known_B - tokens, tokens) - lanes.committed_B[:, None]
            ends_BP = (ends_BQ[:, :, None] == jnp.arange(config.window_bytes)).any(axis=1)
        return cut(
            config.word_rule,
            proposal_BP,
            n_B,
            flip_B=jnp.where(turned_B, lanes.flip_B - lanes.committed_B, -1),
            over_B=over_B,
            closed_B=closed_B,
            certain_B=certain_B - lanes.committed_B,
            splits=splits,
            token_ends_BP=ends_BP,
        )

    cut_B, decided_B = jax.lax.cond(asked_B.any(), decide, lambda: Cut(jnp.zeros_like(n_B), jnp.zeros_like(over_B)))
    cut_B = jnp.where(interleaves_B, cut_B, n_B)
    commits_B = moved_B & jnp.where(interleaves_B & turned_B, decided_B, over_B)
    return commit(ctx, m, lanes, commits_B, lanes.committed_B + cut_B, reading)


@jax.named_scope("commit")
def commit(
    ctx: LoopContext, m: int, lanes: Lanes, commits_B: jax.Array, cut_B: jax.Array, reading: ReadableTokens | None
) -> Lanes:
    """The text of lanes commits_B up to cut_B joins the response; the lane continues, hands over, answers, or ends."""
    config, params = ctx.config, ctx.params
    side = lanes.sides[m]
    turned_B = commits_B & (lanes.flip_B >= 0)
    over_B = jnp.where(commits_B & ~turned_B, lanes.stop_B, CONTINUES)
    kept_B = side.up_to(cut_B)
    aligned_B = jnp.take_along_axis(side.ends_BS, jnp.maximum(kept_B - 1, 0)[:, None], axis=1)[:, 0] == cut_B
    # the rest of a proposal without a flip would be sampled again with the same result: it begins the next proposal
    carries_B = commits_B & ~turned_B & (over_B == CONTINUES) & aligned_B
    known_B = jnp.where(commits_B & ~carries_B, kept_B, side.known_B)
    dropped_B = jnp.where(commits_B & (over_B != CLOSED), side.known_B - known_B, 0)
    dropped_B += turned_B & (lanes.stop_B != CONTINUES)  # the token that would have ended the turn

    writer_BP = jnp.full((cut_B.shape[0], config.window_bytes), m)
    lanes = replace(
        lanes,
        source_BY=write_window(lanes.source_BY, writer_BP, lanes.committed_B),
        committed_B=jnp.where(commits_B, cut_B, lanes.committed_B),
        written_B=jnp.where(commits_B & ~carries_B, cut_B, lanes.written_B),
        proposed_B=jnp.where(commits_B, known_B - kept_B, lanes.proposed_B),
        stop_B=jnp.where(commits_B, CONTINUES, lanes.stop_B),
        flip_B=jnp.where(commits_B, -1, lanes.flip_B),
    ).with_side(m, replace(side, known_B=known_B))
    scalars = lanes.scalars
    lanes = lanes.with_scalars(
        discarded=replace_at(scalars.discarded, m, scalars.discarded[m] + dropped_B),
        switches=scalars.switches + turned_B,
        speaker=jnp.where(turned_B, 1 - m, scalars.speaker),
    )
    v = config.predictor_reads[m]
    if v is not None and v != m:
        assert reading is not None
        lanes = _adopt_bridged(ctx, v, lanes, commits_B & ~turned_B, reading)
    if v is not None:
        predictor = lanes.predictors[m]
        assert predictor is not None
        kept_tokens_B = jnp.where(commits_B, lanes.sides[v].response_B, predictor.read_B)
        lanes = lanes.with_predictor(m, rolled_back(predictor, kept_tokens_B, config.half_window))

    repeats_B = commits_B & is_repetitive(lanes.sides[m], kept_B, config.repetition_period, config.repetition_window)
    lanes = close_thinking(ctx, lanes, over_B == CLOSED)
    spent_B = (kept_B - side.prompt_B >= params.max_response_tokens) | (cut_B >= params.max_response_bytes)
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


def close_thinking(ctx: LoopContext, lanes: Lanes, closes_B: jax.Array) -> Lanes:
    """Ends the thinking of lanes closes_B at the committed text without trailing white space. The template's text follows,
    then the answer. The answering side appends its own tokens of that text at its turn (`start_answers`)."""
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
        sides=tuple(_truncate_tokens(side, closes_B, thought_B) for side in lanes.sides),
    ).with_scalars(
        thinking_bytes=jnp.where(closes_B, thought_B, scalars.thinking_bytes),
        phase=jnp.where(closes_B, ANSWER, scalars.phase),
        speaker=jnp.where(closes_B, scalars.answerer, scalars.speaker),
    )


@jax.named_scope("is_repetitive")
def is_repetitive(side: Side, known_B: jax.Array, period: int, repeats_in: int) -> jax.Array:
    """Whether the last `repeats_in` tokens of the response repeat with a period of at most `period`."""
    if repeats_in == 0:
        return jnp.zeros(known_B.shape, bool)
    tail_BW = read_window(side.tokens_BS, known_B - repeats_in, repeats_in)
    before_JW = jnp.arange(repeats_in) - jnp.arange(1, period + 1)[:, None]
    same_BJW = (tail_BW[:, None, :] == tail_BW[:, jnp.maximum(before_JW, 0)]) | (before_JW < 0)
    return same_BJW.all(axis=2).any(axis=1) & (known_B - side.prompt_B >= repeats_in)


def trim_caches(lanes: Lanes) -> Lanes:
    """Rolls each cache back to all known tokens except the last, which has to be fed again for its logits."""
    sides = tuple(
        replace(side, cache=side.cache.rollback(jnp.minimum(side.cache.lengths_B, side.known_B - 1))) for side in lanes.sides
    )
    return replace(lanes, sides=sides)


def _adopt_bridged(ctx: LoopContext, v: int, lanes: Lanes, commits_B: jax.Array, reading: ReadableTokens) -> Lanes:
    """Adds to the known tokens of side v those of `predictor_view` that no further text can change; all of them if more than
    `max_pending_bytes` of an unfinished word wait. (After a flip, side v speaks next and tokenizes the text itself.)"""
    side = lanes.sides[v]
    final_B = jnp.minimum(reading.final_B, lanes.committed_B)
    waits_B = lanes.committed_B - final_B > ctx.config.max_pending_bytes
    final_B = jnp.where(waits_B, lanes.committed_B, final_B)
    taken_B = side.up_to(final_B, side.prompt_B + reading.total_B)
    known_B = jnp.where(commits_B, jnp.maximum(taken_B, side.known_B), side.known_B)
    counts = lanes.counts
    bridged = counts.bridged[v] + (known_B - side.known_B).sum().astype(jnp.float32)
    at_S = jnp.arange(side.tokens_BS.shape[1])
    unspelled_B = ((side.tokens_BS < 0) & (at_S >= side.known_B[:, None]) & (at_S < known_B[:, None])).any(axis=1)
    lanes = replace(lanes, counts=replace(counts, bridged=replace_at(counts.bridged, v, bridged)))
    lanes = lanes.with_scalars(status=jnp.where(unspelled_B, UNENCODABLE, lanes.scalars.status))
    return lanes.with_side(v, replace(side, known_B=known_B))


def _truncate_tokens(side: Side, where_B: jax.Array, bytes_B: jax.Array) -> Side:
    return replace(side, known_B=jnp.where(where_B, jnp.maximum(side.up_to(bytes_B), side.prompt_B), side.known_B))
