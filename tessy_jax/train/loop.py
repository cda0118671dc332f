"""The training loop: steps, evaluation, checkpoints, and what is told about them."""

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
from tessy_jax.train.examples import CAPABILITY, STYLE
from tessy_jax.train.optimizer import build, schedule
from tessy_jax.train.pack import Batch
from tessy_jax.train.step import LossSums, State, loss_sums, train_step

Index = tuple[slice, ...]

RECENT = 20  # losses whose mean a spike is measured by


class TrainingError(RuntimeError):
    """A loss that is no number, or a spike: the run has stopped, and says where to go on from."""


@dataclass
class Trainer:
    """Trains a part of a model's parameters, which it then owns and overwrites; the others are `frozen`.

    weights: how much a target of each kind counts; the first is no target's. evaluation: what the evaluation loss is of.
    busy: seconds of the devices' best that a step over documents of these lengths is worth; None where not known. measure:
    more figures of an evaluation, given the parameters. best: the figure whose lowest value is the best, and scores: its
    value at each step that was evaluated. patience: so many evaluations in a row without a better one end the training (0:
    never). keeps: steps after which there is a checkpoint in any case.
    write: gets the metrics of all steps so far. tell: gets those of each step, and the number of steps. The state after a
    step follows from the step before it and the step's number alone, so that a run that was interrupted ends as one that was
    not.
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
    on_step: Callable[[dict[str, Any], int], None]
    ideal_seconds: Callable[[np.ndarray], float | None] = lambda lengths: None
    extra_metrics: Callable[[Any], dict[str, float]] = lambda params: {}
    best: str = "evaluation_loss"
    patience: int = 0
    always_save: Collection[int] = ()
    lines: list[str] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        training = self.training
        self.steps = training.steps or self.plan.steps(training.epochs)
        self.optimizer = build(self.optimizer_config, self.steps)
        self.rates = schedule(self.optimizer_config, self.steps)
        self.fingerprint = self.plan.data.fingerprint()
        self.lengths = self.plan.data.lengths
        self.weights_K = put(np.array(self.weights, np.float32), self.partitioner, (None,))

    def start(self, params: Any) -> State:
        """The state before the first step, or that of the newest checkpoint, with its metrics.

        Raises:
            CheckpointError: the checkpoint does not fit, or cannot be read.
            ConfigError: it was trained on other data.
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
        found = [json.loads(line) for line in self.lines]
        self.scores = {line["step"]: line[self.best] for line in found if self.best in line}
        self.write("".join(line + "\n" for line in self.lines))  # a kill may have come between checkpoint and metrics
        like = jax.tree.map(to_shape_dtype_struct, state)
        for x in jax.tree.leaves(state):  # so that parameters and optimizer are held once only
            x.delete()
        restored: State = self.checkpoints.restore(latest, like)
        return restored

    def _compile(self, state: State) -> None:
        """The step and the evaluation, whose results lie where the state lies, and on every device what is read."""
        dtype, remat = jnp.dtype(self.training.dtype), self.training.remat
        step = partial(train_step, self.graph, self.optimizer, dtype, remat)
        read = self.partitioner.sharding(())
        places = None if read is None else (jax.tree.map(lambda x: x.sharding, state), read, read)
        self._step = jax.jit(step, donate_argnums=0, out_shardings=places)
        self._sums = jax.jit(partial(loss_sums, self.graph, dtype=dtype, remat="none"), out_shardings=read)

    def run(self, state: State) -> State:
        """All steps that are left.

        Raises:
            TrainingError: a loss is no number, or spikes.
        """
        training = self.training
        done = int(state.step)
        recent = deque((json.loads(line)["loss"] for line in self.lines[-RECENT:]), maxlen=RECENT)
        plans = self.plan.from_step(done)
        with _stop_requested() as told_to_stop:
            over = self.over(done)
            batch, lengths = (None, None) if over else self._next(plans)
            while not over:
                begun, number = time.perf_counter(), done + 1
                last = number == self.steps
                state, found, norm = self._step(state, self.frozen, batch, self.weights_K)
                read = lengths
                if not last:
                    batch, lengths = self._next(plans)  # while the devices work
                line = self._line(number, found, float(norm), time.perf_counter() - begun, read)
                self._check(line, recent)
                evaluates = self.evaluation is not None and (last or _due(number, training.eval_every))
                if evaluates:
                    line |= self.evaluate(state)
                    self.scores[number] = line[self.best]
                self.lines.append(json.dumps(line))
                self.on_step(line, self.steps)
                done, over = number, self.over(number)
                stops = told_to_stop(number)
                best = evaluates and training.keep_best and self.best_step() == number
                if over or stops or best or number in self.always_save or _due(number, training.save_every):
                    self._save(number, state, line.get(self.best))
                if stops:
                    break
        self.checkpoints.wait()
        return state

    def over(self, step: int) -> bool:
        """Whether there is nothing left to do after a step."""
        scores = list(self.scores.values())
        waited = len(scores) - 1 - scores.index(min(scores)) if scores else 0
        return step >= self.steps or bool(self.patience and waited >= self.patience)

    def best_step(self, among: Collection[int] | None = None) -> int | None:
        """The step whose evaluation was the best so far, the first of several; among these steps, or all."""
        found = {step: score for step, score in self.scores.items() if among is None or step in among}
        return min(found, key=lambda step: found[step]) if found else None

    def at(self, step: int | None, name: str) -> float | None:
        """A metric of a step; None where it has none."""
        return next((line.get(name) for line in map(json.loads, self.lines) if line["step"] == step), None)

    def last(self, name: str) -> float | None:
        """A metric of the newest step that has it."""
        return next((line[name] for line in map(json.loads, reversed(self.lines)) if name in line), None)

    def evaluate(self, state: State) -> dict[str, float]:
        """evaluation_loss: the mean loss of the evaluation's targets, with the weights of their kinds; and more figures."""
        assert self.evaluation is not None
        loss = weight = 0.0
        for rows in self.evaluation.epoch(0):
            batch = jax.tree.map(lambda x: x[0], self._placed_rows(self.evaluation, rows, len(rows)))
            found: LossSums = self._sums(state.params, self.frozen, batch, self.weights_K)
            loss, weight = loss + float(found.loss), weight + float(found.weight)
        return {"evaluation_loss": loss / max(weight, 1e-9), **self.extra_metrics(state.params)}

    def _next(self, plans: Iterator[list[Sequence[int]]]) -> tuple[Batch, np.ndarray]:
        """The next batch on the devices, and the lengths of its documents."""
        rows = next(plans)
        lengths = self.lengths[[i for row in rows for i in row]]
        return self._placed_rows(self.plan, rows, self.training.micro_batch_size or len(rows)), lengths

    def _line(self, number: int, found: LossSums, norm: float, seconds: float, lengths: np.ndarray | None) -> dict[str, Any]:
        """What metrics.jsonl says of a step. loss: with weights; loss_cap, loss_sty: without, of what the teacher and the
        student wrote; tokens: targets; tokens_per_second: of all that was read."""
        loss_K, tokens_K = np.asarray(found.loss_K, np.float64), np.asarray(found.tokens_K, np.float64)
        assert lengths is not None
        ideal = self.ideal_seconds(lengths)

        def mean(kind: int) -> float | None:
            return float(loss_K[kind] / tokens_K[kind]) if tokens_K[kind] else None

        return {
            "step": number,
            "loss": float(found.loss) / max(float(found.weight), 1e-9),
            "loss_cap": mean(CAPABILITY),
            "loss_sty": mean(STYLE),
            "tokens": int(tokens_K.sum()),
            "tokens_by": {name: int(n) for name, n in zip(self.plan.data.names[1:], tokens_K[1:], strict=True)},
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
        self.write("".join(told + "\n" for told in [*self.lines, json.dumps(line)]))
        raise TrainingError(
            f"step {line['step']}: the loss is {what}; {place}; lower optimizer.learning_rate or look at the data"
        )

    def _save(self, number: int, state: State, score: float | None) -> None:
        """score: of this very state; an older figure must not make it the best."""
        self.checkpoints.save(number, state, {"metrics": self.lines, "data": self.fingerprint}, score)
        self.write("".join(line + "\n" for line in self.lines))

    def _placed(self, x: Any) -> jax.Array:
        """Arrays of the optimizer that are no parameters go to all devices."""
        if self.partitioner.mesh is None or getattr(x.sharding, "mesh", None) == self.partitioner.mesh:
            return x
        return put(np.asarray(x), self.partitioner, (None,) * x.ndim)

    def _placed_rows(self, plan: BatchPlan, rows: Sequence[Sequence[int]], at_once: int) -> Batch:
        """Rows of example numbers as micro-batches [A, B, T] on the devices, of which every process makes its own rows."""
        shape = (len(rows) // at_once, at_once, plan.max_seq_len)
        sharding = self.partitioner.sharding((None, "lanes", None))
        if sharding is None:
            return jax.tree.map(lambda x: jnp.asarray(x.reshape(shape)), plan.assembled(rows))
        held: dict[tuple[int, int], Batch] = {}

        def part(lanes: slice) -> Batch:
            first, end, _ = lanes.indices(at_once)
            if (first, end) not in held:
                own = [rows[a * at_once + b] for a in range(shape[0]) for b in range(first, end)]
                held[first, end] = jax.tree.map(
                    lambda x: x.reshape(shape[0], end - first, plan.max_seq_len), plan.assembled(own)
                )
            return held[first, end]

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
    """Whether the job has been asked to end (SIGTERM, as schedulers send before they take a machine away), asked once after
    every step. Several processes agree on the step after which they stop."""
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
