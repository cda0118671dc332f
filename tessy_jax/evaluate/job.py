"""`tessy evaluate`: a model answers the problems of tasks, and what is right is counted.

The run folder holds, besides config.yaml and summary.json: `prompts.jsonl`, the problems; `rollouts`, the run folder of the
synthesis in which the model answers them; `verdicts.jsonl`, a line per response in the order of the problems.

The responses are one synthesis, of the student alone and with one attempt, so that they are written, saved and resumed as
any others are, and all tasks share the lanes. Tasks may want different numbers of samples: every row of prompts gets as many
rollouts as divide all these numbers, and stands there as often as its task needs. Rows that come again have their rollouts
numbered on (see `synthesis.prompts.jobs`), so that those of a problem are 0…samples−1. A response depends on seed, problem
and rollout alone: other tasks beside it change nothing.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from itertools import chain, islice
from typing import Any, NamedTuple

import yaml

from tessy_jax import __version__
from tessy_jax.config import Synthesize, dump, reconcile
from tessy_jax.config.evaluation import Evaluate, Task
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.evaluate import choices, integers
from tessy_jax.evaluate.answers import Exact
from tessy_jax.evaluate.boxed import Boxed
from tessy_jax.evaluate.programs.pool import processors
from tessy_jax.evaluate.programs.verifier import task_kind
from tessy_jax.evaluate.summary import VerifiedResponse, summarize
from tessy_jax.evaluate.tasks import DescribedVerifier, Problem, TaskKind, Verdict, Verifier, problems_of, table_problems
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import on_primary
from tessy_jax.records import Failure, Key, Row
from tessy_jax.store import RunReader, RunStore
from tessy_jax.store.opening import reader_of
from tessy_jax.synthesis.job import synthesize

logger = logging.getLogger(__name__)

TASK_KINDS: dict[str, TaskKind] = {
    "exact": TaskKind(table_problems, lambda how: nullcontext(Exact())),
    "boxed": TaskKind(table_problems, lambda how: Boxed()),
    "choice": TaskKind(choices.problems, lambda how: nullcontext(choices.Choice()), choices.ground_truth, choices.COLUMNS),
    "integer": TaskKind(integers.problems, lambda how: nullcontext(integers.Integer()), integers.ground_truth),
    "programs": task_kind(),
}
"""What tasks may use. `mini.evaluation` has one more, which is for the caller to add: this module is above the miniature."""
PROMPTS, VERDICTS = "prompts.jsonl", "verdicts.jsonl"
VERIFIED_AT_ONCE = 512
"""Responses that are held at once to be judged."""


class EvaluationResult(NamedTuple):
    """An evaluation that is done. summary: is also saved. student: its weights on the mesh; None where they were neither
    given nor needed, everything having been written before."""

    summary: dict[str, Any]
    student: Decoder | None


def evaluate(
    config: Evaluate,
    student: Decoder | None = None,
    *,
    task_kinds: Mapping[str, TaskKind] = TASK_KINDS,
    progress: bool = True,
    log: Callable[[str], None] = logger.info,
) -> EvaluationResult:
    """Runs or continues an evaluation; one that is finished is only read. One process of several does its part: all write
    responses; the first alone has the problems and judges, and puts the prompts where the others read them.

    student: its weights, where they are on this mesh already; those that come back take their place. benches: by verifier.
    tell: gets the start-up check, the first prompt as the model sees it.

    Raises:
        TessyError: what is wrong with configuration, tasks, model or output, before any device work.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        verifications: list[_Verification] = []  # the first process alone has one

        def opened() -> dict[str, Any]:
            problems = problems_of(config.tasks, task_kinds)
            store = stack.enter_context(RunStore(config.output))
            settled = reconcile(config, store.config())
            _keep_prompts(store, settled, problems)
            summary = store.summary()
            if summary is None:
                verifiers = {
                    task.name: stack.enter_context(task_kinds[task.verifier].verifier(task.running)) for task in config.tasks
                }
                for name, words in _notes(verifiers).items():
                    log(f"task {name}: {words}")
                verifications.append(_Verification(settled, store, problems, verifiers))
            return {"config": dump(settled), "summary": summary, "written": _are_written(config.output)}

        begun = on_primary(opened)
        config = Evaluate.model_validate(yaml.safe_load(begun["config"]))
        if begun["summary"] is not None:
            return EvaluationResult(begun["summary"], student)
        if not begun["written"]:
            student = synthesize(_synthesis(config), student, progress=progress, log=log).student
        return EvaluationResult(on_primary(lambda: verifications[0].concluded(started)), student)


def rollouts(output: str) -> str:
    """The run folder in which an evaluation's responses are."""
    return f"{output.rstrip('/')}/rollouts"


