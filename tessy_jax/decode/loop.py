"""The alternating loop: rounds of student turn and teacher turn inside one `lax.while_loop`, and what prepares its lanes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.decode.cache import KVCache
from tessy_jax.decode.context import LoopContext, LoopGraphs, LoopWeights
from tessy_jax.decode.state import Counts, DecodeParams, Lanes, Side, TextTables
from tessy_jax.decode.turn import turn
from tessy_jax.decode.windows import read_window

PREFILL_CHUNK = 128  # tokens per chunk when a prompt enters the cache


def run_rounds(graphs: LoopGraphs, weights: LoopWeights, tables: TextTables, params: DecodeParams, lanes: Lanes) -> Lanes:
    """Runs rounds until enough lanes have ended, a lane needs a larger cache, the rounds are used up, or no lane runs."""
    ctx = LoopContext(graphs, weights, tables, params)
    sides = range(len(lanes.sides))

    def more(lanes: Lanes) -> jax.Array:
        going = lanes.running_B.any() & (lanes.ended_B.sum() < params.harvest)
        going &= lanes.counts.rounds < params.rounds_per_dispatch
        for m in sides:
            going &= lanes.longest(m) + params.steps[m] + 2 <= graphs.config.capacity
        return going

    def body(lanes: Lanes) -> Lanes:
        for m in sides:
            with jax.named_scope(f"side{m}"):
                lanes = turn(ctx, m, lanes)
        return replace(lanes, counts=replace(lanes.counts, rounds=lanes.counts.rounds + 1))

    return jax.lax.while_loop(more, body, replace(lanes, counts=zero_counts(len(lanes.sides))))


def zero_counts(sides: int) -> Counts:
    def zeros() -> tuple[jax.Array, ...]:  # distinct arrays, since a buffer can be donated only once
        return tuple(jnp.zeros((), jnp.float32) for _ in range(sides))

    return Counts(zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), jnp.zeros((), jnp.float32))


def prefill_lane(graph: Any, params: Any, side: Side, lane: jax.Array) -> Side:
    """Fills the cache of one lane with its known tokens except the last. The lane is sliced out, filled and written back, so
    that the other lanes cost nothing. For caches that are not sharded over lanes."""

    def part(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, lane, 1, axis=0)

    alone = Side(
        part(side.tokens_BS), part(side.ends_BS), part(side.prompt_B), part(side.known_B), jax.tree.map(part, side.cache)
    )
    cache = prefill_lanes(graph, params, alone).cache

    def back(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, lane, axis=0)

    return replace(side, cache=jax.tree.map(back, side.cache, cache))


def copy_prefix(side: Side, source: jax.Array, lane: jax.Array, count: jax.Array) -> Side:
    """Copies the cache row of lane `source` to `lane`, of which the first `count` tokens are valid."""

    def copied(x: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice_in_dim(x, source, 1, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(x, row, lane, axis=0)

    layers = jax.tree.map(copied, side.cache.layers)
    return replace(side, cache=KVCache(layers, side.cache.lengths_B.at[lane].set(count)))


def prefill_lanes(graph: Any, params: Any, side: Side) -> Side:
    """Fills the caches of all lanes with their known tokens except the last."""
    model = nnx.merge(graph, params)

    def left_B(cache: KVCache) -> jax.Array:
        return jnp.maximum(side.known_B - 1 - cache.lengths_B, 0)

    def chunk(cache: KVCache) -> KVCache:
        tokens_BT = read_window(side.tokens_BS, cache.lengths_B, PREFILL_CHUNK)
        _, cache = model(tokens_BT, cache=cache, counts_B=jnp.minimum(left_B(cache), PREFILL_CHUNK))
        return cache

    cache = jax.lax.while_loop(lambda cache: (left_B(cache) > 0).any(), chunk, side.cache)
    return replace(side, cache=cache)
