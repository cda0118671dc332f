"""The run folder of a complete job (`tessy run`): the folders of its stages, and the stages in its summary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from tessy_jax.config.pipeline import BEFORE, DATA, EPOCHS, EVALUATION, MADE, TRAINING, round_name
from tessy_jax.errors import DataError
from tessy_jax.store.files import open_files, within
from tessy_jax.store.opening import finished, reader_of
from tessy_jax.store.run import RunReader

EPOCH = re.compile(r"[0-9]{3,}")


@dataclass(frozen=True)
class Stage:
    """A stage of a job. kind: predictors, synthesis, training or evaluation. round: None for the predictors and for the
    evaluation of the untouched student. epoch: of an evaluation after an epoch; None for all other stages."""

    kind: str
    round: int | None = None
    epoch: int | None = None

    @property
    def name(self) -> str:
        """The stage as messages and pages show it."""
        if self.round is None:
            return BEFORE if self.kind == EVALUATION else self.kind
        return f"round {self.round}: {self.kind}" + ("" if self.epoch is None else f" after epoch {self.epoch}")


PLAN = "plan.json"
"""The file of a run folder that `tessy plan --save` writes."""
BEFORE_STAGE = Stage(EVALUATION)
"""The evaluation of the untouched student."""


def dump_stages(seconds: Mapping[Stage, float]) -> list[dict[str, Any]]:
    """Returns the entry `stages` of a job's summary."""
    return [
        {"name": s.name, "kind": s.kind, "round": s.round, "epoch": s.epoch, "seconds": round(value, 3)}
        for s, value in seconds.items()
    ]


def read_stages(summary: Mapping[str, Any], output: str) -> dict[Stage, float]:
    """Returns the seconds of the finished stages in a job's summary. output: the job's run folder, for the message.

    Raises:
        DataError: the summary is of an earlier version, which did not save the kinds of stages.
    """
    stages = summary.get("stages", [])
    if not all({"kind", "round", "epoch"} <= stage.keys() for stage in stages):
        raise DataError(
            f"{output}: the stages in summary.json have no kind; an earlier version of tessy_jax wrote this file. Continue "
            "the run with that version, or set output to a new folder"
        )
    return {Stage(stage["kind"], stage["round"], stage["epoch"]): stage["seconds"] for stage in stages}


@dataclass(frozen=True)
class RoundFolder:
    """The folders of the stages of a round."""

    path: str

    @property
    def synthesis(self) -> str:
        """The run folder of the synthesis."""
        return within(self.path, DATA)

    @property
    def training(self) -> str:
        """The run folder of the training."""
        return within(self.path, TRAINING)

    @property
    def evaluation(self) -> str:
        """The run folder of the evaluation after the training."""
        return within(self.path, EVALUATION)

    def epoch(self, number: int) -> str:
        """The run folder of the evaluation after an epoch."""
        return within(self.path, f"{EPOCHS}/{number:03}")

    def epochs(self) -> list[int]:
        """Returns the epochs whose evaluation has started, in ascending order.

        Raises:
            DataError: the folder cannot be read.
        """
        return sorted({int(name) for name in open_files(within(self.path, EPOCHS)).sizes("") if EPOCH.fullmatch(name)})

    def started(self) -> bool:
        """Whether a stage of the round has started.

        Raises:
            DataError: the folder cannot be read.
        """
        return any(reader_of(folder) is not None for folder in (self.synthesis, self.training, self.evaluation))


@dataclass(frozen=True)
class JobFolder:
    """The run folder of a job."""

    output: str

    @property
    def predictors(self) -> str:
        """The run folder of the predictors that the job trains."""
        return within(self.output, MADE)

    @property
    def before(self) -> str:
        """The run folder of the evaluation of the untouched student, unless jobs of a comparison share it."""
        return within(self.output, BEFORE)

    def round(self, number: int) -> RoundFolder:
        """The folders of a round; the first is 1."""
        return RoundFolder(within(self.output, round_name(number)))

    def started_rounds(self) -> Iterator[tuple[int, RoundFolder]]:
        """Yields the number and the folders of each started round.

        Raises:
            DataError: a folder cannot be read.
        """
        for number in count(1):
            folder = self.round(number)
            if not folder.started():
                return
            yield number, folder


def finished_training(output: str) -> RunReader | None:
    """A reader of a finished training; None if it is absent, or was asked to stop before its last step.

    Raises:
        DataError: the folder cannot be read.
    """
    reader = finished(output)
    return reader if reader is not None and (reader.summary() or {}).get("finished") else None


def json_lines(reader: RunReader, name: str) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSONL file of a run folder; yields nothing if the file is missing."""
    return (json.loads(line) for line in (reader.file(name) or b"").split(b"\n") if line.strip())
