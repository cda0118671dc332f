"""Operations of the host on lanes between two dispatches of the loop. They are compiled programs, because lanes may be
sharded over several processes."""

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
"""The scalars of a lane that `extract` returns."""


def without_caches(lanes: Lanes) -> Lanes:
    """The lanes without cache contents: a few arrays instead of several per layer."""
    sides = tuple(replace(side, cache=KVCache((), side.cache.lengths_B)) for side in lanes.sides)
    return replace(lanes, sides=sides, predictors=(None,) * len(lanes.predictors))


def insert(lanes: Lanes, lane: jax.Array, rows: dict[str, Any]) -> Lanes:
    """Inserts a response into a lane, with empty caches."""

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
    """Marks a lane as empty."""
    return status_B.at[lane].set(EMPTY)


def report(lanes: Lanes) -> tuple[jax.Array, Counts, jax.Array]:
    """The report to the host after a dispatch: the lanes' status [B], the counts, and the tokens of the longest lane that
    continues."""
    longest = jnp.stack([lanes.longest(m) for m in range(len(lanes.sides))]).max()
    return lanes.status_B, lanes.counts, longest


def extract(lanes: Lanes, index_N: jax.Array) -> tuple[dict[str, jax.Array], jax.Array, jax.Array, list[Any]]:
    """Extracts lanes: `NUMBERS`, text, its sources, and per side the tokens, their byte ends, and the numbers of prompt and
    known tokens."""
    numbers = {name: getattr(lanes, name) for name in NUMBERS}
    sides = [(side.tokens_BS, side.ends_BS, side.prompt_B, side.known_B) for side in lanes.sides]
    return jax.tree.map(lambda x: x[index_N], (numbers, lanes.text_BY, lanes.source_BY, sides))


def grow(config: ModelConfig, capacity: int, slack: int, cache: KVCache) -> KVCache:
    """See `cache.grow`."""
    return caches.grow(cache, config, capacity, slack=slack)
