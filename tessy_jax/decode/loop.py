"""The alternating loop: student and teacher take turns inside one `lax.while_loop`.

An iteration checks the proposals of lanes that have sampled a token, decides whose turn it is, and runs one forward pass of
that side. The forward passes and the predictors are compiled for each side. All other code is shared by both sides: the side
is a traced number.

A turn ends when no lane of the side can continue, when enough lanes have handed over (`DecodeParams.handover`), or after as
many passes as a proposal has tokens. The remaining lanes continue in the side's next turn. A round is a turn of each side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from tessy_jax.decode.context import LoopContext, LoopGraphs, LoopWeights
from tessy_jax.decode.flips import read_predictors
from tessy_jax.decode.forward import forward, unread_B
from tessy_jax.decode.proposal import Sampled, append_sampled, proposals, resolve
from tessy_jax.decode.state import THINK, Counts, DecodeParams, Lanes, pick_side
from tessy_jax.decode.tables import TextTables
from tessy_jax.decode.tokenize import tokenize


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turn:
    """The state between two iterations. side: the side whose turn it is. passes: its forward passes in this turn. sampled:
    the result of the last pass. goes_on: whether the dispatch continues."""

    lanes: Lanes
    side: jax.Array
    passes: jax.Array
    sampled: Sampled
    goes_on: jax.Array


def run_rounds(graphs: LoopGraphs, weights: LoopWeights, tables: TextTables, params: DecodeParams, lanes: Lanes) -> Lanes:
    """Runs rounds until enough lanes have ended, a lane found no free page, the rounds are used up, or no lane runs."""
    ctx = LoopContext(graphs, weights, tables, params)
    lanes = replace(lanes, counts=zero_counts(len(lanes.caches)), starved_B=jnp.zeros_like(lanes.starved_B))
    nothing = Sampled(jnp.zeros_like(lanes.running_B), jnp.zeros_like(lanes.committed_B))
    start = Turn(lanes, jnp.int32(0), jnp.int32(0), nothing, goes_on(ctx, lanes))
    return jax.lax.while_loop(lambda x: x.goes_on, lambda x: iteration(ctx, x), start).lanes


def iteration(ctx: LoopContext, x: Turn) -> Turn:
    """One iteration of the loop."""
    lanes, m, sampled = x.lanes, x.side, x.sampled
    proposal = proposals(ctx, m, lanes)
    lanes, reading = tokenize(ctx, m, lanes, sampled.moved_B, proposal.over_B, sampled.certain_B)
    lanes = read_predictors(ctx, m, lanes, sampled.moved_B, proposal.over_B, sampled.certain_B, reading)
    lanes = resolve(ctx, m, lanes, proposal, sampled, reading)

    stays = turn_continues(ctx, m, x.passes, lanes)
    side = jnp.where(stays, m, (m + 1) % len(lanes.caches))
    is_over = ~stays & (side == 0)
    lanes = replace(lanes, counts=replace(lanes.counts, rounds=lanes.counts.rounds + is_over))
    # a turn begins with an iteration in which the side tokenizes the text that it has not read; its first pass follows
    lanes, token_B, moved_B = forward(ctx, side, lanes, stays)
    lanes, sampled = append_sampled(ctx, side, lanes, token_B, moved_B)
    return Turn(lanes, side, jnp.where(stays, x.passes + 1, 0), sampled, ~is_over | goes_on(ctx, lanes))


def goes_on(ctx: LoopContext, lanes: Lanes) -> jax.Array:
    """Whether another round follows."""
    going = lanes.running_B.any() & (lanes.ended_B.sum() < ctx.params.harvest)
    return going & (lanes.counts.rounds < ctx.params.rounds_per_dispatch) & ~lanes.starved_B.any()


def turn_continues(ctx: LoopContext, m: jax.Array, passes: jax.Array, lanes: Lanes) -> jax.Array:
    """Whether side m takes another pass before the other side's turn.

    Lanes that answer do not count for or against another pass while lanes of the other side wait. If a pass has no room for
    all lanes, the side continues as long as its lanes fill a pass, and stops once only the other side's do.
    """
    speaks_B = lanes.speaks_B(m)
    thinking = (speaks_B & (lanes.scalars.phase == THINK)).sum()
    waiting = (lanes.running_B & ~speaks_B).sum()
    room, shards = ctx.config.room, lanes.first_MD.shape[1]
    assert room is not None
    few = thinking < (1 - ctx.params.handover) * (thinking + waiting)
    keeps = (waiting == 0) | ((thinking > 0) & ~few)
    keeps &= passes < pick_side(ctx.params.steps, m)
    if len(speaks_B) > room.rows * shards:
        others_B = (lanes.running_B & ~speaks_B).astype(jnp.int32)
        keeps = room.is_filled(unread_B(lanes, m), shards) | (keeps & ~room.is_filled(others_B, shards))
    keeps &= lanes.ended_B.sum() < ctx.params.harvest
    return speaks_B.any() & ((passes == 0) | keeps)


def zero_counts(sides: int) -> Counts:
    """Counts of a dispatch that has done nothing."""

    def zeros() -> jax.Array:  # distinct arrays, since a buffer can be donated only once
        return jnp.zeros((sides,), jnp.float32)

    return Counts(zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), jnp.zeros((), jnp.float32))
