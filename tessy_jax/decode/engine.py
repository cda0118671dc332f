"""The host side of the loop: inserts responses into lanes, runs the compiled program, and extracts ended responses.

It knows arrays and numbers only. Between two visits of the host nothing but the report of `run` crosses from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from tessy_jax.backend import backend
from tessy_jax.decode.batch import Room
from tessy_jax.decode.cache import PageCache, new_cache
from tessy_jax.decode.context import LoopGraphs, LoopWeights
from tessy_jax.decode.generate import MIN_LANES
from tessy_jax.decode.lane_ops import Report, extract, free, insert, park, report, without_pages
from tessy_jax.decode.loop import run_rounds, zero_counts
from tessy_jax.decode.parking import to_release, to_take_back
from tessy_jax.decode.pool import fitting_pool
from tessy_jax.decode.predictor_window import first_token_needed, new_predictor_state
from tessy_jax.decode.prefill import PREFILL_CHUNK, prefill, share
from tessy_jax.decode.programs import Programs
from tessy_jax.decode.response_state import ResponseState, TokenizedView
from tessy_jax.decode.state import (
    CONTINUES,
    DONE,
    RUNNING,
    DecodeParams,
    Lanes,
    LaneScalars,
    LoopConfig,
    PredictorState,
    Tokens,
    replace_at,
)
from tessy_jax.decode.tables import TextTables
from tessy_jax.decode.totals import Compilation, Totals
from tessy_jax.models.pages import PAGE, page_count
from tessy_jax.models.transformer import Decoder
from tessy_jax.program import Program
from tessy_jax.sharding import put

MAX_ROLLBACK = 256  # largest rollback of a lane in tokens; sliding-window layers keep this many more

CACHE_SLACK = max(PREFILL_CHUNK, MAX_ROLLBACK)
"""Tokens that sliding-window layers keep in addition to their window; see `cache`."""

PREDICTOR_SLACK = 64  # tokens that predictors keep beyond their window; after a deeper rollback, they read the window again

ROW_TOKENS = 8  # tokens of a row on accelerators

MIN_PREDICTOR_LANES = 4  # smallest `LoopConfig.predictor_lanes`, unless lanes are sharded


def margin(steps: int) -> int:
    """Tokens that a lane keeps free for a proposal of at most `steps` tokens."""
    return steps + 2


def default_room(lanes: int) -> Room:
    """What a pass that continues `lanes` lanes of a shard has room for. On accelerators, a pass reads all weights, so that
    further tokens cost little: a row holds several. On CPUs, every token costs time."""
    if backend().platform == "cpu":
        return Room(lanes, 1, lanes, PREFILL_CHUNK)
    return Room(lanes, ROW_TOKENS, 2 * lanes, PREFILL_CHUNK)


def longest(tokens: int, window_bytes: int, steps: int) -> int:
    """The most tokens of a lane. tokens: limit of prompt and response. steps: see `margin`. The last window may exceed the
    limit, and one more window may be written after it."""
    return tokens + 2 * window_bytes + margin(steps)


class Engine:
    """Lanes on a mesh, with the writers and their boundary predictors.

    writers: student and teacher, or one of them alone. predictors: their boundary predictors, or None. tokens: the most of
    prompt and response in one vocabulary. pool: tokens that the cache of each writer holds, all lanes together; at least one
    lane's tokens on each shard (default: what memory holds, at most `tokens` and a proposal for every lane). page: tokens
    per page; it must divide `PAGE`. pass_lanes: the most lanes of a shard that a forward pass continues (default: all). If
    the configuration's `room` is None, the engine derives it from pass_lanes. The engine also sets `predictor_lanes`.

    If a lane finds no free page, the engine releases the pages of lanes that have ended, or else parks lanes. A parked lane
    keeps its text, and waits without a cache until pages are free.

    Raises:
        ShardingError: lanes that the mesh does not divide.
    """

    def __init__(
        self,
        writers: Sequence[Decoder],
        predictors: Sequence[Decoder | None],
        tables: TextTables,
        config: LoopConfig,
        params: DecodeParams,
        *,
        lanes: int,
        tokens: int,
        pool: int | None = None,
        page: int = PAGE,
        pass_lanes: int | None = None,
    ) -> None:
        self.partitioner = writers[0].partitioner
        shards = self.partitioner.num_shards("lanes")
        self.size = -(-max(lanes, MIN_LANES) // shards) * shards
        self._shard_B = np.arange(self.size) * shards // self.size
        self.writers = list(writers)
        self.tables, self.params = jax.tree.map(self._replicated, (tables, params))
        split = [nnx.split(model) for model in writers]
        predictor_split = [None if predictor is None else nnx.split(predictor) for predictor in predictors]
        self.weights = LoopWeights(tuple(p for _, p in split), tuple(None if p is None else p[1] for p in predictor_split))
        graphs = tuple(None if p is None else p[0] for p in predictor_split)
        self.graphs = LoopGraphs(tuple(g for g, _ in split), graphs, config)
        self.totals = Totals()
        self._read_tokens: list[dict[int, np.ndarray]] = [{} for _ in writers]  # per lane, the prompt as it was read
        self._unwritten: set[int] = set()  # lanes with a prompt and nothing else
        self._programs = Programs(self.partitioner)
        self.slack = CACHE_SLACK
        steps = max(int(step) for step in params.steps)
        self.margin = margin(steps)
        self.tokens = longest(tokens, config.window_bytes, steps)
        self.text_bytes = int(params.max_response_bytes) + 2 * config.window_bytes + len(tables.close_X)
        self.page, self.pass_lanes = page, pass_lanes
        self._parked: list[int] = []  # lanes, the first parked first
        windows = tuple(None if predictor is None else self._window(predictor) for predictor in predictors)
        self.pool = pool or fitting_pool(
            writers,
            (self.weights, windows),
            lanes=self.size,
            slack=self.slack,
            page=page,
            tokens=self.size * page_count(tokens + self.margin, page) * page,
            least=self.tokens,
        )
        self.lanes = self._empty(windows)
        if not self.partitioner.absent:
            self.weights = self._programs.placed(self.loop())
            models: tuple[Any, ...] = (*writers, *predictors)
            for model, own in zip(models, (*self.weights.writers, *self.weights.predictors), strict=True):
                if model is not None:
                    nnx.update(model, own)

    @property
    def compilations(self) -> list[Compilation]:
        """The programs that this engine has used, in the order of their first use."""
        return self._programs.compilations

    @property
    def rows(self) -> int:
        """Rows of a forward pass, all shards together."""
        room = self.graphs.config.room
        assert room is not None
        return room.rows * self.partitioner.num_shards("lanes")

    def _put(self, x: np.ndarray) -> jax.Array:
        return put(x, self.partitioner, ("lanes", *(None,) * (x.ndim - 1)))

    def _replicated(self, x: Any) -> jax.Array:
        return put(x, self.partitioner, (None,) * np.ndim(x))

    def _window(self, predictor: Decoder) -> PredictorState:
        window, dtype = 2 * self.graphs.config.half_window, predictor.embed.dtype
        return new_predictor_state(predictor.config, self.size, window, PREDICTOR_SLACK, dtype, self.partitioner, self.page)

    def _empty(self, windows: tuple[PredictorState | None, ...]) -> Lanes:
        B, S, Y = self.size, self.tokens, self.text_bytes

        def numbers(value: int = 0, shape: tuple[int, ...] = (B,), dtype: Any = np.int32) -> jax.Array:
            return self._put(np.full(shape, value, dtype))

        def of_sides(value: int, *shape: int) -> jax.Array:
            x = np.full((len(self.writers), B, *shape), value, np.int32)
            return put(x, self.partitioner, (None, "lanes", *(None,) * len(shape)))

        def empty(model: Decoder) -> PageCache:
            config, dtype = model.config, model.embed.dtype
            sizes: dict[str, int] = {"slack": self.slack, "pool": self.pool, "page": self.page}
            return new_cache(config, B, S, dtype=dtype, partitioner=self.partitioner, **sizes)

        caches = tuple(empty(model) for model in self.writers)
        shards = self.partitioner.num_shards("lanes")
        config = self.graphs.config
        config = config._replace(
            room=config.room or default_room(min(self.pass_lanes or B, B // shards)),
            predictor_lanes=0 if shards > 1 else max(MIN_PREDICTOR_LANES, B // 4),
        )
        self.graphs = self.graphs._replace(config=config)
        return Lanes(
            text_BY=numbers(0, (B, Y), np.uint8),
            source_BY=numbers(0, (B, Y), np.uint8),
            committed_B=numbers(),
            written_B=numbers(),
            proposed_B=numbers(),
            stop_B=numbers(CONTINUES),
            flip_B=numbers(-1),
            scalars=jax.tree.map(lambda value: numbers(int(value), dtype=value.dtype), LaneScalars().arrays()),
            pending_B=numbers(),
            parked_B=numbers(0, dtype=np.bool_),
            starved_B=numbers(0, dtype=np.bool_),
            tokens=Tokens(of_sides(0, S), of_sides(0, S), of_sides(1), of_sides(1)),
            first_MD=put(np.zeros((len(caches), shards), np.int32), self.partitioner, (None, "lanes")),
            caches=caches,
            predictors=windows,
            counts=jax.tree.map(self._replicated, zero_counts(len(caches))),
        )

    def insert(self, lane: int, state: ResponseState) -> None:
        """Inserts a new or unfinished response into a lane, and its known tokens into the caches. While other lanes are
        parked, the lane is parked, too."""
        rows = {
            "text": _padded(np.frombuffer(state.text, np.uint8), self.text_bytes),
            "source": _padded(np.frombuffer(state.sources, np.uint8), self.text_bytes),
            "tokens": [_padded(np.array(view.tokens, np.int32), self.tokens) for view in state.views],
            "ends": [_padded(np.array([0] * view.prompt + view.ends, np.int32), self.tokens) for view in state.views],
            "prompt": [np.int32(view.prompt) for view in state.views],
            "known": [np.int32(len(view.tokens)) for view in state.views],
            "read": [
                np.int32(0 if v is None else first_token_needed(len(state.views[v].ends), self.graphs.config.half_window))
                for v in self.graphs.config.predictor_reads
            ],
            "committed": np.int32(len(state.text)),
            "scalars": state.scalars.arrays(),
        }
        self.lanes = self._programs.call("insert", insert, (), (self.lanes, np.int32(lane), rows), donate=0)
        self._unwritten.discard(lane)
        waits = self._shard_B[lane] in self._shard_B[self._parked]  # lanes that wait for pages come first
        for m, view in enumerate(state.views):
            self._read_tokens[m].pop(lane, None)
            if not waits:
                shared = self._share(m, lane, view)
                self._fill(m, lane)
                self.totals.shared[m] += shared
                self.totals.prefilled[m] += len(view.tokens) - 1 - shared
        if waits:
            self._park(lane, True)
        elif not state.text:
            self._unwritten.add(lane)

    def _share(self, m: int, lane: int, view: TokenizedView) -> int:
        """Shares what another lane has cached of these tokens, such as the prompt that rollouts have in common.

        Returns the number of tokens; if no page is free, the lane may get fewer, see `PageCache.share`. The cache is bitwise
        equal to that of a prefill: full chunks or all tokens are shared, so that the remaining tokens are prefilled in the
        same chunks. Rings lose the first tokens of a lane, so with sliding-window layers a lane shares all of its tokens,
        before it has written anything, or none. Only lanes of one shard share.
        """
        read_tokens, new_tokens = self._read_tokens[m], np.array(view.tokens[:-1], np.int32)
        sliding = any(window is not None for window in self.writers[m].config.windows)
        best, source = 0, lane
        for other, tokens in read_tokens.items():
            if self._shard_B[other] != self._shard_B[lane]:
                continue
            if sliding and not (other in self._unwritten and np.array_equal(tokens, new_tokens)):
                continue
            size = min(len(tokens), len(new_tokens))
            differs = np.flatnonzero(tokens[:size] != new_tokens[:size])
            same = int(differs[0]) if len(differs) else size
            if same < len(new_tokens) or same > view.prompt - 1:  # a response may be rolled back, a prompt is not
                same = 0 if sliding else min(same, view.prompt - 1) // PREFILL_CHUNK * PREFILL_CHUNK
            if same > best:
                best, source = same, other
        # of an unfinished response, only the prompt stays in the cache unchanged
        read_tokens[lane] = new_tokens[: view.prompt - 1]
        if best:
            args = (self.lanes.caches[m], np.int32(source), np.int32(lane), np.int32(best))
            self._set_cache(m, self._programs.call(f"share {m}", share, (self.partitioner,), args, donate=0))
        return best

    def _fill(self, m: int, lane: int) -> None:
        self._set_cache(m, self._programs.run(self.prefill(m, lane)))

    def _set_cache(self, m: int, cache: PageCache) -> None:
        self.lanes = replace(self.lanes, caches=replace_at(self.lanes.caches, m, cache))

    def free(self, lane: int) -> None:
        """Leaves a lane empty."""
        if lane in self._parked:
            self._parked.remove(lane)
        args = self.lanes.scalars.status, *self._change(lane)
        status, caches = self._programs.call("free", free, (), args, like=(0, 1))
        self.lanes = self._with_tables(caches).with_scalars(status=status)

    def _park(self, lane: int, parks: bool) -> None:
        """Releases the pages of a lane. If `parks`, it waits until it is taken back."""
        if parks:
            self._parked.append(lane)
        args = self.lanes.parked_B, *self._change(lane), np.bool_(parks)
        parked_B, caches = self._programs.call("park", park, (), args, like=(0, 1))
        self.lanes = replace(self._with_tables(caches), parked_B=parked_B)

    def _change(self, lane: int) -> tuple[Any, Any]:
        """Forgets what a lane has read. Returns the caches without keys and values, and the number of the lane, for a
        program that releases its pages."""
        for tokens in self._read_tokens:
            tokens.pop(lane, None)
        self._unwritten.discard(lane)
        return without_pages(self.lanes).caches, np.int32(lane)

    def _with_tables(self, caches: tuple[PageCache, ...]) -> Lanes:
        """The lanes with these caches, which keep the present keys and values."""
        kept = zip(self.lanes.caches, caches, strict=True)
        return replace(self.lanes, caches=tuple(new.with_pages(old) for old, new in kept))

    def run(self, *, harvest: int = 1) -> np.ndarray:
        """Runs until `harvest` lanes have ended or the rounds of a dispatch are used up. Returns the lanes' status [B]."""
        self._unwritten.clear()
        self._take_back()
        while True:
            self.lanes = self._programs.run(self.loop(harvest))
            seen = self._report()
            self._add(seen.counts)
            ended_B = seen.status_B >= DONE
            if ended_B.sum() >= harvest or not (seen.status_B == RUNNING).any() or not seen.starved_B.any():
                return np.asarray(seen.status_B)
            self._make_room(seen)

    def _report(self) -> Report:
        seen: Report = jax.device_get(self._programs.call("report", report, (), (without_pages(self.lanes),)))
        self.totals.host_syncs += 1
        return seen

    def _make_room(self, seen: Report) -> None:
        ended, parks = to_release(seen, self._parked, self._shard_B)
        for lane in ended:
            self._park(lane, False)
        for lane in parks:
            self._park(lane, True)

    def _take_back(self) -> None:
        if not self._parked:
            return
        for lane in to_take_back(self._report(), self._parked, self._shard_B, self.margin, self.page):
            self._parked.remove(lane)
            self._park(lane, False)
            for m in range(len(self.writers)):
                self._fill(m, lane)

    def _add(self, counts: Any) -> None:
        for name in ("passes", "sampled", "rows", "caught_up", "predictor_passes", "bridged"):
            values = np.asarray(getattr(counts, f"{name}_M"), np.float64)
            getattr(self.totals, name)[: len(values)] += values
        self.totals.rounds += float(counts.rounds)

    def extract(self, lanes: Sequence[int]) -> list[ResponseState]:
        """The responses in these lanes, each as of its last commit."""
        if not lanes:
            return []
        size = 1 << (len(lanes) - 1).bit_length()  # so that few sizes are compiled for
        index = np.pad(np.array(lanes, np.int32), (0, size - len(lanes)), mode="edge")
        extracted = self._programs.call(f"extract {size}", extract, (), (without_pages(self.lanes), index))
        scalars_X, committed_X, text, sources, tokens = jax.device_get(extracted)
        self.totals.host_syncs += 1
        states = []
        for row in range(len(lanes)):
            committed = int(committed_X[row])
            scalars = scalars_X.of_row(row)
            views = []
            for m in range(len(self.writers)):
                ids, ends = tokens.ids_MBS[m, row], tokens.ends_MBS[m, row]
                first, known = int(tokens.prompt_MB[m, row]), int(tokens.known_MB[m, row])
                kept = int((ends[:known] <= committed).sum())
                if m == scalars.speaker and scalars.status == RUNNING:  # the proposal will be sampled again
                    again = known - kept
                    scalars = replace(scalars, generated=replace_at(scalars.generated, m, scalars.generated[m] - again))
                views.append(TokenizedView(ids[:kept].tolist(), first, ends[first:kept].tolist()))
            written = text[row, :committed].tobytes(), sources[row, :committed].tobytes()
            states.append(ResponseState(tuple(views), scalars, *written))
        return states

    def release(self, m: int) -> Decoder:
        """Returns model m with its weights in place, and frees the caches and the other models. The engine cannot be used
        afterwards."""
        kept = {id(x) for x in jax.tree.leaves(self.weights.writers[m])}
        for x in jax.tree.leaves((self.weights, self.lanes)):
            if id(x) not in kept and not x.is_deleted():
                x.delete()
        return self.writers[m]

    def loop(self, harvest: int = 1) -> Program:
        """The program of the decode loop. Its result is the new lanes. harvest: see `run`."""
        params = replace(self.params, harvest=self._replicated(np.int32(harvest)))
        args = (self.weights, self.tables, params, self.lanes)
        return self._programs.of("loop", run_rounds, (self.graphs,), args, donate=3, chooses_layouts=True)

    def prefill(self, m: int, lane: int = 0) -> Program:
        """The program that reads the known tokens of a lane. Its result is the cache of side m."""
        static, tokens = (self.graphs.writers[m], m), self.lanes.tokens
        args = self.weights.writers[m], tokens.ids_MBS, tokens.known_MB, self.lanes.caches[m], np.int32(lane)
        return self._programs.of(f"prefill {m}", prefill, static, args, donate=3)


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, (0, size - len(x)))
