"""Runs the program in an answer on a problem's tests, and compares outside of the sandbox what it gives."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Programs
from tessy_jax.errors import ConfigError, TessyError
from tessy_jax.evaluate.programs.answer import program
from tessy_jax.evaluate.programs.graders import compat, compat_value, strict, strict_value
from tessy_jax.evaluate.programs.levels import ENVIRONMENT
from tessy_jax.evaluate.programs.pool import Limits, Outcome, Sandbox, ServerError, processors
from tessy_jax.evaluate.programs.rows import COLUMNS, Suite, ground_truth, program_problems
from tessy_jax.evaluate.tasks import Problem, TaskKind, Verdict

MIB = 1 << 20
LONGER = 16
"""Times as long as the expected output, and a MiB, is what more than that cannot be right."""
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
WHYS = {"timeout": "timeout", "memory": "memory_limit", "output": "output_limit", "killed": "runtime_error"}
NEVER: dict[str, bool] = {"strict": False, "compat": False}


class ProgramVerifier:
    """Judges programs; a context manager. unsafe: whether plain processes will do where there is nothing stronger.

    A program passes a test if it ends by itself, within its limits and with exit code 0, and gives what it should. It is
    right if it passes all; at the first that neither grader lets pass, the rest is left out.

    Raises:
        ConfigError: there is no sandbox.
        TessyError: while judging, the sandbox itself does not do its work.
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
        """How programs are kept apart here, and judged."""
        return f"programs run in the sandbox {self.sandbox.describes}; the grader {self.settings.grader} decides"

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        source = program(answer)
        if source is None:
            return Verdict(False, None, "no_program", NEVER)
        suite = Suite.of(problem)
        try:
            if suite.language == "python":
                return self._verified(suite, source, partial(self.sandbox.run, _bytes(source), names=suite.names))
            built = self.sandbox.run(BUILD.encode(), _bytes(source), COMPILING, build=True)
            if built.ended != "exited" or built.code:
                return Verdict(False, source, "compile_error", NEVER)
            return self._verified(suite, source, partial(self.sandbox.run, built.output, native=True))
        except ServerError as error:
            raise TessyError(
                f"{problem.id}: the sandbox {self.sandbox.level.name} failed ({error}); see that the machine has memory and "
                "processes to spare, and give the same command again: it goes on from there"
            ) from error

    def _verified(self, suite: Suite, source: str, run: Callable[..., Outcome]) -> Verdict:
        left, passed = self.settings.seconds_in_all, {"strict": True, "compat": True}
        clock = _wall(left)
        why, first = "right", None
        for number, test in enumerate(suite.tests):
            seconds = min(self.settings.seconds, left)
            wall = min(_wall(self.settings.seconds), clock)
            most = min(self.settings.output * MIB, LONGER * _expected(test) + MIB)
            limits = Limits(seconds, wall, self.settings.memory * MIB, most)
            token = secrets.token_hex(16)
            outcome = run(_given(test), limits, task=_task(test, token))
            if outcome.ended != "exited":
                said, reason = NEVER, WHYS[outcome.ended]
            elif outcome.code:
                said, reason = NEVER, "runtime_error"
            else:
                said, reason = _compared(test, outcome.output, token), "wrong_answer"
            passed = {name: passed[name] and said[name] for name in passed}
            if first is None and not said[self.settings.grader]:
                why, first = reason, number
            if not any(passed.values()):
                break
            left, clock = left - outcome.cpu, clock - outcome.wall
            if min(left, clock) <= 0 and number + 1 < len(suite.tests):
                if first is None:
                    why, first = "timeout", number + 1
                return Verdict(False, source, why, NEVER, first)
        return Verdict(passed[self.settings.grader], source, why, passed, first)


def task_kind(*, unsafe: bool = False) -> TaskKind:
    """That of programs. unsafe: see `ProgramVerifier`."""

    def opened(how: Programs) -> ProgramVerifier:
        return ProgramVerifier(how, unsafe=unsafe)

    def problems(task: Task) -> list[Problem]:
        found = program_problems(task)
        with opened(task.running):  # whoever lacks a sandbox learns it before any work is done
            pass
        if shutil.which(COMPILER, path=ENVIRONMENT["PATH"]) is None:
            cpp = next((problem.id for problem in found if Suite.of(problem).language == "cpp"), None)
            if cpp is not None:
                raise ConfigError(f"{cpp} asks for C++, and there is no {COMPILER} here; install it (apt-get install g++)")
        return found

    return TaskKind(problems, opened, ground_truth, COLUMNS)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _wall(seconds: float) -> float:
    """By the clock: on a busy machine a program waits, too."""
    return 3 * seconds + 1


def _given(test: dict[str, Any]) -> bytes:
    if "input_file" in test:
        return Path(test["input_file"]).read_bytes()
    return _bytes(test.get("input", ""))


def _expected(test: dict[str, Any]) -> int:
    """Bytes, about."""
    return os.path.getsize(test["output_file"]) if "output_file" in test else len(json.dumps(test.get("output")))


def _task(test: dict[str, Any], token: str) -> dict[str, Any]:
    if "function" in test:
        return {"function": test["function"], "arguments": test["arguments"]}
    if "expression" in test:
        return {"expression": test["expression"]}
    return {"code": test["code"], "token": token} if "code" in test else {}


def _compared(test: dict[str, Any], output: bytes, token: str) -> dict[str, bool]:
    """What both graders say of what a program gave."""
    text = output.decode("utf-8", "replace")
    if "code" in test:
        return dict.fromkeys(NEVER, text == token)
    if "function" in test or "expression" in test:
        try:
            value = _value(json.loads(text))
            if "expression" in test:
                return dict.fromkeys(NEVER, bool(value == _value(test["output"])))
            return {"strict": strict_value(value, test["output"]), "compat": compat_value(value, test["output"])}
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):  # it is not what the runner writes
            return NEVER
    file = test.get("output_file")
    expected = test["output"] if file is None else Path(file).read_bytes().decode("utf-8", "replace")
    return {"strict": strict(text, expected, test.get("checker", "standard")), "compat": compat(text, expected)}


def _value(plain: Any) -> Any:
    """What `box.runner.plain` made plain."""
    if not isinstance(plain, list):
        return plain
    kind, parts = plain
    if kind == "dict":
        return {_value(key): _value(value) for key, value in parts}
    return {"list": list, "tuple": tuple, "set": frozenset, "frozenset": frozenset}[kind](_value(part) for part in parts)
