"""The training loop: steps, evaluation, checkpoints and metrics."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.utils import to_shape_dtype_struct

from tessy_jax.config import Optimizer, Training
from tessy_jax.errors import ConfigError
from tessy_jax.sharding import Partitioner, put
from tessy_jax.train.checkpoint import Checkpoints
from tessy_jax.train.data import BatchPlan
from tessy_jax.train.optimizer import build, schedule
from tessy_jax.train.pack import Batch, TargetKind
from tessy_jax.train.step import LossSums, State, jit_step, loss_sums

Index = tuple[slice, ...]

RECENT = 20  # losses in the running mean that defines a spike


class TrainingError(RuntimeError):
    """The loss is not finite, or spikes. The message names the last good checkpoint."""


@dataclass(kw_only=True)
class Trainer:
    """Trains some of a model's parameters, which it owns and overwrites; the others are `frozen`.

    The state after a step depends on the state before it and the step's number alone, so that an interrupted run ends with
    the same parameters as an uninterrupted one.

    plan: the batches of training. weights: the loss weight of each kind of target; the first, of NO_TARGET, is 0.
    evaluation: the batches of the evaluation loss. write: receives the metrics of all steps so far, as JSON lines.
    listeners: each receives the metrics of a step, and the number of steps. ideal_seconds: the seconds that a step over
    documents of these lengths takes at the devices' peak; None where the peak is unknown. extra_metrics: further metrics of
    an evaluation, given the parameters. best: the metric whose lowest value is the best. patience: the number of evaluations
    without an improvement that ends the training (0: never). always_save: steps that are always saved. lines: the metrics
    so far, one JSON object a step. scores: the value of `best` at each evaluated step.
    """

    training: Training
    optimizer_config: Optimizer
    graph: Any
    frozen: Any
    partitioner: Partitioner
    plan: BatchPlan
    weights: Sequence[float]
    evaluation: BatchPlan | None
    checkpoints: Checkpoints
    write: Callable[[str], None]
    ideal_seconds: Callable[[np.ndarray], float | None] = lambda lengths: None
    extra_metrics: Callable[[Any], dict[str, float]] = lambda params: {}
    best: str = "evaluation_loss"
    patience: int = 0
    always_save: Collection[int] = ()
    listeners: list[Callable[[dict[str, Any], int], None]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        training = self.training
        self.steps = training.steps or self.plan.steps(training.epochs)
        self.optimizer = build(self.optimizer_config, self.steps)
        self.rates = schedule(self.optimizer_config, self.steps)
        self.fingerprint = self.plan.data.fingerprint()
        self.lengths = self.plan.data.lengths
        self.weights_C = put(np.array(self.weights, np.float32), self.partitioner, (None,))

    def start(self, params: Any) -> State:
        """The initial state, or that of the newest checkpoint; restores its metrics as well.

        Raises:
            CheckpointError: the checkpoint does not fit the model, or cannot be read.
            ConfigError: the checkpoint was trained on other data.
        """
        optimizer = jax.tree.map(self._placed, self.optimizer.init(params))
        state = State(params, optimizer, put(np.int32(0), self.partitioner, ()))
        self._compile(state)
        latest = self.checkpoints.latest()
        if latest is None:
            return state
        notes = self.checkpoints.notes(latest)
        if notes["data"] != self.fingerprint:
            raise ConfigError(
                f"{self.checkpoints.path(latest)}: was trained on other data, which have changed since this run began; name "
                "another output, or bring them back"
            )
        self.lines = list(notes["metrics"])
        metrics = [json.loads(line) for line in self.lines]
        self.scores = {line["step"]: line[self.best] for line in metrics if self.best in line}
        self.write("".join(line + "\n" for line in self.lines))  # a kill may have come between checkpoint and metrics
        like = jax.tree.map(to_shape_dtype_struct, state)
        for x in jax.tree.leaves(state):  # so that memory holds parameters and optimizer once
            x.delete()
        restored: State = self.checkpoints.restore(latest, like)
        return restored

    def _compile(self, state: State) -> None:
        """Jits the step and the evaluation."""
        read, dtype = self.partitioner.sharding(()), jnp.dtype(self.training.dtype)
        self._step = jit_step(self.graph, self.optimizer, self.training, state, read)
        self._sums = jax.jit(partial(loss_sums, self.graph, dtype=dtype, remat="none"), out_shardings=read)

    def run(self, state: State) -> State:
        """Runs the remaining steps; returns the last state.

        Raises:
            TrainingError: a loss is not finite, or spikes.
        """
        training = self.training
        done = int(state.step)
        recent = deque((json.loads(line)["loss"] for line in self.lines[-RECENT:]), maxlen=RECENT)
        plans = self.plan.from_step(done)
        with _stop_requested() as stop_requested:
            over = self.over(done)
            batch, lengths = (None, None) if over else self._next(plans)
            while not over:
                started, number = time.perf_counter(), done + 1
                last = number == self.steps
                state, sums, norm = self._step(state, self.frozen, batch, self.weights_C)
                lengths_done = lengths
                if not last:
                    batch, lengths = self._next(plans)  # while the devices work
                line = self._line(number, sums, float(norm), time.perf_counter() - started, lengths_done)
                self._check(line, recent)
                evaluates = self.evaluation is not None and (last or _due(number, training.eval_every))
                if evaluates:
                    line |= self.evaluate(state)
                    self.scores[number] = line[self.best]
                self.lines.append(json.dumps(line))
                for listener in self.listeners:
                    listener(line, self.steps)
                done, over = number, self.over(number)
                stops = stop_requested(number)
                best = evaluates and training.keep_best and self.best_step() == number
                if over or stops or best or number in self.always_save or _due(number, training.save_every):
                    self._save(number, state, line.get(self.best))
                if stops:
                    break
        self.checkpoints.wait()
        return state

    def over(self, step: int) -> bool:
        """Whether the training ends after a step."""
        scores = list(self.scores.values())
        waited = len(scores) - 1 - scores.index(min(scores)) if scores else 0
        return step >= self.steps or bool(self.patience and waited >= self.patience)

    def best_step(self, among: Collection[int] | None = None) -> int | None:
        """The step with the lowest score, the first of equals; among these steps, or all."""
        scores = {step: score for step, score in self.scores.items() if among is None or step in among}
        return min(scores, key=lambda step: scores[step]) if scores else None

    def at(self, step: int | None, name: str) -> float | None:
        """A metric of a step; None if it has none."""
        return next((line.get(name) for line in map(json.loads, self.lines) if line["step"] == step), None)

    def last(self, name: str) -> float | None:
        """A metric of the newest step that has it."""
        return next((line[name] for line in map(json.loads, reversed(self.lines)) if name in line), None)

    def evaluate(self, state: State) -> dict[str, float]:
        """The metrics of an evaluation: `evaluation_loss`, the weighted mean loss of its targets, and `extra_metrics`."""
        assert self.evaluation is not None
        loss = weight = 0.0
        for rows in self.evaluation.epoch(0):
            batch = jax.tree.map(lambda x: x[0], self._placed_rows(self.evaluation, rows, len(rows)))
            sums: LossSums = self._sums(state.params, self.frozen, batch, self.weights_C)
            loss, weight = loss + float(sums.loss), weight + float(sums.weight)
        return {"evaluation_loss": loss / max(weight, 1e-9), **self.extra_metrics(state.params)}

    def _next(self, plans: Iterator[list[Sequence[int]]]) -> tuple[Batch, np.ndarray]:
        """The next batch on the devices, and the lengths of its documents."""
        rows = next(plans)
        lengths = self.lengths[[i for row in rows for i in row]]
        return self._placed_rows(self.plan, rows, self.training.micro_batch_size or len(rows)), lengths

    def _line(self, number: int, sums: LossSums, norm: float, seconds: float, lengths: np.ndarray | None) -> dict[str, Any]:
        """A step's line of metrics.jsonl. loss: weighted; loss_cap, loss_sty: unweighted, of the targets that the teacher
        and the student wrote; tokens: targets; tokens_per_second: of all tokens without padding."""
        loss_C, tokens_C = np.asarray(sums.loss_C, np.float64), np.asarray(sums.tokens_C, np.float64)
        assert lengths is not None
        ideal = self.ideal_seconds(lengths)

        def mean(kind: int) -> float | None:
            return float(loss_C[kind] / tokens_C[kind]) if tokens_C[kind] else None

        return {
            "step": number,
            "loss": float(sums.loss) / max(float(sums.weight), 1e-9),
            "loss_cap": mean(TargetKind.TEACHER),
            "loss_sty": mean(TargetKind.STUDENT),
            "tokens": int(tokens_C.sum()),
            "tokens_by": {name: int(n) for name, n in zip(self.plan.data.names[1:], tokens_C[1:], strict=True)},
            "lr": float(self.rates(number - 1)),
            "grad_norm": norm,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(float(lengths.sum()) / seconds, 1),
            "mfu": None if ideal is None else round(ideal / seconds, 4),
        }

    def _check(self, line: dict[str, Any], recent: deque[float]) -> None:
        loss, norm = line["loss"], line["grad_norm"]
        spike = self.training.loss_spike_factor
        usual = sum(recent) / len(recent) if recent else math.inf
        if math.isfinite(loss) and math.isfinite(norm) and not (spike and len(recent) == RECENT and loss > spike * usual):
            recent.append(loss)
            return
        self.checkpoints.wait()
        last = self.checkpoints.latest()
        place = (
            "there is no checkpoint yet" if last is None else f"the last good checkpoint is {self.checkpoints.path(last)}"
        )
        what = f"{loss:.4g}, the last {len(recent)} were {usual:.4g} on average" if math.isfinite(loss) else f"{loss}"
        what = what if math.isfinite(norm) else f"{loss:.4g}, the norm of its gradient {norm}"
        self.write("".join(text + "\n" for text in [*self.lines, json.dumps(line)]))
        raise TrainingError(
            f"step {line['step']}: the loss is {what}; {place}; lower optimizer.learning_rate or look at the data"
        )

    def _save(self, number: int, state: State, score: float | None) -> None:
        """score: of this state; None if it was not evaluated."""
        self.checkpoints.save(number, state, {"metrics": self.lines, "data": self.fingerprint}, score)
        self.write("".join(line + "\n" for line in self.lines))

    def _placed(self, x: Any) -> jax.Array:
        """Replicates the optimizer's arrays that are not sharded like parameters."""
        if self.partitioner.mesh is None or getattr(x.sharding, "mesh", None) == self.partitioner.mesh:
            return x
        return put(np.asarray(x), self.partitioner, (None,) * x.ndim)

    def _placed_rows(self, plan: BatchPlan, rows: Sequence[Sequence[int]], at_once: int) -> Batch:
        """Rows of example numbers as micro-batches [number, B, T] on the devices; every process assembles its own rows."""
        shape = (len(rows) // at_once, at_once, plan.max_seq_len)
        sharding = self.partitioner.sharding((None, "lanes", None))
        if sharding is None:
            return jax.tree.map(lambda x: jnp.asarray(x.reshape(shape)), plan.assembled(rows))
        parts: dict[tuple[int, int], Batch] = {}

        def part(lanes: slice) -> Batch:
            first, end, _ = lanes.indices(at_once)
            if (first, end) not in parts:
                own = [rows[a * at_once + b] for a in range(shape[0]) for b in range(first, end)]
                parts[first, end] = jax.tree.map(
                    lambda x: x.reshape(shape[0], end - first, plan.max_seq_len), plan.assembled(own)
                )
            return parts[first, end]

        def array(name: str) -> jax.Array:
            def own(index: Index | None) -> Any:
                assert index is not None
                return getattr(part(index[1]), name)

            return jax.make_array_from_callback(shape, sharding, own)

        return Batch(array("tokens_BT"), array("segments_BT"), array("targets_BT"), array("kinds_BT"))


def _due(number: int, every: int) -> bool:
    return bool(every) and number % every == 0


@contextmanager
def _stop_requested() -> Iterator[Callable[[int], bool]]:
    """A function that returns, after each step, whether SIGTERM has arrived, which schedulers send before they preempt a
    machine. Several processes agree on the step after which they stop."""
    if jax.process_count() > 1:  # jax.distributed has a handler of its own
        yield multihost_utils.reached_preemption_sync_point
        return
    flags: list[bool] = []

    def note(*_: Any) -> None:
        flags.append(True)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda number: bool(flags)
    finally:
        signal.signal(signal.SIGTERM, before)
