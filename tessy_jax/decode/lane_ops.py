"""Operations of the host on lanes between two dispatches of the loop. They are compiled programs, because lanes may be
sharded over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tessy_jax.decode.cache import PageCache
from tessy_jax.decode.state import CONTINUES, EMPTY, RUNNING, Counts, Lanes, LaneScalars, Tokens


def without_pages(lanes: Lanes) -> Lanes:
    """The lanes without keys and values, and without the state of the predictors."""
    caches = tuple(cache.without_pages() for cache in lanes.caches)
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
    caches = tuple(cache.release(lane) for cache in lanes.caches)
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
        parked_B=row(lanes.parked_B, jnp.bool_(False)),
        starved_B=row(lanes.starved_B, jnp.bool_(False)),
        tokens=tokens,
        caches=caches,
        predictors=predictors,
    )


def free(status_B: jax.Array, caches: tuple[PageCache, ...], lane: jax.Array) -> tuple[jax.Array, tuple[PageCache, ...]]:
    """Marks a lane as empty, and releases its pages."""
    return status_B.at[lane].set(EMPTY), tuple(cache.release(lane) for cache in caches)


def park(
    parked_B: jax.Array, caches: tuple[PageCache, ...], lane: jax.Array, parks: jax.Array
) -> tuple[jax.Array, tuple[PageCache, ...]]:
    """Releases the pages of a lane, and marks it as parked or not. If it runs again, it reads its tokens again."""
    return parked_B.at[lane].set(parks), tuple(cache.release(lane) for cache in caches)


class Report(NamedTuple):
    """What the host learns after a dispatch: the lanes' status, the counts, lanes that found no page, tokens known and pages
    owned per side and lane, and free pages per side and shard."""

    status_B: Any
    counts: Counts
    starved_B: Any
    known_MB: Any
    owned_MB: Any
    left_MD: Any


def report(lanes: Lanes) -> Report:
    """The report to the host."""
    owned_MB = jnp.stack([cache.owned_B for cache in lanes.caches])
    left_MD = jnp.stack([cache.left_D for cache in lanes.caches])
    return Report(lanes.scalars.status, lanes.counts, lanes.starved_B, lanes.tokens.known_MB, owned_MB, left_MD)


def extract(lanes: Lanes, index_X: jax.Array) -> tuple[LaneScalars, jax.Array, jax.Array, jax.Array, Tokens]:
    """Extracts lanes: their scalars, committed bytes, text, its sources, and tokens."""
    parts = lanes.scalars, lanes.committed_B, lanes.text_BY, lanes.source_BY
    return *jax.tree.map(lambda x: x[index_X], parts), jax.tree.map(lambda x: x[:, index_X], lanes.tokens)
