"""The verifiers of tasks as judges of a synthesis."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tessy_jax.config import Programs, Verification
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.job import BENCHES, verdict
from tessy_jax.evaluate.programs.pool import processors
from tessy_jax.evaluate.tasks import Bench, Known, Problem, Verifier
from tessy_jax.records import Row
from tessy_jax.synthesis.prompts import Prompt
from tessy_jax.synthesis.verification import Judge, Judges

TASK = "data"
"""The task of which the prompts of a synthesis are the problems."""


def judges(benches: Mapping[str, Bench] = BENCHES) -> Judges:
    """To be given to `synthesize`. benches: by verifier."""

    @contextmanager
    def opened(config: Verification) -> Iterator[Judge]:
        if config.verifier not in benches:
            raise ConfigError(
                f"synthesis.verification: there is no verifier {config.verifier!r} here, only {', '.join(benches)}; give "
                "its bench, too (that of mini is in tessy_jax.mini.evaluation)"
            )
        bench = benches[config.verifier]
        with bench.verifier(config.programs or Programs()) as verifier, ThreadPoolExecutor(processors()) as threads:
            yield _Judge(bench, verifier, config.answer, threads)

    return opened


class _Judge:
    """See `synthesis.verification.Judge`."""

    def __init__(self, bench: Bench, verifier: Verifier, answer: str, threads: Executor) -> None:
        self._bench, self._verifier, self._answer, self._threads = bench, verifier, answer, threads

    @property
    def columns(self) -> Collection[str]:
        return (self._answer, *self._bench.columns)

    def known(self, row: dict[str, Any], name: str) -> Known:
        return self._bench.known(row, self._answer, name)

    def verdicts(self, asked: Sequence[tuple[Prompt, Row]]) -> list[str]:
        return list(self._threads.map(lambda one: self._verdict(*one), asked))

    def _verdict(self, prompt: Prompt, row: Row) -> str:
        known: Known = prompt.known
        problem = Problem(f"{TASK}/{prompt.id}", TASK, None, prompt.messages, *known)
        return verdict(self._verifier, problem, row).why
