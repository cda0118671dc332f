"""Verification of boxed mathematics: compares the contents of the last `\\boxed{…}` with the right answer.

math-verify compares them. A model's text can make it run without end or use all memory (`9^{9^{9^9}}`), and its own time
limit cannot interrupt arithmetic and works only in the main thread. It therefore runs in a separate process, which the
kernel ends after a limit of processor time (see `boxed_worker`). The answer is then wrong, and the next one gets a new
process. The limit is processor time, so that a busy machine gives the same verdicts.

math-verify skips words and units, which `meaning.contradicts` reads. A box with 2,000 characters or more is right only if it
equals the right answer as a text.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
from typing import Any, Self

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate import boxed_worker
from tessy_jax.evaluate.extraction import boxed
from tessy_jax.evaluate.meaning import contradicts, stated_value
from tessy_jax.evaluate.readings import LONG, decimal, latex
from tessy_jax.evaluate.references import FORMS, accepted, value_of
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict, table_problems, text_of


class Boxed:
    """Verifies boxed mathematics; a context manager. seconds: processor time per answer.

    Raises:
        ConfigError: math-verify is missing.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("verifier boxed: math-verify is not installed; pip install math-verify")
        self.seconds = seconds
        self._worker: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._end()

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        verdict = _by_text(problem, answer)
        if verdict.answer is None or verdict.right:
            return verdict
        if len(verdict.answer) >= LONG or contradicts(verdict.answer, problem.reference):
            return verdict
        why = self._compare(latex(verdict.answer), latex(problem.reference))
        return Verdict(why == "right", verdict.answer, why)

    def _compare(self, contents: str, reference: str) -> str:
        """The worker's reply; "timeout" if it reached its limit, "unreadable" if it ended for another reason."""
        with self._lock:
            worker = self._worker = self._worker or self._start()
            assert worker.stdin is not None
            assert worker.stdout is not None
            request = {"answer": contents, "reference": reference, "seconds": self.seconds}
            try:
                worker.stdin.write(json.dumps(request) + "\n")
                worker.stdin.flush()
                reply = worker.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if reply:
                return str(json.loads(reply))
            return "timeout" if self._end() == -signal.SIGPROF else "unreadable"

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", boxed_worker.__file__]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True, encoding="ascii")
        assert worker.stdout is not None
        if not worker.stdout.readline():
            raise ConfigError(
                f"verifier boxed: math-verify cannot be used (its process ended with {worker.wait()}); run "
                f"`{' '.join(command)} </dev/null` to see its error, or reinstall math-verify"
            )
        return worker

    def _end(self) -> int:
        """Ends the worker, if there is one. Returns its exit code."""
        worker, self._worker = self._worker, None
        if worker is None:
            return 0
        try:
            worker.communicate(timeout=5)  # closes its input, which ends it
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()
        return worker.returncode


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The right answer of a row, which may hold it in a solution. See `tasks.GroundTruthReader`.

    Raises:
        DataError: the column does not hold exactly one answer, or the verifier does not accept it in a box.
    """
    reference = value_of(text_of(row, column, needed=True), column)
    return accepted(GroundTruth(reference), _by_text, column, "boxed", FORMS[:1])


def problems(task: Task) -> list[Problem]:
    """See `table_problems`."""
    return table_problems(task, ground_truth)


def _by_text(problem: Problem, answer: str) -> Verdict:
    """The verdict without math-verify: an answer is right if it equals the right answer as a text or as a number."""
    contents = boxed(answer)
    if contents is None or not contents.strip():
        return Verdict(False, None, "no_answer")
    right = _equal_text_or_number(contents, problem.reference)
    return Verdict(right, contents.strip(), "right" if right else "wrong_answer")


def _equal_text_or_number(answer: str, reference: str) -> bool:
    """Whether two answers are equal as texts or as numbers, without math-verify."""
    a, b = answer.strip(), reference.strip()
    if a == b:
        return True
    right = decimal(b)
    return right is not None and (stated_value(a) == right or stated_value(a, decimal) == right)
