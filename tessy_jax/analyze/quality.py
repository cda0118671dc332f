"""Quality of the data: pass@1 of the responses that the student learns from (Fig. 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tessy_jax.analyze.data import AnswerCheck, DataSet
from tessy_jax.analyze.sources import Source
from tessy_jax.config.analysis import Quality
from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Programs
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.evaluate.job import verdict
from tessy_jax.evaluate.pass_at_k import Count, pass_at_1
from tessy_jax.evaluate.tasks import Problem, TaskKind
from tessy_jax.mini.tasks import item_of
from tessy_jax.records import Row

TASK = "data"
DIGITS = 6


@contextmanager
def open_verifiers(quality: Quality, task_kinds: Mapping[str, TaskKind]) -> Iterator[Callable[[Source], AnswerCheck]]:
    """Yields a function that returns the answer check of a data set. task_kinds: by verifier.

    Raises:
        ConfigError: the verifier does not exist.
        DataError: raised by the check if the prompt of a response has no reference answer.
    """
    if quality.verifier not in task_kinds:
        raise ConfigError(
            f"analysis.quality: there is no verifier {quality.verifier!r} here; use one of {', '.join(task_kinds)}"
        )
    with task_kinds[quality.verifier].verifier(Programs()) as verifier:

        def of(source: Source) -> AnswerCheck:
            known = {} if quality.verifier == "mini" else _problems(source, quality, task_kinds[quality.verifier])

            def check(row: Row) -> bool:
                problem = _item(source, row) if quality.verifier == "mini" else known.get(row.prompt_id)
                if problem is None:
                    raise DataError(
                        f"{source.place}: has a response to {row.prompt_id!r}, which is not in {source.prompts.path}; "
                        "restore the prompts of that run, or set analysis.quality to null"
                    )
                return verdict(verifier, problem, row).right

            return check

        yield of


def _problems(source: Source, quality: Quality, task_kind: TaskKind) -> dict[str, Problem]:
    """Returns the problems of a data set by prompt id."""
    prompts = source.prompts
    named: dict[str, Any] = {name: getattr(prompts, name) for name in ("path", "split", "limit", "prompt")}
    task = Task.model_validate({**named, "name": TASK, "answer": quality.answer, "verifier": quality.verifier})
    return {problem.own_id: problem for problem in task_kind.problems(task)}


def _item(source: Source, row: Row) -> Problem:
    """Returns the problem of the miniature with the prompt id of the row."""
    try:
        item = item_of(row.prompt_id)
    except DataError as error:
        raise DataError(f"{source.place}: {error}; or set analysis.quality.verifier to exact or boxed") from None
    return Problem(f"{TASK}/{item.id}", TASK, item.family, list(row.messages[:-1]), item.answer)


def summarize(sets: Mapping[str, Sequence[DataSet]], confidence: float) -> dict[str, Any]:
    """Returns pass@1 with its interval by variant; prompts of all jobs have equal weight. failures: failed responses, which
    are not part of the data."""
    variants = {}
    for name, own in sets.items():
        counts = [Count(samples, right) for data_set in own for right, samples in data_set.right.values()]
        mean, low, high = pass_at_1(counts, confidence)
        variants[name] = {
            "pass@1": round(mean, DIGITS),
            "interval": [round(low, DIGITS), round(high, DIGITS)],
            "prompts": len(counts),
            "responses": sum(data_set.responses for data_set in own),
            "right": sum(right for data_set in own for right, _ in data_set.right.values()),
            "failures": sum(data_set.failures for data_set in own),
        }
    return {"confidence": confidence, "variants": variants}
