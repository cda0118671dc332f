"""`tessy evaluate`: a model answers the problems of tasks, and verifiers check the answers.

The run folder holds config.yaml, summary.json and:

- `prompts.jsonl`: the problems;
- `rollouts`: the run folder of the synthesis in which the model answers them;
- `verdicts.jsonl`: one line per response, in the order of the problems.

One synthesis with the student alone and one attempt writes the responses of all tasks. They share the lanes, and they are
saved and resumed like any other responses. Tasks may use different numbers of samples: each row of prompts gets the greatest
common divisor of these numbers as its rollouts, and a task repeats its rows until they give its number of samples. The
rollouts of a repeated row are numbered consecutively (see `synthesis.prompts.jobs`), so that a problem has rollouts
0…samples−1. A response depends only on seed, problem and rollout; other tasks do not change it.
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
from tessy_jax.evaluate import answers, boxed, choices, integers
from tessy_jax.evaluate.programs.pool import processors
from tessy_jax.evaluate.programs.verifier import task_kind
from tessy_jax.evaluate.summary import VerifiedResponse, summarize
from tessy_jax.evaluate.tasks import DescribedVerifier, Problem, TaskKind, Verdict, Verifier, problems_of
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import OnPrimary
from tessy_jax.records import Failure, Key, Row
from tessy_jax.store import RunReader, RunStore
from tessy_jax.store.opening import finished
from tessy_jax.synthesis.job import synthesize

logger = logging.getLogger(__name__)

TASK_KINDS: dict[str, TaskKind] = {
    "exact": TaskKind(answers.problems, lambda programs: nullcontext(answers.Exact()), answers.ground_truth),
    "boxed": TaskKind(boxed.problems, lambda programs: boxed.Boxed(), boxed.ground_truth),
    "choice": TaskKind(
        choices.problems, lambda programs: nullcontext(choices.Choice()), choices.ground_truth, choices.COLUMNS
    ),
    "integer": TaskKind(integers.problems, lambda programs: nullcontext(integers.Integer()), integers.ground_truth),
    "programs": task_kind(),
}
"""The task kinds by the name of their verifier. The caller adds the one of `mini.evaluation`, which this module cannot
import."""
PROMPTS, VERDICTS = "prompts.jsonl", "verdicts.jsonl"
VERIFIED_AT_ONCE = 512
"""Number of responses in memory during verification."""


class EvaluationResult(NamedTuple):
    """A finished evaluation. summary: the saved summary. student: the weights on the mesh; None if they were not passed and
    all responses were written before."""

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
    """Runs or resumes an evaluation; reads the result of a finished one. Every process calls this function: all of them
    write responses; process 0 reads the problems, writes the prompts for the others and verifies the responses.

    student: the weights, if they are already on this mesh; the call donates them, and the result holds their replacement.
    task_kinds: by the name of the verifier. log: receives the notes of the verifiers and the start-up check, which shows the
    first prompt as the model reads it.

    Raises:
        TessyError: the configuration, a task, the model or the output is invalid; raised before any device work.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        verification = OnPrimary(lambda: _open(stack, config, task_kinds, log))
        state = verification.run(lambda opened: opened.state())
        config = Evaluate.model_validate(yaml.safe_load(state["config"]))
        if state["summary"] is not None:
            return EvaluationResult(state["summary"], student)
        if not state["written"]:
            student = synthesize(synthesis_config(config), student, progress=progress, log=log).student
        return EvaluationResult(verification.run(lambda opened: opened.run(started)), student)


def rollouts(output: str) -> str:
    """The run folder of the synthesis that writes an evaluation's responses."""
    return f"{output.rstrip('/')}/rollouts"


def verdict(verifier: Verifier, problem: Problem, response: Row | Failure) -> Verdict:
    """The verdict on a response. The verifier reads the text from the first answer span on. A failed response is wrong, with
    the reason of the failure; a response whose thinking does not close is a failure."""
    if isinstance(response, Failure):
        return Verdict(False, None, response.reason)
    start = next((span.start for span in response.spans if span.phase == "answer"), len(response.content))
    answer = response.content[start:]
    return verifier.verify(problem, answer) if answer.strip() else Verdict(False, None, "no_answer")


