"""The training loop: steps, evaluation, checkpoints, and what is told about them."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tessy_jax.config import Train
from tessy_jax.sharding import Layout, put
from tessy_jax.train.checkpoint import Checkpoints
from tessy_jax.train.data import Data, Order
from tessy_jax.train.examples import KINDS
from tessy_jax.train.optimizer import build, schedule
from tessy_jax.train.pack import Batch
from tessy_jax.train.step import State, Sums, sums, train_step

RECENT = 20  # losses whose mean a spike is measured by
STYLE, CAPABILITY = KINDS.index("student"), KINDS.index("teacher")


class TrainingError(RuntimeError):
    """A loss that is no number, or a spike: the run has stopped, and says where to go on from."""


@dataclass
class Trainer:
    """Trains a part of a model's parameters, which it then owns and overwrites; the others are `frozen`.

    write: gets the metrics of all steps so far. tell: gets those of each step, and the number of steps. The state after a
    step follows from the step before it and the step's number alone, so that a run that was interrupted ends as one that was
    not.
    """

    config: Train
    graph: Any
    frozen: Any
    layout: Layout
    order: Order
    evaluation: Data | None
    checkpoints: Checkpoints
    write: Callable[[str], None]
    tell: Callable[[dict[str, Any], int], None]
    lines: list[str] = field(default_factory=list)
    evaluated: float | None = None

    def __post_init__(self) -> None:
        training = self.config.training
        self.steps = training.steps or self.order.steps(training.epochs)
        self.optimizer = build(self.config.optimizer, self.steps)
        self.rates = schedule(self.config.optimizer, self.steps)
        weights = [0.0, *(getattr(self.config.weights, name) for name in KINDS[1:])]
        self.weights_K = put(np.array(weights, np.float32), self.layout, (None,))
        dtype = jnp.dtype(training.dtype)
        step = partial(train_step, self.graph, self.optimizer, dtype, training.remat)
        self._step = jax.jit(step, donate_argnums=0)
        self._sums = jax.jit(partial(sums, self.graph, dtype=dtype, remat="none"))

    def start(self, params: Any) -> State:
        """The state before the first step, or that of the newest checkpoint, with its metrics.

        Raises:
            CheckpointError: the checkpoint does not fit, or cannot be read.
        """
        optimizer = jax.tree.map(self._placed, self.optimizer.init(params))
        state = State(params, optimizer, put(np.int32(0), self.layout, ()))
        latest = self.checkpoints.latest()
        if latest is None:
            return state
        notes = self.checkpoints.notes(latest)
        self.lines = list(notes["metrics"])
        self.evaluated = notes["evaluation_loss"]
        restored: State = self.checkpoints.restore(latest, state)
        return restored

    def run(self, state: State) -> State:
        """All steps that are left.

        Raises:
            TrainingError: a loss is no number, or spikes.
        """
        training = self.config.training
        done = int(state.step)
        recent: deque[float] = deque(maxlen=RECENT)
        with _told_to_stop() as stopped:
            for number, batch in zip(range(done + 1, self.steps + 1), self.order.from_step(done), strict=False):
                begun = time.perf_counter()
                state, found, norm = self._step(
                    state, self.frozen, self._placed_batch(batch, training.rows_at_once), self.weights_K
                )
                line = self._line(number, found, float(norm), time.perf_counter() - begun)
                self._check(line["loss"], recent, number)
                last = number == self.steps
                if self.evaluation is not None and (last or _due(number, training.evaluate_every)):
                    line["evaluation_loss"] = self.evaluated = self.evaluate(state)
                self.lines.append(json.dumps(line))
                self.tell(line, self.steps)
                if last or stopped() or _due(number, training.save_every):
                    self._save(number, state, line.get("evaluation_loss"))
                if stopped() and not last:
                    break
        self.checkpoints.wait()
        return state

    def last(self, name: str) -> float | None:
        """A metric of the newest step."""
        return json.loads(self.lines[-1])[name] if self.lines else None

    def evaluate(self, state: State) -> float:
        """The mean loss of the evaluation's targets, with the weights of their kinds."""
        assert self.evaluation is not None
        order = Order(self.evaluation, self.order.size, self.order.rows, self.config.seed)
        loss = weight = 0.0
        for batch in order.assembled(0):
            found: Sums = self._sums(state.params, self.frozen, self._placed_batch(batch, None, split=False), self.weights_K)
            loss, weight = loss + float(found.loss), weight + float(found.weight)
        return loss / max(weight, 1e-9)

    def _line(self, number: int, found: Sums, norm: float, seconds: float) -> dict[str, Any]:
        """What metrics.jsonl says of a step. loss: with weights; loss_cap, loss_sty: without, of what the teacher and the
        student wrote; tokens: targets."""
        loss_K, tokens_K = np.asarray(found.loss_K, np.float64), np.asarray(found.tokens_K, np.float64)

        def mean(kind: int) -> float | None:
            return float(loss_K[kind] / tokens_K[kind]) if tokens_K[kind] else None

        return {
            "step": number,
            "loss": float(found.loss) / max(float(found.weight), 1e-9),
            "loss_cap": mean(CAPABILITY),
            "loss_sty": mean(STYLE),
            "tokens": int(tokens_K.sum()),
            "tokens_by": {name: int(n) for name, n in zip(KINDS[1:], tokens_K[1:], strict=True)},
            "lr": float(self.rates(number - 1)),
            "grad_norm": norm,
            "seconds": round(seconds, 4),
        }

    def _check(self, loss: float, recent: deque[float], number: int) -> None:
        spike = self.config.training.spike
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

    def _placed_batch(self, batch: Batch, at_once: int | None, split: bool = True) -> Batch:
        def one(x: Any) -> jax.Array:
            if not split:
                return put(x, self.layout, ("lanes", None))
            rows = at_once or len(x)
            return put(x.reshape(-1, rows, x.shape[1]), self.layout, (None, "lanes", None))

        return jax.tree.map(one, batch)


def _due(number: int, every: int) -> bool:
    return bool(every) and number % every == 0


@contextmanager
def _told_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether the process has been asked to end (SIGTERM, as schedulers send before they take a machine away)."""
    flags: list[bool] = []

    def note(*_: Any) -> None:
        flags.append(True)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(flags)
    finally:
        signal.signal(signal.SIGTERM, before)
