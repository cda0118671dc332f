"""One model continues prompts: batched, jitted, with a pool of pages that grows.

A lane knows tokens (its prompt and what it wrote) and has some of them in its cache. Catching up fills the cache in chunks
up to the last known token; decoding feeds that one and appends the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tessy_jax.decode.cache import PageCache, new_cache
from tessy_jax.decode.sampling import Sampling, position_keys, sample
from tessy_jax.models.pages import Rows
from tessy_jax.models.transformer import Decoder
from tessy_jax.sharding import put

CHUNK = 128
NEW_TOKENS = 256  # tokens per lane, in addition to its prompt, that the pool holds at first
SMALLEST_BUCKET = 256
MIN_LANES = 2
"""XLA's CPU backend multiplies a single bfloat16 row 15 times slower than two, and copies the cache of a single lane in
every step; elsewhere an idle lane costs nothing, since a step reads the same weights for it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lanes:
    """The state of all lanes. starved_B: the lane found no free page in the last step."""

    tokens_BS: jax.Array
    known_B: jax.Array  # tokens that are known
    limit_B: jax.Array  # tokens at which the lane ends
    running_B: jax.Array
    samples_B: jax.Array  # seeds the lane's randomness
    starved_B: jax.Array
    cache: PageCache


class Continuation(NamedTuple):
    """What a lane wrote, and why it ended: an end-of-sequence token (which is included) or the length limit."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


@partial(jax.jit, static_argnums=(0, 3), donate_argnums=2)
def catch_up(graph: Any, params: Any, lanes: Lanes, size: int) -> Lanes:
    """One chunk: up to `size` known tokens per lane enter the cache, all but the last known one at most."""
    model = nnx.merge(graph, params)
    cache, ok_B = lanes.cache.reserve(jnp.where(lanes.limit_B > lanes.known_B, lanes.known_B, 0))
    start_B = cache.lengths_B
    index_BT = start_B[:, None] + jnp.arange(size, dtype=jnp.int32)
    tokens_BT = jnp.take_along_axis(lanes.tokens_BS, jnp.minimum(index_BT, lanes.tokens_BS.shape[1] - 1), axis=1)
    counts_B = jnp.where(ok_B, jnp.clip(lanes.known_B - 1 - start_B, 0, size), 0)
    _, kv = model(tokens_BT, cache=cache.kv, rows=Rows(start_B, counts_B))
    return replace(lanes, cache=cache.filled(kv, start_B + counts_B))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(graph: Any, params: Any, lanes: Lanes, eos_X: jax.Array, sampling: Sampling, seed: jax.Array) -> Lanes:
    """Decodes until every lane has ended or one found no free page."""
    rows_B = jnp.arange(lanes.known_B.shape[0])

    def step(lanes: Lanes) -> Lanes:
        model = nnx.merge(graph, params)
        last_B = jnp.take_along_axis(lanes.tokens_BS, lanes.known_B[:, None] - 1, axis=1)
        cache, ok_B = lanes.cache.reserve(jnp.where(lanes.running_B, lanes.known_B, 0))
        runs_B = lanes.running_B & ok_B
        counts_B = runs_B.astype(jnp.int32)
        hidden_B1D, kv = model(last_B, cache=cache.kv, rows=Rows(cache.lengths_B, counts_B))
        keys_B = position_keys(seed, lanes.samples_B, jnp.zeros_like(lanes.samples_B), lanes.known_B)
        next_B = sample(model.logits(hidden_B1D)[:, 0], keys_B, sampling)
        slot_B = jnp.where(runs_B, lanes.known_B, lanes.tokens_BS.shape[1])
        known_B = lanes.known_B + counts_B
        ended_B = runs_B & ((next_B[:, None] == eos_X).any(axis=1) | (known_B >= lanes.limit_B))
        return replace(
            lanes,
            tokens_BS=lanes.tokens_BS.at[rows_B, slot_B].set(next_B, mode="drop"),
            known_B=known_B,
            running_B=lanes.running_B & ~ended_B,
            starved_B=~ok_B,
            cache=cache.filled(kv, cache.lengths_B + counts_B),
        )

    return jax.lax.while_loop(lambda lanes: lanes.running_B.any() & ~lanes.starved_B.any(), step, lanes)


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> list[Continuation]:
    """Continues every prompt (non-empty token ids) in a lane of its own.

    temperature 0 is greedy. samples: a number per prompt that, with the seed, decides its randomness (default: its index).
    A continuation does not depend on the other prompts of the call, up to ties that rounding decides.
    """
    if not prompts:
        return []
    samples = list(range(len(prompts))) if samples is None else samples
    graph, params = nnx.split(model)
    lanes = _start(model, prompts, samples, max_new_tokens)
    longest = max(len(prompt) for prompt in prompts)
    for _ in range(-(-(longest - 1) // CHUNK)):
        lanes = catch_up(graph, params, lanes, CHUNK)
    eos_X = jnp.asarray(list(eos_ids) or [-1], jnp.int32)
    while True:
        lanes = decode(graph, params, lanes, eos_X, Sampling.of(temperature), jnp.uint32(seed))
        if not bool(lanes.running_B.any()):
            break
        cache = lanes.cache.grown(2 * lanes.cache.free_DP.shape[1])
        lanes = replace(lanes, cache=cache, starved_B=jnp.zeros_like(lanes.starved_B))

    tokens, known = np.asarray(lanes.tokens_BS), np.asarray(lanes.known_B)
    ended = []
    for lane, prompt in enumerate(prompts):
        ids = tokens[lane, len(prompt) : known[lane]].tolist()
        ended.append(Continuation(ids, "stop" if ids and ids[-1] in eos_ids else "length"))
    return ended


def bucket(tokens: int) -> int:
    """The smallest bucket of at least `tokens` tokens: 256, 384, 512, 768, …: powers of two and one size between each two,
    so that few sizes are compiled for."""
    power = max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())
    between = 3 * power // 4
    return between if between > SMALLEST_BUCKET and tokens <= between else power


def _start(model: Decoder, prompts: Sequence[Sequence[int]], samples: Sequence[int], max_new_tokens: int) -> Lanes:
    partitioner = model.partitioner
    dtype = model.embed.dtype
    shards = partitioner.num_shards("lanes")
    count = -(-max(len(prompts), MIN_LANES) // shards) * shards
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((count, bucket(longest + max_new_tokens)), np.int32)
    for lane, prompt in enumerate(prompts):
        tokens[lane, : len(prompt)] = prompt
    known = np.array([len(prompt) for prompt in prompts] + [1] * (count - len(prompts)), np.int32)
    running = np.arange(count) < (len(prompts) if max_new_tokens else 0)
    filled = np.array([*samples, *[0] * (count - len(prompts))], np.int32)

    def lane_put(x: np.ndarray) -> jax.Array:
        return put(x, partitioner, ("lanes", *(None,) * (x.ndim - 1)))

    pool = count * bucket(longest + min(max_new_tokens, NEW_TOKENS))
    cache = new_cache(model.config, count, tokens.shape[1], slack=CHUNK, dtype=dtype, partitioner=partitioner, pool=pool)
    return Lanes(
        tokens_BS=lane_put(tokens),
        known_B=lane_put(known),
        limit_B=lane_put(known + max_new_tokens),
        running_B=lane_put(running),
        samples_B=lane_put(filled),
        starved_B=lane_put(np.zeros(count, bool)),
        cache=cache,
    )
