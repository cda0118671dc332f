"""Runs the program of an answer on a problem's tests, and compares its outputs outside the sandbox."""

from __future__ import annotations

import codecs
import json
import secrets
import shutil
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Self

from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Programs
from tessy_jax.errors import ConfigError, TessyError
from tessy_jax.evaluate.programs.answer import program
from tessy_jax.evaluate.programs.box.runner import RAISED
from tessy_jax.evaluate.programs.graders import compat, compat_value, strict, strict_value
from tessy_jax.evaluate.programs.levels import ENVIRONMENT
from tessy_jax.evaluate.programs.pool import Limits, Outcome, Sandbox, ServerError, processors
from tessy_jax.evaluate.programs.rows import COLUMNS, ground_truth, program_problems
from tessy_jax.evaluate.programs.suite import MIB, Suite, expected_size, file_text, json_value
from tessy_jax.evaluate.tasks import GroundTruth, Problem, TaskKind, Verdict

LONGER = 16
"""Limit of the output: this multiple of the expected size, plus 1 MiB. A longer output cannot be right."""
COMPILING = Limits(cpu=30.0, wall=91.0, memory=2048 * MIB, output=64 * MIB, files=256 * MIB)
COMPILER = "g++"
BUILD = """
import os, subprocess, sys
source, binary = os.path.abspath("program.cpp"), os.path.abspath("program")
with open(source, "wb") as file:
    file.write(sys.stdin.buffer.read())
command = ["g++", "-O2", "-std=c++17", "-pipe", "-w", "-o", binary, source]
if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, env={**os.environ, "TMPDIR": os.getcwd()}).returncode:
    sys.exit(1)
with open(binary, "rb") as file:
    sys.stdout.buffer.write(file.read())
"""
RIGHT = "right"
REASONS = {"timeout": "timeout", "memory": "memory_limit", "output": "output_limit", "killed": "runtime_error"}
NUMBERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda digits: int(digits, 16),
    "complex": lambda parts: complex(*parts),
    "fraction": lambda parts: Fraction(*map(_value, parts)),
    "decimal": Decimal,
}
"""Numbers from the second item that `box.runner.plain` writes, by the first."""
NEVER: dict[str, bool] = {"strict": False, "compat": False}


class ProgramVerifier:
    """Verifies programs; a context manager. unsafe: allows plain processes if no stronger level is available.

    A program passes a test if it exits with code 0 within its limits and its output is right; for compat, it may also exit
    with another code by `sys.exit`. It is right if it passes all tests. After the first test that it fails by both graders,
    the remaining tests are skipped.

    The interpreter has the limits of LiveCodeBench as long as a program passes by compat. A test that the program then fails
    by strict runs once more without these limits, and that run decides for strict; only its time counts towards the total.

    Raises:
        ConfigError: no sandbox is available.
        TessyError: the sandbox itself fails during verification.
    """

    def __init__(self, settings: Programs, *, unsafe: bool = False, level: str | None = None) -> None:
        self.settings = settings
        memory = max(settings.memory * MIB, COMPILING.memory)
        self.sandbox = Sandbox(memory, processors(), unsafe=unsafe or settings.unsafe, level=level)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.sandbox.__exit__(*error)

    @property
    def describes(self) -> str:
        """The sandbox in use, and the grader that decides."""
        return f"programs run in the sandbox {self.sandbox.describes}; the grader {self.settings.grader} decides"

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        source = program(answer)
        if source is None:
            return Verdict(False, None, "no_program", NEVER)
        suite = Suite.of(problem.tests)
        try:
            if suite.language == "python":
                return self._verified(suite, source, partial(self.sandbox.run, _bytes(source), names=suite.names))
            built = self.sandbox.run(BUILD.encode(), _bytes(source), COMPILING, build=True)
            if built.ended != "exited" or built.code:
                return Verdict(False, source, "compile_error", NEVER)
            return self._verified(suite, source, partial(self.sandbox.run, built.output, native=True))
        except ServerError as error:
            raise TessyError(
                f"{problem.id}: the sandbox {self.sandbox.level.name} failed ({error}); make sure that the machine has free "
                "memory and processes, and run the same command again: it resumes"
            ) from error

    def check(self, truth: GroundTruth) -> None:
        """See `tasks.CheckingVerifier`."""
        Suite.of(truth.tests).check_sizes(self.settings.output)

    def _verified(self, suite: Suite, source: str, run: Callable[..., Outcome]) -> Verdict:
        left, passed = self.settings.seconds_in_all, {"strict": True, "compat": True}
        clock = _wall(left)
        reason, first_failed = RIGHT, None
        for number, test in enumerate(suite.tests):
            seconds = min(self.settings.seconds, left)
            wall = min(_wall(self.settings.seconds), clock)
            max_output = min(self.settings.output * MIB, LONGER * expected_size(test) + MIB)
            limits = Limits(seconds, wall, self.settings.memory * MIB, max_output)
            outcome, reasons = _tested(suite, test, partial(run, limits=limits, compat=passed["compat"]))
            limited = suite.language == "python" and passed["compat"] and outcome.ended in ("exited", "killed")
            if limited and passed["strict"] and reasons["strict"] != RIGHT:  # a limit of compat may be the reason
                outcome, again = _tested(suite, test, partial(run, limits=limits, compat=False))
                reasons = {**again, "compat": reasons["compat"]}
            passed = {grader: passed[grader] and reasons[grader] == RIGHT for grader in passed}
            if first_failed is None and not passed[self.settings.grader]:
                reason, first_failed = reasons[self.settings.grader], number
            if not any(passed.values()):
                break
            left, clock = left - outcome.cpu, clock - outcome.wall
            if min(left, clock) <= 0 and number + 1 < len(suite.tests):
                if first_failed is None:
                    reason, first_failed = "timeout", number + 1
                return Verdict(False, source, reason, NEVER, first_failed)
        return Verdict(passed[self.settings.grader], source, reason, passed, first_failed)


