"""Task verifiers as verifiers of a synthesis."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tessy_jax.config import Programs, Verification
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.job import TASK_KINDS, verdict
from tessy_jax.evaluate.programs.pool import processors
from tessy_jax.evaluate.tasks import CheckingVerifier, GroundTruth, Problem, TaskKind, Verifier
from tessy_jax.records import Row
from tessy_jax.synthesis.prompts import Prompt
from tessy_jax.synthesis.verification import ResponseVerifier, VerifierFactory

TASK = "data"
"""The task name of the problems made from the prompts of a synthesis."""


def response_verifiers(task_kinds: Mapping[str, TaskKind] = TASK_KINDS) -> VerifierFactory:
    """The verifier factory that `synthesize` takes. task_kinds: by the name of the verifier."""

    @contextmanager
    def opened(config: Verification) -> Iterator[ResponseVerifier]:
        if config.verifier not in task_kinds:
            raise ConfigError(
                f"synthesis.verification: there is no verifier {config.verifier!r} here, only {', '.join(task_kinds)}; pass "
                "its task kind as well (that of mini is in tessy_jax.mini.evaluation)"
            )
        task_kind = task_kinds[config.verifier]
        with task_kind.verifier(config.programs or Programs()) as verifier, ThreadPoolExecutor(processors()) as threads:
            yield _TaskVerifier(task_kind, verifier, config.answer, threads)

    return opened


class _TaskVerifier:
    """See `synthesis.verification.ResponseVerifier`."""

    def __init__(self, task_kind: TaskKind, verifier: Verifier, answer: str, threads: Executor) -> None:
        self._task_kind, self._verifier, self._answer, self._threads = task_kind, verifier, answer, threads

    @property
    def columns(self) -> Collection[str]:
        return (self._answer, *self._task_kind.columns)

    def ground_truth(self, row: dict[str, Any], name: str) -> GroundTruth:
        truth = self._task_kind.ground_truth(row, self._answer, name)
        if isinstance(self._verifier, CheckingVerifier):
            self._verifier.check(truth)
        return truth

    def verdicts(self, asked: Sequence[tuple[Prompt, Row]]) -> list[str]:
        return list(self._threads.map(lambda response: self._verdict(*response), asked))

    def _verdict(self, prompt: Prompt, row: Row) -> str:
        truth: GroundTruth = prompt.ground_truth
        problem = Problem(f"{TASK}/{prompt.id}", TASK, None, prompt.messages, *truth)
        return verdict(self._verifier, problem, row).why
