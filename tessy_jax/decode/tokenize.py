"""Tokenizes text that one side wrote in the vocabulary of the other side.

At its turn, a side tokenizes the text that it has not read. While the other side writes, its words are tokenized as they
close, i.e. as soon as no following text can change them, if a predictor reads them. A word that leaves the narrow window is
read in the widest one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.state import ANSWER, LENGTH, UNENCODABLE, Bridge, ClosedWords, Index, Lanes, Tokens
from tessy_jax.decode.windows import read_window

NARROW = 64  # bytes of text that are read at a time


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reading:
    """The listener's tokens of a proposal. total_B: all tokens that its side holds, those of the prompt and of the proposal
    included. sure_B: those that no following text can change."""

    total_B: jax.Array
    sure_B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Progress:
    """The state of `_read_words`. wide_B: lanes whose next word leaves the narrow window."""

    tokens: Tokens
    reading: Reading
    waits_B: jax.Array
    wide_B: jax.Array


def tokenize(
    ctx: LoopContext, m: Index, lanes: Lanes, moved_B: jax.Array, over_B: jax.Array, certain_B: jax.Array
) -> tuple[Lanes, Reading]:
    """Tokenizes what side m has not read in lanes that it writes, and the proposals of lanes moved_B for predictors that
    read the other side's tokens.

    over_B: the proposal is over, so that its text is tokenized to the end. certain_B: bytes that are text for certain.
    Returns the lanes, and the tokens of side m's predictor.
    """
    config = ctx.config
    sides = range(len(lanes.caches))
    reads = jnp.array([-1 if v is None else v for v in config.predictor_reads], jnp.int32)[m]
    reading = Reading(lanes.tokens.known_MB[0], lanes.tokens.known_MB[0])
    for v in sides:
        listens = any(reader == v and i != v for i, reader in enumerate(config.predictor_reads))
        unread_B = lanes.speaks_B(m) & ~moved_B & (lanes.tokens.encoded_B(v) < bridge_target_B(lanes)) & (m == v)
        heard_B = moved_B & lanes.interleaves_B & (reads == v) & (m != v) if listens else jnp.zeros_like(unread_B)
        with jax.named_scope("tokenize"):
            shown_B = jnp.where(heard_B & ~over_B, certain_B, lanes.written_B)
            shown_B = jnp.where(unread_B, bridge_target_B(lanes), shown_B)
            start_B = lanes.free_B(v)
            most_B = lanes.tokens.prompt_MB[v] + ctx.params.max_response_tokens
            limit_B = jnp.where(unread_B, most_B, jnp.iinfo(jnp.int32).max)
            read = _read_words(ctx, v, lanes, unread_B | heard_B, start_B, shown_B, unread_B | over_B, limit_B)
        lanes = replace(lanes, tokens=read.tokens)
        lanes = _known_text(ctx, v, lanes, unread_B, read.reading.total_B)
        own_B = lanes.tokens.known_MB[v]
        this = reads == v
        total_B = jnp.where(heard_B, read.reading.total_B, own_B)
        sure_B = jnp.where(heard_B, read.reading.sure_B, own_B)
        reading = Reading(jnp.where(this, total_B, reading.total_B), jnp.where(this, sure_B, reading.sure_B))
        lanes = replace(lanes, pending_B=jnp.where(heard_B, sure_B - own_B, lanes.pending_B))
    return lanes, reading


def bridge_target_B(lanes: Lanes) -> jax.Array:
    """Bytes [B] up to which the text has to be tokenized: to the end of the thinking once it has closed, since the text
    after it has tokens already."""
    return jnp.where(lanes.scalars.thinking_bytes >= 0, lanes.scalars.thinking_bytes, lanes.committed_B)


def _read_words(
    ctx: LoopContext,
    v: int,
    lanes: Lanes,
    who_B: jax.Array,
    start_B: jax.Array,
    shown_B: jax.Array,
    ended_B: jax.Array,
    limit_B: jax.Array,
) -> _Progress:
    """Writes the tokens of the text up to shown_B after the first start_B tokens of side v, in lanes who_B. ended_B: the
    text ends there; else only closed words are read. limit_B: no further word is read beyond this number of tokens."""
    bridge: Bridge = ctx.tables.bridges[v]
    widest = ctx.config.window_bytes

    def more(x: _Progress) -> jax.Array:
        return x.waits_B.any()

    def body(x: _Progress) -> _Progress:
        base_B = x.tokens.end_B(v, x.reading.total_B)
        narrow_B = x.waits_B & ~x.wide_B
        now_B = jnp.where(narrow_B.any(), narrow_B, x.waits_B)
        left_B = jnp.where(now_B, shown_B - base_B, 0)

        def read(size: int) -> ClosedWords:
            bytes_BP = read_window(lanes.text_BY, base_B, size)
            return bridge.closed(bytes_BP, left_B, ended_B & now_B, widest=size == widest).padded(widest)

        words = jax.lax.cond(narrow_B.any(), lambda: read(min(NARROW, widest)), lambda: read(widest))
        total_B = x.reading.total_B + words.tokens_B
        sure_B = x.reading.sure_B + jnp.where(x.reading.sure_B == x.reading.total_B, words.sure_B, 0)
        again_B = (words.more_B & (words.end_B > 0)) | (words.long_B & narrow_B)
        return _Progress(
            x.tokens.written(v, words.ids_BP, base_B[:, None] + words.ends_BP, x.reading.total_B),
            Reading(total_B, sure_B),
            x.waits_B & (total_B <= limit_B) & (again_B | ~now_B),
            jnp.where(now_B, words.long_B & narrow_B, x.wide_B),
        )

    some_B = who_B & (lanes.tokens.end_B(v, start_B) < shown_B)
    start = _Progress(lanes.tokens, Reading(start_B, start_B), some_B, jnp.zeros_like(who_B))
    return jax.lax.while_loop(more, body, start)


def _known_text(ctx: LoopContext, v: int, lanes: Lanes, who_B: jax.Array, total_B: jax.Array) -> Lanes:
    """Makes the first total_B tokens of side v known in lanes who_B."""
    lanes = add_known(v, lanes, who_B, total_B)
    spent_B = who_B & lanes.running_B & (lanes.tokens.response_B(v) > ctx.params.max_response_tokens)
    return lanes.with_scalars(status=jnp.where(spent_B, LENGTH, lanes.scalars.status))


def add_known(v: Index, lanes: Lanes, who_B: jax.Array, total_B: jax.Array) -> Lanes:
    """Makes the first total_B tokens of side v known in lanes who_B. A lane ends if the vocabulary lacks one of them."""
    before_B = lanes.tokens.known_MB[v]
    known_B = jnp.where(who_B, total_B, before_B)
    at_S = jnp.arange(lanes.tokens.ids_MBS.shape[2])
    new_BS = (at_S >= before_B[:, None]) & (at_S < known_B[:, None])
    unspelled_B = ((lanes.tokens.ids_MBS[v] < 0) & new_BS).any(axis=1)
    counts = lanes.counts.add(v, bridged=(known_B - before_B).sum().astype(jnp.float32))
    lanes = replace(lanes, tokens=lanes.tokens.with_known(v, known_B), counts=counts)
    return lanes.with_scalars(status=jnp.where(unspelled_B, UNENCODABLE, lanes.scalars.status))


@jax.named_scope("start_answers")
def start_answers(ctx: LoopContext, m: Index, lanes: Lanes) -> Lanes:
    """Appends side m's own tokens between thinking and answer in lanes whose thinking has closed."""
    for v, vocab in enumerate(ctx.tables.vocabs):
        # the text between them is not empty, so tokens that end where the thinking does are those of the thinking
        covered_B = lanes.tokens.encoded_B(v) == lanes.scalars.thinking_bytes
        starts_B = lanes.speaks_B(v) & (lanes.scalars.phase == ANSWER) & covered_B & (m == v)
        ids_X = vocab.answer_X
        ids_BX = jnp.broadcast_to(ids_X, (starts_B.shape[0], ids_X.shape[0]))
        ends_BX = jnp.broadcast_to((lanes.scalars.thinking_bytes + ctx.tables.close_X.shape[0])[:, None], ids_BX.shape)
        known_B = lanes.tokens.known_MB[v]
        tokens = lanes.tokens.written(v, ids_BX, ends_BX, lanes.free_B(v))
        lanes = replace(lanes, tokens=tokens.with_known(v, known_B + jnp.where(starts_B, ids_X.shape[0], 0)))
    return lanes
