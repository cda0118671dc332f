"""One side's turn: it catches up on what the other wrote, then samples token by token.

A model that listens does not run. When its turn comes, the text it has not seen is put into its tokens (`absorb`). Every
`step` is one forward pass: a lane takes in what is not in its cache, a chunk at most, and samples its next token once that
was all, so that what the other wrote costs no pass of its own. A turn ends when no lane of that role can go on, when most of
them have handed over, or after as many steps as a proposal has tokens; who is not done goes on in the next round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.decode.cache import KVCache
from tessy_jax.decode.cut import view, whole
from tessy_jax.decode.proposal import put_at, read, settle, with_caches_cut, written_behind
from tessy_jax.decode.run import Run
from tessy_jax.decode.sampling import position_keys, sample
from tessy_jax.decode.state import ANSWER, BROKEN, CLOSED, ENDED, GOES_ON, LENGTH, THINK, UNSPELLED, Lanes, Rules, Side
from tessy_jax.models.attention import Packing
from tessy_jax.models.transformer import Decoder


def turn(run: Run, m: int, lanes: Lanes) -> Lanes:
    """Side m's turn."""
    rules = run.rules
    lanes = jax.lax.while_loop(lambda x: behind_text_B(x, m).any(), lambda x: absorb(run, m, x), lanes)
    lanes = start_answers(run, m, lanes)
    room = lanes.longest(m) + run.policy.steps[m] + 2 <= rules.capacity
    v = rules.reads[m]
    if v is not None:
        side = lanes.sides[v]
        target_B = jnp.where(lanes.speaks_B(m) & lanes.interleaves_B, side.up_to(lanes.committed_B) - side.prompt_B, 0)
        lanes = read(run, m, lanes, target_B, side.known_B, rules.glance)
    _, lanes = jax.lax.while_loop(
        lambda x: room & goes_on(run, m, x[0], x[1]), lambda x: (x[0] + 1, step(run, m, x[1])), (jnp.int32(0), lanes)
    )
    return lanes


def unseen_until_B(lanes: Lanes) -> jax.Array:
    """Bytes up to which text has to be put into tokens: to the thinking's end where it has ended, since what follows is
    tokens already."""
    return jnp.where(lanes.thought_B >= 0, lanes.thought_B, lanes.committed_B)


def behind_text_B(lanes: Lanes, m: int) -> jax.Array:
    """Whether side m is to speak and its tokens do not cover the text."""
    return lanes.speaks_B(m) & (lanes.sides[m].encoded_B < unseen_until_B(lanes))


def absorb(run: Run, m: int, lanes: Lanes) -> Lanes:
    """Puts the next piece of unseen text into side m's tokens: all that is left if it fits into one view, else as much as no
    following text can change."""
    size = run.rules.view
    side = lanes.sides[m]
    who_B = behind_text_B(lanes, m)
    start_B = side.encoded_B
    left_B = jnp.where(who_B, unseen_until_B(lanes) - start_B, 0)
    bytes_BP = view(lanes.text_BY, start_B, size)
    counts_B = jnp.where(left_B > size, whole(bytes_BP, jnp.minimum(left_B, size)), left_B)
    seen = run.tables.bridges[m].encode(bytes_BP, counts_B)
    at_P = jnp.arange(size, dtype=jnp.int32)
    closed_BP = seen.starts_BP & (at_P <= seen.final_B[:, None]) & (at_P < counts_B[:, None])
    until_B = jnp.where(closed_BP, at_P, 0).max(axis=1)
    until_B = jnp.where((left_B <= size) | (until_B == 0), counts_B, until_B)
    taken_B = ((at_P < seen.tokens_B[:, None]) & (seen.ends_BP <= until_B[:, None])).sum(axis=1, dtype=jnp.int32)
    side = written_behind(side, side.known_B, seen.ids_BP, start_B[:, None] + seen.ends_BP, taken_B)
    side = replace(side, known_B=side.known_B + taken_B)
    unspelled_B = ((seen.ids_BP < 0) & (at_P < taken_B[:, None])).any(axis=1)
    status_B = jnp.where(who_B & (side.response_B > run.policy.limit), LENGTH, lanes.status_B)
    counts = lanes.counts
    bridged = counts.bridged[m] + taken_B.sum().astype(jnp.float32)
    return replace(
        lanes,
        sides=put_at(lanes.sides, m, side),
        status_B=jnp.where(who_B & unspelled_B, UNSPELLED, status_B),
        counts=replace(counts, bridged=put_at(counts.bridged, m, bridged)),
    )


