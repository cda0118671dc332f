"""Which lanes give their pages back when a pool has no free page, and which parked lanes run again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tessy_jax.decode.lane_ops import Report
from tessy_jax.decode.state import DONE, RUNNING
from tessy_jax.models.pages import page_count


def to_release(seen: Report, parked: Sequence[int], shard_B: np.ndarray) -> tuple[list[int], list[int]]:
    """Lanes that make room on each shard where a lane found no free page: the lanes that have ended, and the lanes to park.

    Lanes are parked only on shards without ended lanes: those with the fewest pages, one for every two lanes that found no
    free page. The lane with the most pages continues. parked: parked lanes. shard_B: the shard of each lane.
    """
    pages_B, ended, parks = seen.owned_MB.sum(axis=0), [], []
    runs_B = (seen.status_B == RUNNING) & ~np.isin(np.arange(len(shard_B)), parked)
    for shard in np.unique(shard_B[seen.starved_B]):
        here_B = shard_B == shard
        over = np.flatnonzero(here_B & (seen.status_B >= DONE) & (pages_B > 0)).tolist()
        ended += over
        if not over:
            active = sorted(np.flatnonzero(here_B & runs_B).tolist(), key=lambda lane: pages_B[lane])
            assert len(active) > 1, "the pool holds one response of full length"
            starved = int((seen.starved_B & here_B).sum())
            parks += active[: min(-(-starved // 2), len(active) - 1)]
    return ended, parks


def to_take_back(seen: Report, parked: Sequence[int], shard_B: np.ndarray, margin: int, page: int) -> list[int]:
    """Parked lanes to take back, the first parked first. A lane is taken back if its shard has free pages for its tokens
    and one more for every lane that runs there, or if no lane runs there; otherwise it and all later lanes of its shard
    stay parked.

    parked: parked lanes, the first parked first. margin: tokens that a lane needs besides. page: tokens per page.
    """
    left_MD = seen.left_MD.copy()
    runs_B = (seen.status_B == RUNNING) & ~np.isin(np.arange(len(shard_B)), parked)
    active_D = np.bincount(shard_B[runs_B], minlength=left_MD.shape[1])
    back: list[int] = []
    full: set[int] = set()
    for lane in parked:
        shard = int(shard_B[lane])
        need_M = page_count(seen.known_MB[:, lane] + margin, page)
        if shard in full or (active_D[shard] and (left_MD[:, shard] < need_M + active_D[shard]).any()):
            full.add(shard)
            continue
        back.append(lane)
        left_MD[:, shard] -= need_M
        active_D[shard] += 1
    return back
