"""What is analysed: the data sets of a comparison and the jobs around them, or run folders of syntheses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from tessy_jax.config import Analyze, Comparison, Data, Model, Synthesize, reconcile
from tessy_jax.config.pipeline import DATA, EPOCHS, EVALUATION, TRAINING, round_name
from tessy_jax.errors import ConfigError
from tessy_jax.store import RunReader
from tessy_jax.store.files import open_files, within
from tessy_jax.store.opening import finished, reader_of

EPOCH = re.compile(r"[0-9]{3,}")
SHOWN = 6
"""Places that a message names at most."""


@dataclass(frozen=True)
class Source:
    """A data set. place: what messages call it. data: its run folder, where it is finished. prompts: where its prompts come
    from. student: untouched, None where there is none. date: that of its chat templates."""

    variant: str
    place: str
    data: RunReader | None
    prompts: Data
    student: Model | None
    date: str | None


@dataclass(frozen=True)
class Round:
    """What became of the student in a round, as far as it is finished. epochs: how many the training had, None where it was
    told its steps. after: evaluations by epoch. evaluation: that at the end. unfinished: whether one of an epoch is."""

    epochs: float | None
    training: RunReader | None
    after: Mapping[int, RunReader]
    evaluation: RunReader | None
    unfinished: bool = False


@dataclass(frozen=True)
class Job:
    """A job of a comparison. before: the untouched student's evaluation."""

    variant: str
    place: str
    before: RunReader | None
    rounds: Sequence[Round]


@dataclass
class Gaps:
    """What could not be looked at, and why: (topic, in a sentence)."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def say(self, topic: str, text: str) -> None:
        """Notes a gap."""
        self.found.append((topic, text))

    def among(self, topic: str, what: str, lacking: Sequence[str], count: int) -> None:
        """Notes that some of so many jobs lack something; nothing where none does."""
        if lacking:
            more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
            self.say(topic, f"{what}: {len(lacking)} of {count} ({', '.join(lacking[:SHOWN])}{more}).")


def of_comparison(config: Comparison) -> tuple[list[Source], list[Job]]:
    """The data sets, each of its job's last round, and the jobs of a comparison.

    Raises:
        ConfigError: its run folder is none, or that of another comparison.
        DataError: it cannot be read.
    """
    reader = reader_of(config.output)
    if reader is None:
        raise ConfigError(f"{config.output}: is no run folder; run `tessy compare` with this configuration first")
    config = reconcile(config, reader.config())
    sources, jobs = [], []
    for cell in config.cells():
        place, student = within(config.output, cell.place), cell.config.student
        rounds = [within(place, round_name(number)) for number in range(1, cell.config.rounds + 1)]
        training = cell.config.training
        epochs = training.epochs if training.steps is None else None
        sources.append(
            Source(cell.variant, cell.place, finished(within(rounds[-1], DATA)), cell.config.data, student, config.date)
        )
        jobs.append(
            Job(cell.variant, cell.place, finished(within(config.output, cell.before)), [_round(r, epochs) for r in rounds])
        )
    return sources, jobs


def of_runs(config: Analyze) -> list[Source]:
    """The data sets of some run folders.

    Raises:
        ConfigError: one is no run folder of a synthesis.
        DataError: one cannot be read.
    """
    found = []
    for name, output in config.runs.items():
        reader = RunReader(output)
        try:
            run = Synthesize.model_validate(yaml.safe_load(reader.config() or ""))
        except ValidationError:
            raise ConfigError(f"{output}: holds no synthesis; name the `output` of `tessy synthesize`") from None
        finished = reader if reader.summary() is not None else None
        found.append(Source(name, output, finished, run.data, run.student, run.date))
    return found


def objects(reader: RunReader, name: str) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL file of a run folder; none where there is no file."""
    return (json.loads(line) for line in (reader.file(name) or b"").split(b"\n") if line.strip())


def _round(folder: str, epochs: float | None) -> Round:
    training = finished(within(folder, TRAINING))
    if training is not None and not (training.summary() or {}).get("finished"):
        training = None
    place = within(folder, EPOCHS)
    after = {
        int(name): finished(within(place, name)) for name in sorted(open_files(place).sizes("")) if EPOCH.fullmatch(name)
    }
    over = {number: reader for number, reader in after.items() if reader is not None}
    return Round(epochs, training, over, finished(within(folder, EVALUATION)), len(over) < len(after))