def start_answers(run: Run, m: int, lanes: Lanes) -> Lanes:
    """Side m's own tokens between thinking and answer, in lanes whose thinking has closed since."""
    side = lanes.sides[m]
    ids_N = run.tables.spellings[m].answer_N
    # the text between them is not empty, so tokens that end where the thinking does are those of the thinking
    starts_B = lanes.speaks_B(m) & (lanes.phase_B == ANSWER) & (side.encoded_B == lanes.thought_B)
    ids_BN = jnp.broadcast_to(ids_N, (starts_B.shape[0], ids_N.shape[0]))
    ends_BN = jnp.broadcast_to((lanes.thought_B + run.tables.close_N.shape[0])[:, None], ids_BN.shape)
    counts_B = jnp.where(starts_B, ids_N.shape[0], 0)
    side = written_behind(side, side.known_B, ids_BN, ends_BN, counts_B)
    return replace(lanes, sides=put_at(lanes.sides, m, replace(side, known_B=side.known_B + counts_B)))


def step(run: Run, m: int, lanes: Lanes) -> Lanes:
    """One forward pass of side m for every lane that it may write; those that have then taken in all their tokens sample."""
    policy = run.policy
    side = lanes.sides[m]
    left_B = jnp.where(lanes.ready_B(m), side.known_B - side.cache.lengths_B, 0)
    model = nnx.merge(run.program.writers[m], run.weights.writers[m])
    behind = (left_B > 1).any()
    hidden_B1D, cache, counts_B = either(
        behind,
        lambda cache: several_each(run.rules, model, side, cache, left_B),
        lambda cache: one_each(model, side, cache, left_B),
        side.cache,
    )
    samples_B = (left_B > 0) & (counts_B == left_B)
    # the two sides count their own tokens: twice the position, plus the side, is a position of its own for each
    keys_B = position_keys(policy.seed, lanes.samples_B, lanes.attempts_B, 2 * side.response_B + m)
    token_B = sample(model.logits(hidden_B1D)[:, 0], keys_B, policy.samplings[m])
    lanes = replace(lanes, sides=put_at(lanes.sides, m, replace(side, cache=cache)))
    lanes = write(run, m, lanes, token_B, samples_B)
    counts, sampled = lanes.counts, samples_B.sum().astype(jnp.float32)
    counts = replace(
        counts,
        passes=put_at(counts.passes, m, counts.passes[m] + 1),
        busy=put_at(counts.busy, m, counts.busy[m] + sampled),
        chunks=put_at(counts.chunks, m, counts.chunks[m] + behind),
        caught_up=put_at(counts.caught_up, m, counts.caught_up[m] + counts_B.sum().astype(jnp.float32) - sampled),
    )
    return with_caches_cut(settle(run, m, replace(lanes, counts=counts), samples_B))


Pass = tuple[jax.Array, Any, jax.Array]
"""Hidden states [B, 1, D] behind each lane's last token that was taken in, the cache, and how many were [B]."""


def either(which: jax.Array, first: Callable[[KVCache], Pass], second: Callable[[KVCache], Pass], cache: KVCache) -> Pass:
    """One of two passes over the cache: `lax.cond`, whose branches would copy it, as two loops of at most one turn, which
    leave it in place."""
    hidden, _, counts = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(second, cache))
    state = (jnp.bool_(True), (hidden, cache, counts))
    state = jax.lax.while_loop(lambda x: x[0] & which, lambda x: (jnp.bool_(False), first(x[1][1])), state)
    return jax.lax.while_loop(lambda x: x[0], lambda x: (jnp.bool_(False), second(x[1][1])), state)[1]


def one_each(model: Decoder, side: Side, cache: KVCache, left_B: jax.Array) -> Pass:
    """The pass where no lane lacks more than its last token."""
    counts_B = jnp.minimum(left_B, 1)
    last_B1 = jnp.take_along_axis(side.tokens_BS, side.known_B[:, None] - 1, axis=1)
    hidden_B1D, new = model(last_B1, cache=cache, counts_B=counts_B)
    return hidden_B1D, new, counts_B


