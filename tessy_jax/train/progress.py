"""The progress line of a training, and sinks of metrics besides metrics.jsonl."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tessy_jax.errors import ConfigError

QUIET = 10.0  # seconds between two lines where there is no terminal
SINGLE = ("loss", "loss_cap", "loss_sty", "evaluation_loss", "lr", "grad_norm", "tokens_per_second", "mfu")

Line = dict[str, Any]
"""The metrics of a step, as metrics.jsonl has them."""


class Bar:
    """A bar on a terminal, a line now and then elsewhere: loss, tokens per second, MFU where it is known, time left."""

    def __init__(self, *, shown: bool) -> None:
        self.console = Console(stderr=True)
        self.shown = shown
        self.last = 0.0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        terminal = shown and self.console.is_terminal
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not terminal)
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def __call__(self, line: Line, steps: int) -> None:
        """A step is done, of so many."""
        text = f"loss {line['loss']:.4f}, {line['tokens_per_second']:.0f} tok/s"
        if line["mfu"] is not None:
            text += f", MFU {line['mfu']:.1%}"
        if "evaluation_loss" in line:
            text += f", evaluation {line['evaluation_loss']:.4f}"
        self.bar.update(self.task, completed=line["step"], total=steps, description=text)
        due = line["step"] in (1, steps) or "evaluation_loss" in line or time.perf_counter() - self.last > QUIET
        if self.shown and not self.console.is_terminal and due:
            self.last = time.perf_counter()
            self.console.print(f"step {line['step']}/{steps}  {text}", highlight=False)


class Sink(NamedTuple):
    """Another place for metrics. write: takes those of each step. close: flushes them."""

    write: Callable[[Line], None]
    close: Callable[[], None]


def tensorboard(folder: str, last_step: int) -> Sink:
    """Writes the steps after `last_step` for TensorBoard; steps that an interrupted start wrote after it are dropped.

    Raises:
        ConfigError: the package for it is missing.
    """
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError(f"training.tensorboard: {error}; pip install 'tessy_jax[tensorboard]', or set it false") from None
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)
    writer = SummaryWriter(logdir=folder, purge_step=last_step + 1 if last_step else None, flush_secs=10)

    def write(line: Line) -> None:
        for name in SINGLE:
            if line.get(name) is not None:
                writer.add_scalar(name, line[name], line["step"])

    return Sink(write, writer.close)


def wandb(project: str, output: str, config: dict[str, Any]) -> Sink:
    """Sends steps to a project of Weights & Biases; the folder identifies the run, so that a restart continues it.

    Raises:
        ConfigError: the package for it is missing, or it refuses.
    """
    try:
        import wandb as client  # type: ignore[import-untyped, import-not-found, unused-ignore]

        name = hashlib.sha256(output.encode()).hexdigest()[:16]
        run = client.init(project=project, name=output, id=name, resume="allow", config=config)
    except Exception as error:  # a missing package, a missing login, an unreachable server
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"training.wandb: {reason}; pip install 'tessy_jax[wandb]' and log in (or WANDB_MODE=offline), or set it null"
        ) from None

    def write(line: Line) -> None:
        run.log({name: line[name] for name in SINGLE if line.get(name) is not None}, step=line["step"])

    return Sink(write, run.finish)
