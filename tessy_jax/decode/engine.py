"""The host side of the loop: inserts responses into lanes, runs the compiled program, and extracts ended responses.

It knows arrays and numbers only. Between two visits of the host nothing but the report of `run` crosses from the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from tessy_jax import compile_cache
from tessy_jax.decode.cache import KVCache, grow, new_cache
from tessy_jax.decode.context import LoopGraphs, LoopWeights
from tessy_jax.decode.generate import MIN_LANES, bucket, buckets
from tessy_jax.decode.lane_ops import extract, free, insert, report, without_caches
from tessy_jax.decode.loop import run_rounds, zero_counts
from tessy_jax.decode.predictor_window import first_token_needed, new_predictor_state
from tessy_jax.decode.prefill import PREFILL_CHUNK, copy_prefix, prefill_lane, prefill_lanes
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
from tessy_jax.models.transformer import Decoder
from tessy_jax.program import Program
from tessy_jax.sharding import put

MAX_ROLLBACK = 256  # largest rollback of a lane in tokens; sliding-window layers keep this many more

CACHE_SLACK = max(PREFILL_CHUNK, MAX_ROLLBACK)
"""Tokens that sliding-window layers keep in addition to their window; see `cache`."""

MIN_CAPACITY = 256
"""Smallest capacity of the caches, in tokens per lane. The loop compiles again after each growth, and attention to so few
tokens is cheap."""

PREDICTOR_SLACK = 64  # tokens that predictors keep beyond their window; after a deeper rollback, they read the window again

MIN_PREDICTOR_LANES = 4  # smallest `LoopConfig.predictor_lanes`, unless lanes are sharded

MIN_PACKED_TOKENS = 32  # smallest capacity, in tokens, of a catch-up pass of all lanes; so few cost hardly more than one


_COMPILED: dict[Any, tuple[Any, int]] = {}  # compiled programs and the bytes of their temporary arrays


def forget_programs() -> None:
    """Frees the compiled programs that engines of this process have used, as `jax.clear_caches` does for functions."""
    _COMPILED.clear()


def cache_sizes(tokens: int, steps: int) -> list[int]:
    """The capacities of caches that grow to at least `tokens` tokens per lane. steps: tokens of the longest proposal."""
    return buckets(tokens, bucket(max(MIN_CAPACITY, 2 * margin(steps))))


def margin(steps: int) -> int:
    """Tokens that a lane must have free before a proposal of at most `steps` tokens."""
    return steps + 2


class Engine:
    """Lanes on a mesh, with the writers and their boundary predictors.

    writers: student and teacher, or one of them alone. predictors: their boundary predictors, or None. tokens: the most of
    prompt and response in one vocabulary. capacity: tokens per lane that the caches hold at first, at least
    `MIN_CAPACITY`; they grow. The engine sets `capacity` and `packed_tokens` of the configuration.

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
        capacity: int = 0,
    ) -> None:
        self.partitioner = writers[0].partitioner
        shards = self.partitioner.num_shards("lanes")
        self.size = -(-max(lanes, MIN_LANES) // shards) * shards
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
        self.compilations: list[Compilation] = []
        self.slack = CACHE_SLACK
        steps = max(int(step) for step in params.steps)
        self.margin = margin(steps)
        # the last window may exceed a limit, and one more window may be written after it
        self.tokens = tokens + 2 * config.window_bytes + self.margin
        self.room = int(params.max_response_bytes) + 2 * config.window_bytes + len(tables.close_X)
        self._capacity = cache_sizes(capacity, steps)[-1]
        self.lanes = self._empty(predictors)

    @property
    def capacity(self) -> int:
        """The current capacity of the caches, in tokens per lane."""
        return self._capacity

    def _put(self, x: np.ndarray) -> jax.Array:
        return put(x, self.partitioner, ("lanes", *(None,) * (x.ndim - 1)))

    def _replicated(self, x: Any) -> jax.Array:
        return put(x, self.partitioner, (None,) * np.ndim(x))

    def _empty(self, predictors: Sequence[Decoder | None]) -> Lanes:
        B, S, Y = self.size, self.tokens, self.room

        def numbers(value: int = 0, shape: tuple[int, ...] = (B,), dtype: Any = np.int32) -> jax.Array:
            return self._put(np.full(shape, value, dtype))

        def of_sides(value: int, *shape: int) -> jax.Array:
            x = np.full((len(self.writers), B, *shape), value, np.int32)
            return put(x, self.partitioner, (None, "lanes", *(None,) * len(shape)))

        def empty(model: Decoder) -> KVCache:
            config, dtype = model.config, model.embed.dtype
            return new_cache(config, B, self._capacity, slack=self.slack, dtype=dtype, partitioner=self.partitioner)

        caches = tuple(empty(model) for model in self.writers)
        windows: list[PredictorState | None] = []
        for predictor in predictors:
            half = self.graphs.config.half_window
            windows.append(
                None
                if predictor is None
                else new_predictor_state(
                    predictor.config, B, 2 * half, PREDICTOR_SLACK, predictor.embed.dtype, self.partitioner
                )
            )
        sharded = self.partitioner.num_shards("lanes") > 1
        config = self.graphs.config._replace(
            capacity=self._capacity,
            packed_tokens=0 if sharded else max(MIN_PACKED_TOKENS, 4 * B),
            predictor_lanes=0 if sharded else max(MIN_PREDICTOR_LANES, B // 4),
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
            tokens=Tokens(of_sides(0, S), of_sides(0, S), of_sides(1), of_sides(1)),
            caches=caches,
            predictors=tuple(windows),
            counts=jax.tree.map(self._replicated, zero_counts(len(caches))),
        )

    def insert(self, lane: int, state: ResponseState) -> None:
        """Inserts a new or unfinished response into a lane, and its known tokens into the caches."""
        longest = max(len(view.tokens) for view in state.views)
        self._reserve(longest + self.margin)
        rows = {
            "text": _padded(np.frombuffer(state.text, np.uint8), self.room),
            "source": _padded(np.frombuffer(state.sources, np.uint8), self.room),
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
        self.lanes = self._run(self._program("insert", insert, (), (self.lanes, np.int32(lane), rows), donate=0))
        self._unwritten.discard(lane)
        for m, view in enumerate(state.views):
            shared = self._share(m, lane, view)
            self._fill(m, lane)
            self.totals.shared[m] += shared
            self.totals.prefilled[m] += len(view.tokens) - 1 - shared
        if not state.text:
            self._unwritten.add(lane)

    def _share(self, m: int, lane: int, view: TokenizedView) -> int:
        """Copies cache entries of these tokens from another lane, such as the prompt that rollouts have in common.

        Returns the number of tokens copied. The copy is bitwise equal to a prefill: it covers full chunks or all tokens, so
        that the remaining tokens are prefilled in the same chunks. A sliding layer overwrites the beginning of its lane, so
        such a lane shares all of its tokens, before it has written anything, or none.
        """
        if self.partitioner.num_shards("lanes") > 1:
            return 0
        read_tokens, new_tokens = self._read_tokens[m], np.array(view.tokens[:-1], np.int32)
        sliding = any(window is not None for window in self.writers[m].config.windows)
        best, source = 0, lane
        for other, tokens in read_tokens.items():
            if sliding and not (other in self._unwritten and np.array_equal(tokens, new_tokens)):
                continue
            size = min(len(tokens), len(new_tokens))
            differs = np.flatnonzero(tokens[:size] != new_tokens[:size])
            same = int(differs[0]) if len(differs) else size
            same = same if same == len(new_tokens) else same // PREFILL_CHUNK * PREFILL_CHUNK
            if same > best:
                best, source = same, other
        # of an unfinished response, only the prompt stays in the cache unchanged
        read_tokens[lane] = new_tokens[: view.prompt - 1]
        if best:
            args = (self.lanes.caches[m], np.int32(source), np.int32(lane), np.int32(best))
            self._set_cache(m, self._run(self._program(f"share {m}", copy_prefix, (), args, donate=0)))
        return best

    def _fill(self, m: int, lane: int) -> None:
        self._set_cache(m, self._run(self.prefill(m, lane)))

    def _set_cache(self, m: int, cache: KVCache) -> None:
        self.lanes = replace(self.lanes, caches=replace_at(self.lanes.caches, m, cache))

    def free(self, lane: int) -> None:
        """Leaves a lane empty."""
        status = self._run(self._program("free", free, (), (self.lanes.scalars.status, np.int32(lane)), donate=0))
        self.lanes = self.lanes.with_scalars(status=status)

    def run(self, *, harvest: int = 1) -> np.ndarray:
        """Runs until `harvest` lanes have ended or the rounds of a dispatch are used up. Returns the lanes' status [B]."""
        self._unwritten.clear()
        while True:
            self.lanes = self._run(self.loop(harvest))
            reported = self._run(self._program("report", report, (), (without_caches(self.lanes),)))
            status, counts, needed = jax.device_get(reported)
            self._add(counts)
            ended = (status >= DONE).sum() >= harvest or not (status == RUNNING).any()
            if int(needed) + self.margin > self._capacity and not ended:
                self._reserve(int(needed) + self.margin)
                continue
            return status

    def _add(self, counts: Any) -> None:
        self.totals.host_syncs += 1
        for name in ("passes", "sampled", "chunked_passes", "caught_up", "predictor_passes", "bridged"):
            values = np.asarray(getattr(counts, f"{name}_M"), np.float64)
            getattr(self.totals, name)[: len(values)] += values
        self.totals.rounds += float(counts.rounds)

    def extract(self, lanes: Sequence[int]) -> list[ResponseState]:
        """The responses in these lanes, each as of its last commit."""
        if not lanes:
            return []
        size = 1 << (len(lanes) - 1).bit_length()  # so that few sizes are compiled for
        index = np.pad(np.array(lanes, np.int32), (0, size - len(lanes)), mode="edge")
        extracted = self._run(self._program(f"extract {size}", extract, (), (without_caches(self.lanes), index)))
        scalars_X, committed_X, text, sources, tokens = jax.device_get(extracted)
        self.totals.host_syncs += 1
        states = []
        for row in range(len(lanes)):
            committed = int(committed_X[row])
            scalars = _scalars_of(scalars_X, row)
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

    def _reserve(self, tokens: int) -> None:
        """Grows the caches to at least `tokens` tokens per lane."""
        if tokens <= self._capacity:
            return
        self._capacity = bucket(tokens)
        for m, model in enumerate(self.writers):
            cache, static = self.lanes.caches[m], (model.config, self._capacity, self.slack)
            self._set_cache(m, self._run(self._program(f"grow {m}", grow, static, (cache,), like=0)))
        self.graphs = self.graphs._replace(config=self.graphs.config._replace(capacity=self._capacity))

    def loop(self, harvest: int = 1) -> Program:
        """The program of the decode loop. Its result is the new lanes. harvest: see `run`."""
        params = replace(self.params, harvest=self._replicated(np.int32(harvest)))
        args = (self.weights, self.tables, params, self.lanes)
        return self._program("loop", run_rounds, (self.graphs,), args, donate=3)

    def prefill(self, m: int, lane: int = 0) -> Program:
        """The program that reads the known tokens of a lane, or of all lanes if they are sharded. Its result is the cache of
        side m."""
        static, tokens = (self.graphs.writers[m], m), self.lanes.tokens
        args = self.weights.writers[m], tokens.ids_MBS, tokens.known_MB, self.lanes.caches[m]
        if self.partitioner.num_shards("lanes") == 1:
            return self._program(f"prefill {m}", prefill_lane, static, (*args, np.int32(lane)), donate=3)
        return self._program(f"prefill {m}", prefill_lanes, static, args, donate=3)

    def _program(
        self,
        name: str,
        function: Callable[..., Any],
        static: tuple[Any, ...],
        args: tuple[Any, ...],
        *,
        donate: int | None = None,
        like: int | None = None,
    ) -> Program:
        """The program function(*static, *args). donate: index of the argument that the result overwrites. like: index of the
        argument whose sharding the result has (default: donate). Without either the result is replicated."""
        like = donate if like is None else like
        placed: Any = self.partitioner.sharding(())
        if like is not None and placed is not None:
            placed = jax.tree.map(lambda x: x.sharding, args[like])
        jitted = jax.jit(lambda *given: function(*static, *given), donate_argnums=donate, out_shardings=placed)
        leaves, structure = jax.tree.flatten(args)
        shapes = tuple((np.shape(x), np.dtype(x.dtype), getattr(x, "sharding", None)) for x in leaves)
        return Program(name, jitted, args, key=(function, static, structure, shapes))

    def _run(self, program: Program) -> Any:
        """Runs a program. Equal programs are compiled once per process."""
        traced = seconds = 0.0
        if program.key not in _COMPILED:
            start = time.perf_counter()
            lowered = program.jitted.lower(*program.args)
            at_lowered, hits = time.perf_counter(), compile_cache.hits()
            compiled = lowered.compile()
            traced = at_lowered - start
            seconds = time.perf_counter() - at_lowered if compile_cache.hits() == hits else 0.0
            _COMPILED[program.key] = compiled, int(getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0))
        compiled, temporary = _COMPILED[program.key]
        if not any(c.name == program.name and c.capacity == self._capacity for c in self.compilations):
            self.compilations.append(Compilation(program.name, self._capacity, traced, seconds, temporary))
        return compiled(*program.args)


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, (0, size - len(x)))


def _scalars_of(scalars: LaneScalars, row: int) -> LaneScalars:
    numbers: LaneScalars = jax.tree.map(lambda x: int(x[row]), scalars)
    return numbers
