"""One training of a model's parameters, as the jobs for students and for boundary predictors run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tessy_jax.config import Training
from tessy_jax.errors import DataError
from tessy_jax.processes import is_primary, on_primary
from tessy_jax.sharding import Partitioner
from tessy_jax.store.files import within
from tessy_jax.train.data import TokenizedDataset
from tessy_jax.train.loop import Trainer
from tessy_jax.train.progress import Bar, Line, Sink, tensorboard, wandb
from tessy_jax.train.step import State

OnStep = Callable[[Line, int], None]
"""Receives the metrics of a step, and the number of steps."""


@dataclass(frozen=True)
class Fit:
    """A training that has ended or was asked to stop. state: after its last step. first_step: the number of steps that
    earlier starts had taken."""

    trainer: Trainer
    state: State
    first_step: int

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.trainer.over(int(self.state.step))

    def counts(self) -> dict[str, Any]:
        """The first keys of a summary: the steps, and whether the training is finished."""
        steps = int(self.state.step)
        return {
            "steps": steps,
            "steps_wanted": self.trainer.steps,
            "steps_of_this_start": steps - self.first_step,
            "finished": self.finished,
        }


def fit(trainer: Trainer, params: Any, *, output: str, config: dict[str, Any], progress: bool, on_step: OnStep) -> Fit:
    """Starts or resumes a training, runs its remaining steps, and reports each to the metric sinks of its configuration.
    Every process must call it. Consumes `params`.

    output: the run folder. config: for the sinks, as JSON. progress: shows a progress bar.

    Raises:
        ConfigError, CheckpointError: see `Trainer.start`; or a sink's package is missing.
        TrainingError: a loss is not finite, or spikes.
    """
    with ExitStack() as stack:
        trainer.listeners.append(on_step)
        state = trainer.start(params)
        first_step = int(state.step)
        if is_primary():
            trainer.listeners.append(stack.enter_context(Bar(shown=progress)))
        sinks: list[Sink] = []
        on_primary(lambda: sinks.extend(_sinks(trainer.training, output, config, first_step)))
        for sink in sinks:
            stack.callback(sink.close)
            trainer.listeners.append(lambda line, steps, write=sink.write: write(line))  # type: ignore[misc]
        return Fit(trainer, trainer.run(state), first_step)


def check_rows(partitioner: Partitioner, training: Training) -> int:
    """The rows of a micro-batch, which the mesh must divide.

    Raises:
        ConfigError: it does not.
    """
    rows = training.micro_batch_size or training.batch_size
    partitioner.check({"lanes": (rows, "training.micro_batch_size, or training.batch_size,")})
    return rows


def check_weights(data: TokenizedDataset, weights: Sequence[float]) -> None:
    """Checks that some target has a weight. weights: of every kind but NO_TARGET.

    Raises:
        DataError: all targets have weight 0.
    """
    targets = data.targets()
    if not any(n and weight for n, weight in zip(targets.values(), weights, strict=True)):
        counts = ", ".join(f"{n} {name}" for name, n in targets.items() if n)
        raise DataError(
            f"the targets are {counts}, and `weights` gives them 0, so that nothing is learnt; give some a weight"
        )


def _sinks(training: Training, output: str, config: dict[str, Any], first_step: int) -> list[Sink]:
    """The configured metric sinks. first_step: the step that this start continues from."""
    sinks = []
    if training.tensorboard:
        sinks.append(tensorboard(within(output, "tensorboard"), first_step))
    if training.wandb:
        sinks.append(wandb(training.wandb, output, config))
    return sinks
