"""Reads the inputs of an analysis: the data sets and jobs of a comparison, or run folders of syntheses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml
from pydantic import ValidationError

from tessy_jax.config import Analyze, Comparison, Data, Model, Synthesize, earlier_version, reconcile
from tessy_jax.errors import ConfigError
from tessy_jax.store import RunReader
from tessy_jax.store.files import within
from tessy_jax.store.job_folder import JobFolder, RoundFolder, finished_training
from tessy_jax.store.opening import finished, reader_of

SHOWN = 6
"""Maximum number of folders named in a message."""


@dataclass(frozen=True)
class Source:
    """A data set. place: its name in messages. data: its run folder; None if unfinished. prompts: the source of its prompts.
    student: the untouched student; None if there is none. date: the date of the chat templates."""

    variant: str
    place: str
    data: RunReader | None
    prompts: Data
    student: Model | None
    date: str | None


@dataclass(frozen=True)
class Round:
    """The finished stages of a round. epochs: of the training; None if it was configured in steps. after: finished
    evaluations by epoch. evaluation: the final one. unfinished: whether an evaluation after an epoch is unfinished."""

    epochs: float | None
    training: RunReader | None
    after: Mapping[int, RunReader]
    evaluation: RunReader | None
    unfinished: bool = False


@dataclass(frozen=True)
class Job:
    """A job of a comparison. before: the evaluation of the untouched student."""

    variant: str
    place: str
    before: RunReader | None
    rounds: Sequence[Round]


@dataclass
class Gaps:
    """Gaps of the analysis: (topic, sentence)."""

    entries: list[tuple[str, str]] = field(default_factory=list)

    def add(self, topic: str, text: str) -> None:
        """Adds a gap."""
        self.entries.append((topic, text))

    def add_count(self, topic: str, what: str, lacking: Sequence[str], count: int) -> None:
        """Adds a gap that names the jobs in `lacking`, out of `count`; adds nothing if `lacking` is empty."""
        if lacking:
            more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
            self.add(topic, f"{what}: {len(lacking)} of {count} ({', '.join(lacking[:SHOWN])}{more}).")


def of_comparison(config: Comparison) -> tuple[list[Source], list[Job]]:
    """Returns the data sets, one per job, of its last round, and the jobs of a comparison.

    Raises:
        ConfigError: the output is not a run folder, or belongs to another comparison.
        DataError: the run folder cannot be read.
    """
    reader = reader_of(config.output)
    if reader is None:
        raise ConfigError(f"{config.output}: is not a run folder; run `tessy compare` with this configuration first")
    config = reconcile(config, reader.config())
    sources, jobs = [], []
    for cell in config.cells():
        job, student = JobFolder(within(config.output, cell.place)), cell.config.student
        rounds = [job.round(number) for number in range(1, cell.config.rounds + 1)]
        training = cell.config.training
        epochs = training.epochs if training.steps is None else None
        sources.append(
            Source(cell.variant, cell.place, finished(rounds[-1].synthesis), cell.config.data, student, config.date)
        )
        jobs.append(
            Job(cell.variant, cell.place, finished(within(config.output, cell.before)), [_round(r, epochs) for r in rounds])
        )
    return sources, jobs


def of_runs(config: Analyze) -> list[Source]:
    """Returns the data sets of run folders.

    Raises:
        ConfigError: a folder is not the run folder of a synthesis.
        DataError: a folder cannot be read.
    """
    sources = []
    for name, output in config.runs.items():
        reader = RunReader(output)
        try:
            run = Synthesize.model_validate(yaml.safe_load(reader.config() or ""))
        except ValidationError as error:
            problem = earlier_version(Synthesize, error)
            remedy = "analyze it with that version" if problem else "give the `output` of `tessy synthesize`"
            raise ConfigError(f"{output}: holds {problem or 'no synthesis'}; {remedy}") from None
        finished = reader if reader.summary() is not None else None
        sources.append(Source(name, output, finished, run.data, run.student, run.date))
    return sources


def _round(folder: RoundFolder, epochs: float | None) -> Round:
    started = folder.epochs()
    readers = {number: finished(folder.epoch(number)) for number in started}
    after = {number: reader for number, reader in readers.items() if reader is not None}
    training = finished_training(folder.training)
    return Round(epochs, training, after, finished(folder.evaluation), len(after) < len(started))
