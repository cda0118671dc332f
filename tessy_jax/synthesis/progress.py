"""The progress display of a synthesis."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.scheduler import Scheduler

QUIET = 30.0  # seconds between two lines without a terminal


class Progress:
    """A bar on a terminal, else a line every `QUIET` seconds. Both show kept tokens per second, the teacher's share of them,
    discarded tokens and lanes in use; the bar also shows the time left."""

    def __init__(self, total: int, done: int, models: ModelSet, scheduler: Scheduler, *, shown: bool) -> None:
        self.total, self.done = total, done
        self.models, self.scheduler = models, scheduler
        self.console = Console(stderr=True)
        self.shown = shown
        self.last = self.start = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Bar(*columns, console=self.console, disable=not (shown and self.console.is_terminal))
        self.task = self.bar.add_task("starting", total=total, completed=done)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        if self.shown and not self.console.is_terminal:
            self.console.print(f"{self.done}/{self.total} {self.text()}", highlight=False)

    def advance(self, ended: int) -> None:
        """Counts responses that have been saved or have finally failed."""
        self.done += ended
        self.bar.update(self.task, completed=self.done, description=self.text())
        if self.shown and not self.console.is_terminal and time.perf_counter() - self.last > QUIET:
            self.last = time.perf_counter()
            self.console.print(f"{self.done}/{self.total} {self.text()}", highlight=False)

    def text(self) -> str:
        """The text of the bar or line."""
        tally = self.scheduler.tally
        kept, discarded = int(tally.kept.sum()), int(tally.discarded.sum())
        teacher = int(tally.kept[self.models.names.index("teacher")]) if "teacher" in self.models.names else 0
        seconds = max(self.scheduler.running_seconds, 1e-9)
        return (
            f"{kept / seconds:.1f} kept tok/s, teacher {teacher / max(kept, 1):.0%}, "
            f"discarded {discarded / max(kept + discarded, 1):.1%}, lanes {len(self.scheduler.active)}"
        )
