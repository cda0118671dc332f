"""The miniature world's tasks, for `evaluate`."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import islice
from typing import Any, get_args

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.evaluate.tasks import GroundTruth, Problem, TaskKind, Verdict
from tessy_jax.mini.tasks import Family, item_of, items
from tessy_jax.mini.verify import is_right
from tessy_jax.text.chat import CLOSE


class MiniVerifier:
    """The item's answer, and nothing else but words of style; see `mini.verify.is_right`."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `evaluate.tasks.Verifier`."""
        right = is_right(item_of(problem.own_id), CLOSE + answer)
        return Verdict(right, answer.strip(), "right" if right else "wrong_answer")


def problems(task: Task) -> list[Problem]:
    """The items of a task, family by family; their own ids are those of `mini.tasks`.

    Raises:
        ConfigError: there is no such family, or it has not so many items.
    """
    assert task.mini is not None
    known: dict[str, Family] = {family: family for family in get_args(Family)}
    unknown = next((name for name in task.mini.families if name not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"task {task.name!r}: mini.families has {unknown!r}, which is no family; they are {', '.join(known)}"
        )
    return [
        Problem(f"{task.name}/{item.id}", task.name, item.family, [{"role": "user", "content": item.prompt}], item.answer)
        for family in dict.fromkeys(task.mini.families)
        for item in islice(items(known[family], task.mini.split, task.mini.seed), task.mini.items)
    ]


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The answer of the item that a prompt's id names; see `evaluate.tasks.Bench`.

    Raises:
        DataError: it names none, or the prompt is another's.
    """
    item = item_of(name)
    if row.get("prompt") not in (None, item.prompt):
        raise DataError(f"has the id {name!r}, and the prompt of another item; leave prompts of the miniature as they are")
    return GroundTruth(item.answer)


TASK_KINDS: dict[str, TaskKind] = {"mini": TaskKind(problems, lambda how: nullcontext(MiniVerifier()), ground_truth)}
"""To be given to `evaluate`, with its own."""