def _keep_prompts(store: RunStore, config: Evaluate, problems: Mapping[str, Sequence[Problem]]) -> None:
    """Writes the problems to the run folder, or checks that it holds the same problems.

    Raises:
        ConfigError: the run folder holds other problems.
    """
    rollouts_per_row = _rollouts_per_row(config)
    rows = [
        json.dumps(problem.to_json(), ensure_ascii=False) + "\n"
        for task in config.tasks
        for problem in problems[task.name]
        for _ in range(task.samples // rollouts_per_row)
    ]
    data, before = "".join(rows).encode("utf-8"), store.file(PROMPTS)
    if before is not None and before != data:
        raise ConfigError(
            f"{config.output}: holds an evaluation of other problems: the data of a task has changed since; set another "
            "output, or restore the data"
        )
    store.save_config(dump(config))
    if before is None:
        store.files.put(PROMPTS, data)


def _notes(verifiers: Mapping[str, Verifier]) -> dict[str, str]:
    """The description of each verifier that has one, by task."""
    return {name: verifier.describes for name, verifier in verifiers.items() if isinstance(verifier, DescribedVerifier)}


def _rollouts_per_row(config: Evaluate) -> int:
    return math.gcd(*(task.samples for task in config.tasks))


def synthesis_config(config: Evaluate) -> Synthesize:
    """The configuration of the synthesis that writes the responses."""
    return Synthesize.model_validate(
        {
            "output": rollouts(config.output),
            "seed": config.seed,
            "mesh": config.mesh,
            "date": config.date,
            "data": {
                "path": f"{os.path.expanduser(config.output).rstrip('/')}/{PROMPTS}",
                "rollouts": _rollouts_per_row(config),
            },
            "student": config.student,
            "synthesis": config.synthesis.model_dump(),
        }
    )


def _open(
    stack: ExitStack, config: Evaluate, task_kinds: Mapping[str, TaskKind], log: Callable[[str], None]
) -> _Verification:
    """Reads the problems and opens the run folder and, if it is unfinished, the verifiers for the lifetime of the stack."""
    problems = problems_of(config.tasks, task_kinds)
    store = stack.enter_context(RunStore(config.output))
    reconciled = reconcile(config, store.config())
    _keep_prompts(store, reconciled, problems)
    verifiers: dict[str, Verifier] = {}
    if store.summary() is None:
        for task in config.tasks:
            verifiers[task.name] = stack.enter_context(task_kinds[task.verifier].verifier(task.running))
    for name, note in _notes(verifiers).items():
        log(f"task {name}: {note}")
    return _Verification(reconciled, store, problems, verifiers)


class _Verification(NamedTuple):
    """The data that verification needs, on process 0. problems, verifiers: by task; a finished one has no verifiers."""

    config: Evaluate
    store: RunStore
    problems: Mapping[str, Sequence[Problem]]
    verifiers: Mapping[str, Verifier]

    def state(self) -> dict[str, Any]:
        """The state of the run folder: `config` as YAML, `summary` (None before the end), and whether all responses are
        `written`."""
        summary, written = self.store.summary(), finished(rollouts(self.config.output)) is not None
        return {"config": dump(self.config), "summary": summary, "written": written}

    def run(self, started: float) -> dict[str, Any]:
        """Verifies all responses; saves the verdicts and the summary. Returns the summary. started: start of the evaluation,
        as `time.perf_counter()`."""
        config = self.config
        verified = _verify_all(config.tasks, self.problems, RunReader(rollouts(config.output)), self.verifiers)
        lines = (json.dumps(response.to_json(), ensure_ascii=False) + "\n" for response in verified)
        self.store.files.put(VERDICTS, "".join(lines).encode("utf-8"))
        summary = {
            "student": config.student.model,
            **summarize(config.tasks, verified, config.confidence, _notes(self.verifiers)),
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
    """All responses with their verdicts, in the order of tasks, problems and rollouts.

    Raises:
        DataError: a response is missing.
    """
    by_id = {problem.id: problem for own in problems.values() for problem in own}

    def verify(response: Row | Failure) -> VerifiedResponse:
        problem = by_id[response.prompt_id]
        failed = isinstance(response, Failure)
        tokens = None if isinstance(response, Failure) else int(response.meta["tokens_student"] or 0)
        own_verdict = verdict(verifiers[problem.task], problem, response)
        return VerifiedResponse(problem, response.rollout, own_verdict, failed, tokens)

    verified: dict[Key, VerifiedResponse] = {}
    responses: Iterator[Row | Failure] = chain(reader.rows(), reader.failures())
    with ThreadPoolExecutor(processors()) as threads:
        while chunk := list(islice(responses, VERIFIED_AT_ONCE)):
            verified |= {response.key: result for response, result in zip(chunk, threads.map(verify, chunk), strict=True)}
    keys = [(p.id, rollout) for task in tasks for p in problems[task.name] for rollout in range(task.samples)]
    missing = next((key for key in keys if key not in verified), None)
    if missing is not None:
        raise DataError(
            f"{reader.output}: lacks response {missing[1]} to {missing[0]!r}; remove this folder and evaluate again"
        )
    return [verified[key] for key in keys]
