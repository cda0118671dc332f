"""Tasks and their problems: a prompt, and what is known of its answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Programs
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.synthesis.prompts import read

FAMILIES = ("family", "subject")
"""Columns that say of which family a problem is; the first that a row has."""


@dataclass(frozen=True)
class Problem:
    """What a model is asked. id: unique in an evaluation: "<task>/<own id>". family: None where it has none. messages: role
    and content, the user's last. reference: the right answer, in the form that its verifier knows. choices: those that there
    are, as they are lettered; none where that is not known. tests: what its verifier needs besides, and nobody else sees."""

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
        """The problem as a JSON object, which is a row of prompts, too."""
        known = {"task": self.task, "family": self.family, "reference": self.reference}
        choices = {"choices": list(self.choices)} if self.choices else {}
        return {"id": self.id, "messages": self.messages, **known, **choices}


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth. answer: what was compared; None where there was nothing to. why: a word for counting.
    graders: where there are several, what each says. test: the first that was not passed, from 0."""

    right: bool
    answer: str | None
    why: str
    graders: Mapping[str, bool] = field(default_factory=dict)
    test: int | None = None


class Verifier(Protocol):
    """Says whether an answer is right."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """answer: all that stands behind the thinking. Whatever it is, nothing is raised, and it does not take for ever. Is
        called by several threads at once."""


@runtime_checkable
class DescribedVerifier(Protocol):
    """A verifier that has something to say of itself."""

    @property
    def describes(self) -> str:
        """How it judges here."""


class GroundTruth(NamedTuple):
    """What is known of a problem's answer; see `Problem`."""

    reference: str
    choices: tuple[str, ...] = ()
    tests: bytes | None = None


GroundTruthReader = Callable[[dict[str, Any], str, str], GroundTruth]
"""What is known of the answer, out of a row, the column that holds it, and the prompt's id; raises DataError."""


def ground_truth_of_column(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The right answer as a column has it: text, or a number."""
    return GroundTruth(text_of(row, column, needed=True))


class TaskKind(NamedTuple):
    """A kind of task. problems: those of a task. verifier: opens one, which is closed when the evaluation is over. known:
    what a row of prompts says of its answer; columns: those that it looks at besides the answer's."""

    problems: Callable[[Task], Iterable[Problem]]
    verifier: Callable[[Programs], AbstractContextManager[Verifier]]
    ground_truth: GroundTruthReader = ground_truth_of_column
    columns: Collection[str] = ()


def table_problems(
    task: Task,
    known: GroundTruthReader = ground_truth_of_column,
    *,
    columns: Collection[str] = (),
    shown: Callable[[Any], Any] = lambda row: row,
) -> list[Problem]:
    """The problems in a task's table, in its order.

    A problem that comes again, by its own id or by its prompt where it has none, is one more problem: it gets a number.
    known, columns: of the bench. shown: gives rows a form that prompts may have, unless the task says which column is the
    prompt.

    Raises:
        DataError: the table cannot be read, or a row is no prompt or has no answer; names file and line.
        ConfigError: a package is missing.
    """
    assert task.path is not None

    def told(row: dict[str, Any], name: str) -> tuple[GroundTruth, str | None]:
        found = known(row, task.answer, name)
        return found, next((family for column in FAMILIES if (family := text_of(row, column))), None)

    prompts = read(
        task.path,
        task.split,
        task.limit,
        prompt=task.prompt,
        columns=(task.answer, *FAMILIES, *columns),
        shown=shown,
        known=told,
    ).prompts
    names: set[str] = set()
    found = []
    for prompt in prompts:
        name = check_columns(prompt.id, names)
        known_of_it, family = prompt.ground_truth
        found.append(Problem(f"{task.name}/{name}", task.name, family, prompt.messages, *known_of_it))
    return found


def check_columns(name: str, names: set[str]) -> str:
    """A name that is not among these, where it is among them with a number behind it; it is among them from now on."""
    found, times = name, 1
    while found in names:
        times += 1
        found = f"{name}/{times}"
    names.add(found)
    return found


def problems_of(tasks: Sequence[Task], task_kinds: Mapping[str, TaskKind]) -> dict[str, list[Problem]]:
    """The problems of every task, by the task's name.

    Raises:
        DataError, ConfigError: see `table_problems`; or a task's verifier is not among the benches.
    """
    found = {}
    for task in tasks:
        if task.verifier not in task_kinds:
            raise ConfigError(
                f"task {task.name!r}: there is no verifier {task.verifier!r} here, only {', '.join(task_kinds)}; pass its "
                "task kind to evaluate as well (that of mini is in tessy_jax.mini.evaluation)"
            )
        found[task.name] = list(task_kinds[task.verifier].problems(task))
    return found


def text_of(row: dict[str, Any], column: str, *, needed: bool = False) -> str:
    """What a column holds, as text; empty where there is nothing, unless it is needed."""
    value = row.get(column)
    if value is None and not needed:
        return ""
    if value is None:
        known = ", ".join(f"`{name}`" for name in sorted(row)[:12])
        raise DataError(
            f"has no `{column}`, which should hold the right answer; it holds {known}: set answer to one of them"
        )
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{column} is a {type(value).__name__}; it should be a string or a number")
    text = str(value)
    if needed and not text.strip():
        raise DataError(f"{column} is empty; it should hold the right answer")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{column} holds half of a surrogate pair, which is no text; remove it") from None
    return text