def task_kind(*, unsafe: bool = False) -> TaskKind:
    """The task kind of programs. unsafe: see `ProgramVerifier`."""

    def verifier(settings: Programs) -> ProgramVerifier:
        return ProgramVerifier(settings, unsafe=unsafe)

    def problems(task: Task) -> list[Problem]:
        own = program_problems(task)
        with verifier(task.running):  # a missing sandbox is reported before any work
            pass
        if shutil.which(COMPILER, path=ENVIRONMENT["PATH"]) is None:
            cpp = next((problem.id for problem in own if Suite.of(problem.tests).language == "cpp"), None)
            if cpp is not None:
                raise ConfigError(f"{cpp} needs C++, and {COMPILER} is not installed; install it (apt-get install g++)")
        return own

    return TaskKind(problems, verifier, ground_truth, COLUMNS)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _wall(seconds: float) -> float:
    """The wall-clock limit for a limit of processor time: on a busy machine a program also waits."""
    return 3 * seconds + 1


def _given(test: dict[str, Any]) -> bytes:
    if "input_file" in test:
        return Path(test["input_file"]).read_bytes().removeprefix(codecs.BOM_UTF8)
    return _bytes(test.get("input", ""))


def _task(test: dict[str, Any], token: str) -> dict[str, Any]:
    if "function" in test:
        return {"function": test["function"], "arguments": test["arguments"]}
    if "expression" in test:
        return {"expression": test["expression"]}
    return {"code": test["code"], "token": token} if "code" in test else {}


def _tested(suite: Suite, test: dict[str, Any], run: Callable[..., Outcome]) -> tuple[Outcome, dict[str, str]]:
    """Runs a test. Returns the outcome and the reason of each grader: `RIGHT`, or why the program fails."""
    token = secrets.token_hex(16)
    task = _task(test, token)
    outcome = run(_given(test), task=task)
    if outcome.ended != "exited":
        return outcome, dict.fromkeys(NEVER, REASONS[outcome.ended])
    reasons = {name: RIGHT if right else "wrong_answer" for name, right in _compare(test, outcome.output, token).items()}
    if outcome.code:
        reasons["strict"] = "runtime_error"
        if task or suite.language != "python" or outcome.code == RAISED:  # LiveCodeBench ignores the status of sys.exit
            reasons["compat"] = "runtime_error"
    return outcome, reasons


def _compare(test: dict[str, Any], output: bytes, token: str) -> dict[str, bool]:
    """The verdicts of both graders on the output of a program."""
    text = output.decode("utf-8", "surrogateescape")
    if "code" in test:
        return dict.fromkeys(NEVER, text == token)
    if "function" in test or "expression" in test:
        try:
            value = _value(json.loads(text))
            if "expression" in test:
                return dict.fromkeys(NEVER, bool(value == _value(test["output"])))
            expected = json_value(test["output"])
            return {"strict": strict_value(value, expected), "compat": compat_value(value, expected)}
        except (
            ValueError,
            TypeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ):  # not the format that the runner writes
            return NEVER
    expected = file_text(test["output_file"]) if "output_file" in test else test["output"]
    return {"strict": strict(text, expected, test.get("checker", "standard")), "compat": compat(text, expected)}


def _value(plain: Any) -> Any:
    """The inverse of `box.runner.plain`."""
    if not isinstance(plain, list):
        return plain
    kind, parts = plain
    if kind in NUMBERS:
        return NUMBERS[kind](parts)
    if kind == "dict":
        return {_value(key): _value(value) for key, value in parts}
    return {"list": list, "tuple": tuple, "set": frozenset, "frozenset": frozenset}[kind](_value(part) for part in parts)