def several_each(rules: Rules, model: Decoder, side: Side, cache: KVCache, left_B: jax.Array) -> Pass:
    """The pass where some do. Packed, it is one row of all lanes' tokens, as many as there is room for."""
    T, N = rules.chunk, rules.packed
    index_BT = jnp.minimum(cache.lengths_B[:, None] + jnp.arange(T), side.tokens_BS.shape[1] - 1)
    tokens_BT = jnp.take_along_axis(side.tokens_BS, index_BT, axis=1)
    counts_B = jnp.minimum(left_B, T)
    if not N:
        hidden_BTD, new = model(tokens_BT, cache=cache, counts_B=counts_B)
        last_B11 = jnp.maximum(counts_B - 1, 0)[:, None, None]
        return jnp.take_along_axis(hidden_BTD, last_B11, axis=1), new, counts_B
    counts_B = jnp.clip(N - (jnp.cumsum(counts_B) - counts_B), 0, counts_B)
    upto_B = jnp.cumsum(counts_B)
    lanes_N = jnp.minimum((jnp.arange(N)[:, None] >= upto_B).sum(axis=1), len(upto_B) - 1)
    times_N = jnp.minimum(jnp.arange(N) - (upto_B - counts_B)[lanes_N], T - 1)
    packing = Packing(lanes_N, times_N, jnp.minimum((upto_B - counts_B)[:, None] + jnp.arange(T), N - 1))
    hidden_1ND, new = model(packing.together(tokens_BT), cache=cache, counts_B=counts_B, packing=packing)
    return hidden_1ND[0, jnp.maximum(upto_B - 1, 0)][:, None], new, counts_B


def write(run: Run, m: int, lanes: Lanes, token_B: jax.Array, ready_B: jax.Array) -> Lanes:
    """Puts a sampled token behind the proposal, or, if it is no text, ends the proposal with it."""
    spelling, size = run.tables.spellings[m], run.rules.longest
    ends_B = (token_B[:, None] == spelling.ends_N).any(axis=1)
    closes_B = (token_B[:, None] == spelling.closing_N).any(axis=1) & (lanes.phase_B == THINK)
    broken_B = spelling.control_V[token_B]
    over_B = jnp.where(ends_B, ENDED, jnp.where(closes_B, CLOSED, jnp.where(broken_B, BROKEN, GOES_ON)))
    text_B = ready_B & (over_B == GOES_ON)

    first_B = spelling.offsets_V1[token_B]
    length_B = jnp.where(text_B, spelling.offsets_V1[token_B + 1] - first_B, 0)
    at_L = jnp.arange(size)
    bytes_BL = spelling.data_N[jnp.minimum(first_B[:, None] + at_L, spelling.data_N.shape[0] - 1)]
    Y = lanes.text_BY.shape[1]
    slots_BL = jnp.where(at_L < length_B[:, None], lanes.written_B[:, None] + at_L, Y + at_L)
    lanes_B1 = jnp.arange(token_B.shape[0])[:, None]
    written_B = lanes.written_B + length_B
    one_B = text_B.astype(jnp.int32)
    side = written_behind(lanes.sides[m], lanes.sides[m].known_B, token_B[:, None], written_B[:, None], one_B)
    return replace(
        lanes,
        text_BY=lanes.text_BY.at[lanes_B1, slots_BL].set(bytes_BL, mode="drop", unique_indices=True),
        written_B=written_B,
        proposed_B=lanes.proposed_B + one_B,
        over_B=jnp.where(ready_B, over_B, lanes.over_B),
        generated_B2=lanes.generated_B2.at[:, m].add(ready_B.astype(jnp.int32)),
        sides=put_at(lanes.sides, m, replace(side, known_B=side.known_B + one_B)),
    )


def goes_on(run: Run, m: int, steps: jax.Array, lanes: Lanes) -> jax.Array:
    """Whether side m takes another step before the other side's turn.

    Lanes that answer are no reason to go on while the other side has lanes waiting, nor to stop.
    """
    ready_B = lanes.ready_B(m)
    thinking = (ready_B & (lanes.phase_B == THINK)).sum()
    waiting = (lanes.running_B & ~ready_B).sum()
    few = thinking < (1 - run.policy.handover) * (thinking + waiting)
    keeps = (steps == 0) | (waiting == 0) | ((thinking > 0) & ~few)
    harvested = (lanes.ended_B.sum() >= run.policy.harvest) & (steps > 0)
    return ready_B.any() & (steps < run.policy.steps[m]) & keeps & ~harvested
