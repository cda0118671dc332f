"""What the host does between two runs of the loop, as programs: lanes may be cut over devices of several processes, where
nothing can be read or changed outside of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from tessy_jax.decode import cache as caches
from tessy_jax.decode.cache import KVCache
from tessy_jax.decode.state import EMPTY, Counts, Lanes
from tessy_jax.models.config import ModelConfig

NUMBERS = (
    "committed_B",
    "speaker_B",
    "phase_B",
    "thinking_bytes_B",
    "thinkers_B",
    "answerer_B",
    "samples_B",
    "attempts_B",
    "generated_B2",
    "discarded_B2",
    "switches_B",
    "status_B",
)
"""What `taken` gives of a lane besides text and tokens."""


def without_caches(lanes: Lanes) -> Lanes:
    """The lanes without what caches hold: a few arrays instead of several per layer."""
    sides = tuple(replace(side, cache=KVCache((), side.cache.lengths_B)) for side in lanes.sides)
    return replace(lanes, sides=sides, predictors=(None,) * len(lanes.predictors))


def insert(lanes: Lanes, lane: jax.Array, rows: dict[str, Any]) -> Lanes:
    """The lanes with a response in one of them, and nothing in its caches."""

    def row(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[lane].set(new)

    sides = tuple(
        replace(
            side,
            tokens_BS=row(side.tokens_BS, rows["tokens"][m]),
            ends_BS=row(side.ends_BS, rows["ends"][m]),
            prompt_B=row(side.prompt_B, rows["prompt"][m]),
            known_B=row(side.known_B, rows["known"][m]),
            cache=side.cache.rollback(row(side.cache.lengths_B, jnp.int32(0))),
        )
        for m, side in enumerate(lanes.sides)
    )
    predictors = tuple(
        None if predictor is None else replace(predictor, read_B=row(predictor.read_B, rows["read"][m]))
        for m, predictor in enumerate(lanes.predictors)
    )
    numbers: dict[str, Any] = {name: row(getattr(lanes, name), value) for name, value in rows["numbers"].items()}
    text, source = row(lanes.text_BY, rows["text"]), row(lanes.source_BY, rows["source"])
    return replace(lanes, text_BY=text, source_BY=source, sides=sides, predictors=predictors, **numbers)


def free(status_B: jax.Array, lane: jax.Array) -> jax.Array:
    """The lanes' status with one of them empty."""
    return status_B.at[lane].set(EMPTY)


def report(lanes: Lanes) -> tuple[jax.Array, Counts, jax.Array]:
    """What the host has to know after a run: the lanes' status [B], the counts, and the tokens of the longest lane that is
    about to be written."""
    longest = jnp.stack([lanes.longest(m) for m in range(len(lanes.sides))]).max()
    return lanes.status_B, lanes.counts, longest


def extract(lanes: Lanes, index_N: jax.Array) -> tuple[dict[str, jax.Array], jax.Array, jax.Array, list[Any]]:
    """Of some lanes: their `NUMBERS`, text, who wrote it, and per side tokens, their ends, and how many of them are the
    prompt's and known."""
    numbers = {name: getattr(lanes, name) for name in NUMBERS}
    sides = [(side.tokens_BS, side.ends_BS, side.prompt_B, side.known_B) for side in lanes.sides]
    return jax.tree.map(lambda x: x[index_N], (numbers, lanes.text_BY, lanes.source_BY, sides))


def grow(config: ModelConfig, capacity: int, slack: int, cache: KVCache) -> KVCache:
    """See `cache.grow`."""
    return caches.grow(cache, config, capacity, slack=slack)
