"""The training loop: steps, evaluation, checkpoints, and what is told about them."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tessy_jax.config import Optimizer, Training
from tessy_jax.sharding import Layout, put
from tessy_jax.train.checkpoint import Checkpoints
from tessy_jax.train.data import Order
from tessy_jax.train.examples import CAPABILITY, STYLE
from tessy_jax.train.optimizer import build, schedule
from tessy_jax.train.pack import Batch
from tessy_jax.train.step import State, Sums, sums, train_step

Index = tuple[slice, ...]

RECENT = 20  # losses whose mean a spike is measured by


class TrainingError(RuntimeError):
    """A loss that is no number, or a spike: the run has stopped, and says where to go on from."""


@dataclass
class Trainer:
    """Trains a part of a model's parameters, which it then owns and overwrites; the others are `frozen`.

    weights: how much a target of each kind counts; the first is no target's. evaluation: what the evaluation loss is of.
    flops: of a step over documents of these lengths, per second that the devices could do it in; None where not known.
    write: gets the metrics of all steps so far. tell: gets those of each step, and the number of steps. The state after a
    step follows from the step before it and the step's number alone, so that a run that was interrupted ends as one that was
    not.
    """

    training: Training
    optimizing: Optimizer
    graph: Any
    frozen: Any
    layout: Layout
    order: Order
    weights: Sequence[float]
    evaluation: Order | None
    checkpoints: Checkpoints
    write: Callable[[str], None]
    tell: Callable[[dict[str, Any], int], None]
    busy: Callable[[np.ndarray], float | None] = lambda lengths: None
    lines: list[str] = field(default_factory=list)
    evaluated: float | None = None

    def __post_init__(self) -> None:
        training = self.training
        self.steps = training.steps or self.order.steps(training.epochs)
        self.optimizer = build(self.optimizing, self.steps)
        self.rates = schedule(self.optimizing, self.steps)
        self.weights_K = put(np.array(self.weights, np.float32), self.layout, (None,))

    def start(self, params: Any) -> State:
        """The state before the first step, or that of the newest checkpoint, with its metrics.

        Raises:
            CheckpointError: the checkpoint does not fit, or cannot be read.
        """
        optimizer = jax.tree.map(self._placed, self.optimizer.init(params))
        state = State(params, optimizer, put(np.int32(0), self.layout, ()))
        self._compile(state)
        latest = self.checkpoints.latest()
        if latest is None:
            return state
        notes = self.checkpoints.notes(latest)
        self.lines = list(notes["metrics"])
        self.evaluated = notes["evaluation_loss"]
        restored: State = self.checkpoints.restore(latest, state)
        return restored

    def _compile(self, state: State) -> None:
        """The step and the evaluation, whose results lie where the state lies, and on every device what is read."""
        dtype, remat = jnp.dtype(self.training.dtype), self.training.remat
        step = partial(train_step, self.graph, self.optimizer, dtype, remat)
        read = self.layout.sharding(())
        places = None if read is None else (jax.tree.map(lambda x: x.sharding, state), read, read)
        self._step = jax.jit(step, donate_argnums=0, out_shardings=places)
        self._sums = jax.jit(partial(sums, self.graph, dtype=dtype, remat="none"), out_shardings=read)

    def run(self, state: State) -> State:
        """All steps that are left.

        Raises:
            TrainingError: a loss is no number, or spikes.
        """
        training = self.training
        done = int(state.step)
        recent: deque[float] = deque(maxlen=RECENT)
        plans = self.order.from_step(done)
        with _told_to_stop() as told_to_stop:
            batch, lengths = self._next(plans) if done < self.steps else (None, None)
            for number in range(done + 1, self.steps + 1):
                begun = time.perf_counter()
                last = number == self.steps
                state, found, norm = self._step(state, self.frozen, batch, self.weights_K)
                read = lengths
                if not last:
                    batch, lengths = self._next(plans)  # while the devices work
                line = self._line(number, found, float(norm), time.perf_counter() - begun, read)
                self._check(line["loss"], recent, number)
                if self.evaluation is not None and (last or _due(number, training.evaluate_every)):
                    line["evaluation_loss"] = self.evaluated = self.evaluate(state)
                self.lines.append(json.dumps(line))
                self.tell(line, self.steps)
                stops = told_to_stop(number)
                if last or stops or _due(number, training.save_every):
                    self._save(number, state, line.get("evaluation_loss"))
                if stops:
                    break
        self.checkpoints.wait()
        return state

    def last(self, name: str) -> float | None:
        """A metric of the newest step."""
        return json.loads(self.lines[-1])[name] if self.lines else None

    def evaluate(self, state: State) -> float:
        """The mean loss of the evaluation's targets, with the weights of their kinds."""
        assert self.evaluation is not None
        loss = weight = 0.0
        for rows in self.evaluation.epoch(0):
            batch = jax.tree.map(lambda x: x[0], self._placed_rows(self.evaluation, rows, len(rows)))
            found: Sums = self._sums(state.params, self.frozen, batch, self.weights_K)
            loss, weight = loss + float(found.loss), weight + float(found.weight)
        return loss / max(weight, 1e-9)

    def _next(self, plans: Iterator[list[Sequence[int]]]) -> tuple[Batch, np.ndarray]:
        """The next batch on the devices, and the lengths of its documents."""
        rows = next(plans)
        lengths = self.order.data.lengths[[i for row in rows for i in row]]
        return self._placed_rows(self.order, rows, self.training.rows_at_once or len(rows)), lengths

    def _line(self, number: int, found: Sums, norm: float, seconds: float, lengths: np.ndarray | None) -> dict[str, Any]:
        """What metrics.jsonl says of a step. loss: with weights; loss_cap, loss_sty: without, of what the teacher and the
        student wrote; tokens: targets; tokens_per_second: of all that was read."""
        loss_K, tokens_K = np.asarray(found.loss_K, np.float64), np.asarray(found.tokens_K, np.float64)
        assert lengths is not None
        ideal = self.busy(lengths)

        def mean(kind: int) -> float | None:
            return float(loss_K[kind] / tokens_K[kind]) if tokens_K[kind] else None

        return {
            "step": number,
            "loss": float(found.loss) / max(float(found.weight), 1e-9),
            "loss_cap": mean(CAPABILITY),
            "loss_sty": mean(STYLE),
            "tokens": int(tokens_K.sum()),
            "tokens_by": {name: int(n) for name, n in zip(self.order.data.names[1:], tokens_K[1:], strict=True)},
            "lr": float(self.rates(number - 1)),
            "grad_norm": norm,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(float(lengths.sum()) / seconds, 1),
            "mfu": None if ideal is None else round(ideal / seconds, 4),
        }

    def _check(self, loss: float, recent: deque[float], number: int) -> None:
        spike = self.training.spike
        usual = sum(recent) / len(recent) if recent else math.inf
        if math.isfinite(loss) and not (spike and len(recent) == RECENT and loss > spike * usual):
            recent.append(loss)
            return
        self.checkpoints.wait()
        last = self.checkpoints.latest()
        place = (
            "there is no checkpoint yet" if last is None else f"the last good checkpoint is {self.checkpoints.path(last)}"
        )
        what = f"{loss:.4g}, the last {len(recent)} were {usual:.4g} on average" if math.isfinite(loss) else f"{loss}"
        raise TrainingError(f"step {number}: the loss is {what}; {place}; lower optimizer.learning_rate or look at the data")

    def _save(self, number: int, state: State, evaluated: float | None) -> None:
        """evaluated: of this very state; an older figure must not make it the best."""
        notes = {"metrics": self.lines, "evaluation_loss": self.evaluated}
        self.checkpoints.save(number, state, notes, evaluated)
        self.write("".join(line + "\n" for line in self.lines))

    def _placed(self, x: Any) -> jax.Array:
        """Arrays of the optimizer that are no parameters go to all devices."""
        if self.layout.mesh is None or getattr(x.sharding, "mesh", None) == self.layout.mesh:
            return x
        return put(np.asarray(x), self.layout, (None,) * x.ndim)

    def _placed_rows(self, order: Order, rows: Sequence[Sequence[int]], at_once: int) -> Batch:
        """Rows of example numbers as micro-batches [A, B, T] on the devices, of which every process makes its own rows."""
        shape = (len(rows) // at_once, at_once, order.size)
        sharding = self.layout.sharding((None, "lanes", None))
        if sharding is None:
            return jax.tree.map(lambda x: jnp.asarray(x.reshape(shape)), order.assembled(rows))
        held: dict[tuple[int, int], Batch] = {}

        def part(lanes: slice) -> Batch:
            first, end, _ = lanes.indices(at_once)
            if (first, end) not in held:
                own = [rows[a * at_once + b] for a in range(shape[0]) for b in range(first, end)]
                held[first, end] = jax.tree.map(lambda x: x.reshape(shape[0], end - first, order.size), order.assembled(own))
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
def _told_to_stop() -> Iterator[Callable[[int], bool]]:
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
