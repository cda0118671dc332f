"""Tasks and their problems: a prompt and its ground truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Programs
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.store.messages import encodable, held_by, short
from tessy_jax.synthesis.prompts import read

FAMILIES = ("family", "subject")
"""Columns that hold the family of a problem; the first one that a row has counts."""


@dataclass(frozen=True)
class Problem:
    """One problem of a task.

    id: unique in an evaluation, "<task>/<own id>". family: None if the problem has none. messages: role and content; the
    last is the user's. reference: the right answer, in the form that the task's verifier reads. choices: the choices in the
    order of their letters; empty if they are not known. tests: further data for the verifier; no model sees it.
    """

    id: str
    task: str
    family: str | None
    messages: list[dict[str, str]]
    reference: str
    choices: tuple[str, ...] = ()
    tests: bytes | None = field(default=None, repr=False)

    @property
    def own_id(self) -> str:
        """The id within the task."""
        return self.id.removeprefix(f"{self.task}/")

    def to_json(self) -> dict[str, Any]:
        """The problem as a JSON object, which is also a row of prompts."""
        labels = {"task": self.task, "family": self.family, "reference": self.reference}
        choices = {"choices": list(self.choices)} if self.choices else {}
        return {"id": self.id, "messages": self.messages, **labels, **choices}


@dataclass(frozen=True)
class Verdict:
    """The verdict on an answer. answer: the part that was compared; None if there was nothing to compare. why: the reason,
    as a word for counting. graders: the verdict of each grader, if there are several. test: index of the first failed test,
    from 0."""

    right: bool
    answer: str | None
    why: str
    graders: Mapping[str, bool] = field(default_factory=dict)
    test: int | None = None


class Verifier(Protocol):
    """Says whether an answer is right."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Verifies an answer. answer: all text after the thinking. The call does not raise and ends in bounded time for
        every text. Several threads call it at the same time."""


@runtime_checkable
class DescribedVerifier(Protocol):
    """A verifier that describes how it works on this machine."""

    @property
    def describes(self) -> str:
        """The way in which it verifies answers on this machine."""


@runtime_checkable
class CheckingVerifier(Protocol):
    """A verifier whose settings can make a right answer impossible."""

    def check(self, truth: GroundTruth) -> None:
        """Checks before any work that an answer can be right. Raises DataError if none can."""


class GroundTruth(NamedTuple):
    """The right answer of a problem and the data to verify it; see `Problem`."""

    reference: str
    choices: tuple[str, ...] = ()
    tests: bytes | None = None


GroundTruthReader = Callable[[dict[str, Any], str, str], GroundTruth]
"""Reads the ground truth from a row, given the column of the answer and the prompt's id; raises DataError."""


def ground_truth_of_column(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The right answer as the column holds it: text or a number."""
    return GroundTruth(text_of(row, column, needed=True))


class TaskKind(NamedTuple):
    """A kind of task. problems: reads the problems of a task. verifier: opens the verifier, which is closed after the
    evaluation. ground_truth: reads the ground truth from a row of prompts. columns: the columns that it reads besides the
    answer's."""

    problems: Callable[[Task], Iterable[Problem]]
    verifier: Callable[[Programs], AbstractContextManager[Verifier]]
    ground_truth: GroundTruthReader = ground_truth_of_column
    columns: Collection[str] = ()


def table_problems(
    task: Task,
    ground_truth: GroundTruthReader = ground_truth_of_column,
    *,
    columns: Collection[str] = (),
    shown: Callable[[Any], Any] = lambda row: row,
) -> list[Problem]:
    """Reads the problems of a task's table, in the order of its rows.

    A repeated problem (same id, or same prompt if it has no id) is a further problem: its id gets a number. ground_truth,
    columns: see `TaskKind`. shown: converts a row to a form that `synthesis.prompts` reads; it is not used if the task names
    the prompt's column.

    Raises:
        DataError: the table cannot be read, or a row has no prompt or no answer; names file and line.
        ConfigError: a package is missing.
    """
    assert task.path is not None

    def labels(row: dict[str, Any], name: str) -> tuple[GroundTruth, str | None]:
        truth = ground_truth(row, task.answer, name)
        return truth, next((family for column in FAMILIES if (family := text_of(row, column))), None)

    prompts = read(
        task.path,
        task.split,
        task.limit,
        subset=task.subset,
        prompt=task.prompt,
        columns=(task.answer, *FAMILIES, *columns),
        shown=shown,
        ground_truth=labels,
    ).prompts
    names: set[str] = set()
    problems = []
    for prompt in prompts:
        name = unique_name(prompt.id, names)
        truth, family = prompt.ground_truth
        problems.append(Problem(f"{task.name}/{name}", task.name, family, prompt.messages, *truth))
    return problems


def unique_name(name: str, names: set[str]) -> str:
    """A unique name: this one, or if `names` holds it, this one with a number appended. Adds the result to `names`."""
    unique, times = name, 1
    while unique in names:
        times += 1
        unique = f"{name}/{times}"
    names.add(unique)
    return unique


def problems_of(tasks: Sequence[Task], task_kinds: Mapping[str, TaskKind]) -> dict[str, list[Problem]]:
    """The problems of every task, by the task's name.

    Raises:
        DataError, ConfigError: see `table_problems`; ConfigError also if a task's verifier is not one of `task_kinds`.
    """
    problems = {}
    for task in tasks:
        if task.verifier not in task_kinds:
            raise ConfigError(
                f"task {task.name!r}: there is no verifier {task.verifier!r} here, only {', '.join(task_kinds)}; pass its "
                "task kind to evaluate as well (that of mini is in tessy_jax.mini.evaluation)"
            )
        problems[task.name] = list(task_kinds[task.verifier].problems(task))
    return problems


def text_of(row: dict[str, Any], column: str, *, needed: bool = False) -> str:
    """The text of a column; empty if the column is missing.

    Raises:
        DataError: the value is neither text nor a number, or it is needed and missing or empty.
    """
    value = row.get(column)
    if value is None and not needed:
        return ""
    if value is None:
        raise DataError(
            f"has no `{column}`, which should hold the right answer; it holds {held_by(row)}: set answer to one of them"
        )
    infinite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or infinite:
        remedy = ": copy the value into a column of its own" if isinstance(value, dict | list) else ""
        raise DataError(f"{column} is {short(value)}; it should be a string or a finite number{remedy}")
    text = str(value)
    if needed and not text.strip():
        raise DataError(f"{column} is empty; it should hold the right answer")
    return encodable(text, column)
