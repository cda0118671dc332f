"""A proposal, i.e. the text that the speaker has written since the last commit: its tokens, its end, and where it is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from tessy_jax.decode.commit import commit
from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.cut import DISCARD, NONE, Cut, complete_chars, cut
from tessy_jax.decode.state import (
    CLOSED,
    CONTINUES,
    CONTROL_TOKEN,
    ENDED,
    THINK,
    Index,
    Lanes,
    add_at,
    pick_side,
)
from tessy_jax.decode.tables import VocabTables
from tessy_jax.decode.tokenize import Reading
from tessy_jax.decode.windows import read_window, write_window


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """The result of a forward pass. moved_B: lanes that sampled a token. certain_B: bytes of the response before anything
    that may be the beginning of a marker."""

    moved_B: jax.Array
    certain_B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Proposals:
    """The proposals of all lanes. bytes_BP: their text. counts_B: its length in bytes. over_B: the proposal gets no longer.
    closed_B: it stopped because the thinking closed, the turn ended, or a control token was sampled."""

    bytes_BP: jax.Array
    counts_B: jax.Array
    over_B: jax.Array
    closed_B: jax.Array


@jax.named_scope("append_sampled")
def append_sampled(
    ctx: LoopContext, m: Index, lanes: Lanes, token_B: jax.Array, moved_B: jax.Array
) -> tuple[Lanes, Sampled]:
    """Appends a sampled token to the proposal; a token that is not text ends the proposal, as does a marker."""

    def facts(vocab: VocabTables) -> tuple[jax.Array, ...]:
        known_B = jnp.minimum(token_B, vocab.lengths_V.shape[0] - 1)  # the token may be one of the other vocabulary
        ends_B = (token_B[:, None] == vocab.ends_X).any(axis=1)
        closes_B = (token_B[:, None] == vocab.closing_X).any(axis=1)
        return ends_B, closes_B, vocab.control_V[known_B], vocab.lengths_V[known_B], vocab.bytes_VI[known_B]

    of_sides = zip(*(facts(vocab) for vocab in ctx.tables.vocabs), strict=True)
    ends_B, closes_B, broken_B, length_B, bytes_BI = (pick_side(values, m) for values in of_sides)
    closes_B &= lanes.scalars.phase == THINK
    over_B = jnp.where(ends_B, ENDED, jnp.where(closes_B, CLOSED, jnp.where(broken_B, CONTROL_TOKEN, CONTINUES)))
    text_B = moved_B & (over_B == CONTINUES)
    written_B = lanes.written_B + jnp.where(text_B, length_B, 0)
    one_B = text_B.astype(jnp.int32)
    tokens = lanes.tokens.written(m, token_B[:, None], written_B[:, None], lanes.free_B(m))
    lanes = replace(
        lanes,
        text_BY=write_window(lanes.text_BY, bytes_BI, lanes.written_B),
        written_B=written_B,
        proposed_B=lanes.proposed_B + one_B,
        stop_B=jnp.where(moved_B, over_B, lanes.stop_B),
        tokens=tokens.with_known(m, tokens.known_B(m) + one_B),
    ).with_scalars(generated=add_at(lanes.scalars.generated, m, moved_B))
    return find_close_marker(ctx, lanes, moved_B)


@jax.named_scope("find_close_marker")
def find_close_marker(ctx: LoopContext, lanes: Lanes, moved_B: jax.Array) -> tuple[Lanes, Sampled]:
    """Searches the end of the text for a marker that closes the thinking, and cuts the text before it."""
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
        pending_B=jnp.where(hit_B, 0, lanes.pending_B),
        tokens=lanes.tokens.truncated(hit_B, written_B),
    )
    return lanes, Sampled(moved_B, jnp.minimum(certain_B, written_B))


@jax.named_scope("proposals")
def proposals(ctx: LoopContext, m: Index, lanes: Lanes) -> Proposals:
    """The proposals of the lanes that side m writes."""
    config, params = ctx.config, ctx.params
    n_B = lanes.written_B - lanes.committed_B
    bytes_BP = read_window(lanes.text_BY, lanes.committed_B, config.window_bytes)
    full_B = (lanes.proposed_B >= pick_side(params.steps, m)) | (n_B >= config.max_proposal_bytes)
    spent_B = (lanes.tokens.response_B(m) >= params.max_response_tokens) | (lanes.written_B >= params.max_response_bytes)
    closed_B = lanes.stop_B > CONTINUES
    over_B = closed_B | spent_B | (full_B & (complete_chars(bytes_BP, n_B) > 0)) | ~lanes.interleaves_B
    return Proposals(bytes_BP, n_B, over_B, closed_B)


@jax.named_scope("resolve_proposal")
def resolve(ctx: LoopContext, m: Index, lanes: Lanes, proposal: Proposals, sampled: Sampled, reading: Reading) -> Lanes:
    """Commits the proposals whose cut is decided, by a flip or because the proposal is over, in lanes that have sampled a
    token."""
    config = ctx.config
    turned_B = lanes.flip_B >= 0
    asked_B = sampled.moved_B & lanes.interleaves_B & (turned_B | proposal.over_B)

    def decide() -> Cut:
        splits = ()
        if config.word_rule == DISCARD:
            splits = tuple(ctx.tables.bridge.splits(proposal.bytes_BP, proposal.counts_B))
        ends_BP = None
        if config.word_rule == NONE and config.one_vocabulary:
            size = config.max_proposal_tokens
            ends_BQ = read_window(lanes.tokens.ends_MBS, lanes.tokens.known_B(m) - size, size, m)
            ends_BQ -= lanes.committed_B[:, None]
            ends_BP = (ends_BQ[:, :, None] == jnp.arange(config.window_bytes)).any(axis=1)
        return cut(
            config.word_rule,
            proposal.bytes_BP,
            proposal.counts_B,
            flip_B=jnp.where(turned_B, lanes.flip_B - lanes.committed_B, -1),
            over_B=proposal.over_B,
            closed_B=proposal.closed_B,
            certain_B=sampled.certain_B - lanes.committed_B,
            splits=splits,
            token_ends_BP=ends_BP,
        )

    nothing = Cut(jnp.zeros_like(proposal.counts_B), jnp.zeros_like(proposal.over_B))
    with jax.named_scope("decide"):
        cut_B, decided_B = jax.lax.cond(asked_B.any(), decide, lambda: nothing)
    cut_B = jnp.where(lanes.interleaves_B, cut_B, proposal.counts_B)
    commits_B = sampled.moved_B & jnp.where(lanes.interleaves_B & turned_B, decided_B, proposal.over_B)
    return commit(ctx, m, lanes, commits_B, lanes.committed_B + cut_B, reading)