def verdict(verifier: Verifier, problem: Problem, response: Row | Failure) -> Verdict:
    """What a response is worth. Of one that its spans divide, only what stands behind the thinking counts; one that failed,
    as those do whose thinking never closes, is wrong for the reason that it failed for."""
    if isinstance(response, Failure):
        return Verdict(False, None, response.reason)
    start = next((span.start for span in response.spans if span.phase == "answer"), len(response.content))
    answer = response.content[start:]
    return verifier.verify(problem, answer) if answer.strip() else Verdict(False, None, "no_answer")


def _keep_prompts(store: RunStore, config: Evaluate, problems: Mapping[str, Sequence[Problem]]) -> None:
    """Writes the problems into the run folder, or sees that they are those that it holds.

    Raises:
        ConfigError: they are others.
    """
    together = _rollouts_of_a_row(config)
    rows = [
        json.dumps(problem.to_json(), ensure_ascii=False) + "\n"
        for task in config.tasks
        for problem in problems[task.name]
        for _ in range(task.samples // together)
    ]
    data, before = "".join(rows).encode("utf-8"), store.file(PROMPTS)
    if before is not None and before != data:
        raise ConfigError(
            f"{config.output}: holds an evaluation of other problems: what a task reads has changed since; name another "
            "output, or put it back"
        )
    store.save_config(dump(config))
    if before is None:
        store.files.put(PROMPTS, data)


def _notes(verifiers: Mapping[str, Verifier]) -> dict[str, str]:
    """By task, what its verifier says of itself."""
    return {name: verifier.describes for name, verifier in verifiers.items() if isinstance(verifier, DescribedVerifier)}


def _rollouts_of_a_row(config: Evaluate) -> int:
    return math.gcd(*(task.samples for task in config.tasks))


def _are_written(output: str) -> bool:
    """Whether all responses are there."""
    reader = reader_of(rollouts(output))
    return reader is not None and reader.summary() is not None  # the last thing that a synthesis writes


def _synthesis(config: Evaluate) -> Synthesize:
    """The run that writes the responses."""
    return Synthesize.model_validate(
        {
            "output": rollouts(config.output),
            "seed": config.seed,
            "mesh": config.mesh,
            "date": config.date,
            "data": {
                "path": f"{os.path.expanduser(config.output).rstrip('/')}/{PROMPTS}",
                "rollouts": _rollouts_of_a_row(config),
            },
            "student": config.student,
            "synthesis": config.synthesis.model_dump(),
        }
    )


class _Verification(NamedTuple):
    """What responses are judged with. problems, verifiers: by task."""

    config: Evaluate
    store: RunStore
    problems: Mapping[str, Sequence[Problem]]
    verifiers: Mapping[str, Verifier]

    def concluded(self, started: float) -> dict[str, Any]:
        """Judges all responses and saves the verdicts and the summary, which it returns. started: on the clock."""
        config = self.config
        judged = _verify_all(config.tasks, self.problems, RunReader(rollouts(config.output)), self.verifiers)
        lines = (json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in judged)
        self.store.files.put(VERDICTS, "".join(lines).encode("utf-8"))
        summary = {
            "student": config.student.model,
            **summarize(config.tasks, judged, config.confidence, _notes(self.verifiers)),
            "version": __version__,
            "seconds": round(time.perf_counter() - started, 3),
        }
        self.store.save_summary(summary)
        return summary


def _verify_all(
    tasks: Sequence[Task],
    problems: Mapping[str, Sequence[Problem]],
    reader: RunReader,
    verifiers: Mapping[str, Verifier],
) -> list[VerifiedResponse]:
    """Every response with its verdict, in the order of tasks, problems and rollouts.

    Raises:
        DataError: one is missing.
    """
    known = {problem.id: problem for own in problems.values() for problem in own}

    def judged(response: Row | Failure) -> VerifiedResponse:
        problem = known[response.prompt_id]
        failed = isinstance(response, Failure)
        tokens = None if isinstance(response, Failure) else int(response.meta["tokens_student"] or 0)
        said = verdict(verifiers[problem.task], problem, response)
        return VerifiedResponse(problem, response.rollout, said, failed, tokens)

    found: dict[Key, VerifiedResponse] = {}
    responses: Iterator[Row | Failure] = chain(reader.rows(), reader.failures())
    with ThreadPoolExecutor(processors()) as threads:
        while some := list(islice(responses, VERIFIED_AT_ONCE)):
            found |= {response.key: one for response, one in zip(some, threads.map(judged, some), strict=True)}
    wanted = [(p.id, rollout) for task in tasks for p in problems[task.name] for rollout in range(task.samples)]
    missing = next((key for key in wanted if key not in found), None)
    if missing is not None:
        raise DataError(
            f"{reader.output}: lacks response {missing[1]} to {missing[0]!r}; remove this folder and evaluate again"
        )
    return [found[key] for key in wanted]
