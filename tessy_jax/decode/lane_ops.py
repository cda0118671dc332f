"""Operations of the host on lanes between two dispatches of the loop. They are compiled programs, because lanes may be
sharded over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from tessy_jax.decode.cache import KVCache
from tessy_jax.decode.state import CONTINUES, EMPTY, RUNNING, Counts, Lanes, LaneScalars, Tokens


def without_caches(lanes: Lanes) -> Lanes:
    """The lanes without cache contents: a few arrays instead of several per layer."""
    caches = tuple(KVCache((), cache.lengths_B) for cache in lanes.caches)
    return replace(lanes, caches=caches, predictors=(None,) * len(lanes.predictors))


def insert(lanes: Lanes, lane: jax.Array, rows: dict[str, Any]) -> Lanes:
    """Inserts a response into a lane, with empty caches."""

    def row(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[lane].set(new)

    def of_sides(old: jax.Array, new: Sequence[jax.Array]) -> jax.Array:
        return old.at[:, lane].set(jnp.stack(new))

    tokens = Tokens(
        ids_MBS=of_sides(lanes.tokens.ids_MBS, rows["tokens"]),
        ends_MBS=of_sides(lanes.tokens.ends_MBS, rows["ends"]),
        prompt_MB=of_sides(lanes.tokens.prompt_MB, rows["prompt"]),
        known_MB=of_sides(lanes.tokens.known_MB, rows["known"]),
    )
    caches = tuple(cache.rollback(row(cache.lengths_B, jnp.int32(0))) for cache in lanes.caches)
    predictors = tuple(
        None
        if predictor is None
        else replace(
            predictor, read_B=row(predictor.read_B, rows["read"][m]), first_B=row(predictor.first_B, rows["read"][m])
        )
        for m, predictor in enumerate(lanes.predictors)
    )
    return replace(
        lanes,
        text_BY=row(lanes.text_BY, rows["text"]),
        source_BY=row(lanes.source_BY, rows["source"]),
        committed_B=row(lanes.committed_B, rows["committed"]),
        written_B=row(lanes.written_B, rows["committed"]),
        proposed_B=row(lanes.proposed_B, jnp.int32(0)),
        stop_B=row(lanes.stop_B, jnp.int32(CONTINUES)),
        flip_B=row(lanes.flip_B, jnp.int32(-1)),
        scalars=jax.tree.map(row, lanes.scalars, replace(rows["scalars"], status=jnp.int32(RUNNING))),
        pending_B=row(lanes.pending_B, jnp.int32(0)),
        tokens=tokens,
        caches=caches,
        predictors=predictors,
    )


def free(status_B: jax.Array, lane: jax.Array) -> jax.Array:
    """Marks a lane as empty."""
    return status_B.at[lane].set(EMPTY)


def report(lanes: Lanes) -> tuple[jax.Array, Counts, jax.Array]:
    """The report to the host after a dispatch: the lanes' status [B], the counts, and the tokens of the longest lane that
    continues."""
    longest = jnp.stack([lanes.longest(m) for m in range(len(lanes.caches))]).max()
    return lanes.scalars.status, lanes.counts, longest


def extract(lanes: Lanes, index_X: jax.Array) -> tuple[LaneScalars, jax.Array, jax.Array, jax.Array, Tokens]:
    """Extracts lanes: their scalars, committed bytes, text, its sources, and tokens."""
    parts = lanes.scalars, lanes.committed_B, lanes.text_BY, lanes.source_BY
    return *jax.tree.map(lambda x: x[index_X], parts), jax.tree.map(lambda x: x[:, index_X], lanes.tokens)
