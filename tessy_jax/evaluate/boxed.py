"""Boxed mathematics: is what stands in the last `\\boxed{…}` equal to the right answer?

math-verify says so. What a model writes may take it for ever, or all memory (`9^{9^{9^9}}`), and its own time limit cannot
interrupt arithmetic, nor work outside the main thread. So it runs in a process of its own, which the kernel ends when it has
computed for too long (see `boxed_worker`); then the answer is wrong, and the next one gets a new process. The limit is of
processor time, so that a busy machine gives the same verdicts.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
from typing import Self

from tessy_jax.errors import ConfigError
from tessy_jax.evaluate import boxed_worker
from tessy_jax.evaluate.answers import boxed, number
from tessy_jax.evaluate.tasks import Problem, Verdict


class Boxed:
    """Verifies boxed mathematics; a context manager. seconds: of processor time that an answer may take.

    Raises:
        ConfigError: math-verify is missing.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("verifier boxed: needs math-verify, which is missing; pip install math-verify")
        self.seconds = seconds
        self._worker: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._end()

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`. The right answer may stand in a box, too."""
        found = boxed(answer)
        if found is None or not found.strip():
            return Verdict(False, None, "no_answer")
        inside = boxed(problem.reference)
        reference = problem.reference if inside is None else inside
        why = "right" if _plainly(found, reference) else self._compared(found, reference)
        return Verdict(why == "right", found.strip(), why)

    def _compared(self, found: str, reference: str) -> str:
        """What the worker says; "timeout" where it was ended for that, "unreadable" where it broke."""
        with self._lock:
            worker = self._worker = self._worker or self._started()
            assert worker.stdin is not None
            assert worker.stdout is not None
            request = {"answer": found, "reference": reference, "seconds": self.seconds}
            try:
                worker.stdin.write(json.dumps(request) + "\n")
                worker.stdin.flush()
                reply = worker.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if reply:
                return str(json.loads(reply))
            return "timeout" if self._end() == -signal.SIGPROF else "unreadable"

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", boxed_worker.__file__]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True, encoding="ascii")
        assert worker.stdout is not None
        if not worker.stdout.readline():
            raise ConfigError(
                f"verifier boxed: math-verify cannot be used (its process ended with {worker.wait()}); see what "
                f"`{' '.join(command)} </dev/null` says, or reinstall math-verify"
            )
        return worker

    def _end(self) -> int:
        """Ends the worker, if there is one; how it ended."""
        worker, self._worker = self._worker, None
        if worker is None:
            return 0
        try:
            worker.communicate(timeout=5)  # closes its input, which ends it
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()
        return worker.returncode


def _plainly(found: str, reference: str) -> bool:
    """Whether two answers are equal without any mathematics."""
    a, b = found.strip(), reference.strip()
    x = number(a)
    return a == b or (x is not None and x == number(b))
