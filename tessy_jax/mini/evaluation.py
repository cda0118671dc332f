"""The tasks of the miniature, for `evaluate`."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import islice
from typing import Any, get_args

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.evaluate.tasks import GroundTruth, Problem, TaskKind, Verdict
from tessy_jax.mini.tasks import Family, item_of, items
from tessy_jax.mini.verify import is_right
from tessy_jax.records import CLOSE


class MiniVerifier:
    """Accepts the item's answer, alone or among words of style; see `mini.verify.is_right`."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `evaluate.tasks.Verifier`."""
        right = is_right(item_of(problem.own_id), CLOSE + answer)
        return Verdict(right, answer.strip(), "right" if right else "wrong_answer")


def problems(task: Task) -> list[Problem]:
    """The items of a task, family by family; their `own_id` is the id of `mini.tasks`.

    Raises:
        ConfigError: a family is unknown, or has fewer items.
    """
    assert task.mini is not None
    known: dict[str, Family] = {family: family for family in get_args(Family)}
    unknown = next((name for name in task.mini.families if name not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"task {task.name!r}: mini.families has {unknown!r}, which is not a family; they are {', '.join(known)}"
        )
    return [
        Problem(f"{task.name}/{item.id}", task.name, item.family, [{"role": "user", "content": item.prompt}], item.answer)
        for family in dict.fromkeys(task.mini.families)
        for item in islice(items(known[family], task.mini.split, task.mini.seed), task.mini.items)
    ]


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The answer of the item that a prompt's id names; see `evaluate.tasks.TaskKind`.

    Raises:
        DataError: the id names no item, or the prompt is that of another item.
    """
    item = item_of(name)
    if row.get("prompt") not in (None, item.prompt):
        raise DataError(f"has the id {name!r} and the prompt of another item; use the prompts of the miniature unchanged")
    return GroundTruth(item.answer)


TASK_KINDS: dict[str, TaskKind] = {"mini": TaskKind(problems, lambda programs: nullcontext(MiniVerifier()), ground_truth)}
"""The task kinds of the miniature, an argument of `evaluate`."""
