"""Tokenizes the text of one side in the vocabulary of the other side.

At its turn, a side tokenizes the text that it has not read, and appends its own tokens that start the answer. While the
other side writes, a predictor may read the text in this side's vocabulary: words are then tokenized as they close, i.e. as
soon as no following text can change them. Long words and long texts are read in the widest window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from tessy_jax.decode.context import LoopContext
from tessy_jax.decode.state import ANSWER, LENGTH, UNENCODABLE, Index, Lanes, Tokens
from tessy_jax.decode.tables import Bridge, ClosedWords
from tessy_jax.decode.windows import read_window

NARROW = 64  # bytes of text that are read at a time, if the bridge allows it and the widest window has more than WIDE bytes
WIDE = 256


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reading:
    """The tokens of a text, counted from the beginning of the prompt. total_B: all tokens. sure_B: those that no following
    text can change."""

    total_B: jax.Array
    sure_B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Unread:
    """Text to tokenize, in lanes who_B, in the vocabulary of side v_B. end_B: bytes of the response up to its end. ended_B:
    the text ends there; otherwise only closed words are tokenized. answers_B: the tokens that start the answer follow.
    limit_B: the tokens after which no further word is read."""

    who_B: jax.Array
    v_B: jax.Array
    end_B: jax.Array
    ended_B: jax.Array
    answers_B: jax.Array
    limit_B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Progress:
    """The state of `_read_words`. waits_B: lanes with text to read. wide_B: lanes that use the widest window, because their
    next word does not fit into the narrow one, or their text into either. spent_B: lanes with more than limit_B tokens."""

    tokens: Tokens
    reading: Reading
    waits_B: jax.Array
    wide_B: jax.Array
    spent_B: jax.Array


@jax.named_scope("tokenize")
def tokenize(
    ctx: LoopContext, m: Index, lanes: Lanes, moved_B: jax.Array, over_B: jax.Array, certain_B: jax.Array
) -> tuple[Lanes, Reading]:
    """Tokenizes the text that side m has not read, in the lanes that it writes. If its predictor reads the other side's
    tokens, also tokenizes the proposals of lanes moved_B.

    over_B: the proposal is over, so its text is tokenized to the end. certain_B: bytes that are text for certain. Returns
    the lanes, and the tokens that side m's predictor may read in lanes moved_B.
    """
    params, reads = ctx.params, ctx.reads(m)
    target_B = bridge_target_B(lanes)
    unread_B = lanes.speaks_B(m) & ~moved_B & (lanes.tokens.encoded_B(m) < lanes.written_B)
    heard_B = moved_B & lanes.interleaves_B & (reads != m)
    v_B = jnp.where(heard_B, reads, m)
    unread = Unread(
        who_B=unread_B | heard_B,
        v_B=v_B,
        end_B=jnp.where(unread_B, target_B, jnp.where(over_B, lanes.written_B, certain_B)),
        ended_B=unread_B | over_B,
        answers_B=unread_B & (lanes.scalars.phase == ANSWER),
        # the listener's limit is larger by a window, because a proposal is cut only after its tokens have been read
        limit_B=lanes.tokens.prompt_B(v_B) + params.max_response_tokens + jnp.where(unread_B, 0, ctx.config.window_bytes),
    )
    read = _read_words(ctx, lanes, unread)
    known_B = lanes.tokens.known_B(v_B)
    lanes = replace(lanes, tokens=read.tokens)
    lanes = add_known(m, lanes, unread_B, read.reading.total_B)
    lanes = lanes.with_scalars(status=jnp.where(read.spent_B & lanes.running_B, LENGTH, lanes.scalars.status))
    if ctx.tables.bridge.narrow:  # otherwise following text may merge with tokens of closed words
        lanes = replace(lanes, pending_B=jnp.where(heard_B, read.reading.sure_B - known_B, lanes.pending_B))
    return lanes, read.reading


def bridge_target_B(lanes: Lanes) -> jax.Array:
    """Bytes [B] up to which the text has to be tokenized: to the end of the thinking once it has closed, since the text
    after it has tokens already."""
    return jnp.where(lanes.scalars.thinking_bytes >= 0, lanes.scalars.thinking_bytes, lanes.committed_B)


def _read_words(ctx: LoopContext, lanes: Lanes, text: Unread) -> _Progress:
    """Writes the tokens of a text after those that count (`free_B`), then those that start the answer if `answers_B`."""
    bridge: Bridge = ctx.tables.bridge
    widest = ctx.config.window_bytes
    one_window = widest <= WIDE or not bridge.narrow
    answer_X, answer_tokens = _answer(ctx)
    vocabulary_B = jnp.zeros_like(text.v_B) if ctx.config.one_vocabulary else text.v_B

    def body(x: _Progress) -> _Progress:
        base_B = x.tokens.end_B(text.v_B, x.reading.total_B)
        narrow_B = x.waits_B & ~x.wide_B
        now_B = jnp.where(narrow_B.any(), narrow_B, x.waits_B)
        left_B = jnp.where(now_B, text.end_B - base_B, 0)

        def read(size: int) -> ClosedWords:
            bytes_BP = read_window(lanes.text_BY, base_B, size)
            words = bridge.closed(bytes_BP, left_B, text.ended_B & now_B, vocabulary_B, widest=size == widest)
            return words.padded(widest)

        if one_window:
            words = read(widest)
        else:
            words = jax.lax.cond(narrow_B.any(), lambda: read(NARROW), jax.named_scope("wide")(lambda: read(widest)))
        starts_B = x.waits_B & text.answers_B & (base_B == text.end_B)
        ids_BP = jnp.where(starts_B[:, None], answer_X[text.v_B], words.ids_BP)
        ends_BP = jnp.where(starts_B[:, None], lanes.written_B[:, None], base_B[:, None] + words.ends_BP)
        total_B = x.reading.total_B + jnp.where(starts_B, answer_tokens[text.v_B], words.tokens_B)
        sure_B = x.reading.sure_B + jnp.where(x.reading.sure_B == x.reading.total_B, words.sure_B, 0)
        spent_B = x.waits_B & ~starts_B & (total_B > text.limit_B)
        widens_B = jnp.zeros_like(now_B) if one_window else words.long_B & narrow_B
        again_B = (words.more_B & (words.end_B > 0)) | widens_B
        return _Progress(
            x.tokens.written(text.v_B, ids_BP, ends_BP, x.reading.total_B),
            Reading(total_B, sure_B),
            x.waits_B & ~starts_B & ~spent_B & (again_B | ~now_B | text.answers_B),
            jnp.where(now_B, widens_B | (x.wide_B & (left_B - words.end_B > widest)), x.wide_B),
            x.spent_B | spent_B,
        )

    start_B = lanes.free_B(text.v_B)
    waits_B = text.who_B & ((lanes.tokens.end_B(text.v_B, start_B) < text.end_B) | text.answers_B)
    wide_B = waits_B & (text.end_B - lanes.tokens.end_B(text.v_B, start_B) > widest) & (not one_window)
    start = _Progress(lanes.tokens, Reading(start_B, start_B), waits_B, wide_B, jnp.zeros_like(waits_B))
    return jax.lax.while_loop(lambda x: x.waits_B.any(), body, start)


def _answer(ctx: LoopContext) -> tuple[jax.Array, jax.Array]:
    """The tokens of each side that start the answer [M, window_bytes], and their number [M]."""
    rows = [jnp.pad(v.answer_X, (0, ctx.config.window_bytes - v.answer_X.shape[0])) for v in ctx.tables.vocabs]
    return jnp.stack(rows), jnp.array([v.answer_X.shape[0] for v in ctx.tables.vocabs], jnp.int32)


def add_known(v: Index, lanes: Lanes, who_B: jax.Array, total_B: jax.Array) -> Lanes:
    """Makes the first total_B tokens of side v known in lanes who_B. A lane ends if its vocabulary lacks a byte of the
    text."""
    before_B = lanes.tokens.known_B(v)
    known_B = jnp.where(who_B, total_B, before_B)
    at_S = jnp.arange(lanes.tokens.ids_MBS.shape[2])
    new_BS = (at_S >= before_B[:, None]) & (at_S < known_B[:, None])
    unspelled_B = ((lanes.tokens.ids_MBS[v] < 0) & new_BS).any(axis=1)
    counts = lanes.counts.add(v, bridged=(known_B - before_B).sum().astype(jnp.float32))
    lanes = replace(lanes, tokens=lanes.tokens.with_known(v, known_B), counts=counts)
    return lanes.with_scalars(status=jnp.where(unspelled_B, UNENCODABLE, lanes.scalars.status))
