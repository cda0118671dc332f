"""Sandboxes of every level that works on this machine; tests of other levels are skipped with the reason."""

import json
import os
import threading
import time
from dataclasses import replace

import psutil
import pytest

from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Programs
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.programs.levels import LEVELS
from tessy_jax.evaluate.programs.pool import Limits, Sandbox
from tessy_jax.evaluate.programs.rows import program_problems
from tessy_jax.evaluate.programs.verifier import ProgramVerifier

NAMES = [level.name for level in LEVELS]
MEMORY = 256 << 20
SHORT = Limits(cpu=1.0, wall=2.0, memory=MEMORY, output=1 << 20, files=8 << 20)
LATE = 10.0
"""Seconds after its limit within which a program must have ended; machines may be busy."""


@pytest.fixture(scope="session", params=NAMES)
def sandbox(request):
    """A sandbox of each level, with two servers."""
    try:
        opened = Sandbox(MEMORY, 2, unsafe=True, level=request.param)
    except ConfigError as error:
        pytest.skip(str(error).split("(", 1)[1].split(");")[0])
    with opened:
        assert both_servers_work(opened)
        yield opened


def both_servers_work(sandbox):
    """Whether two servers run programs at the same time. Afterwards the sandbox has two servers."""
    program, outputs = b"import time\ntime.sleep(0.3)\nprint(input())", []
    threads = [threading.Thread(target=lambda: outputs.append(sandbox.run(program, b"x", SHORT).output)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outputs == [b"x\n", b"x\n"]


def run(sandbox, program, given=b"", **limits):
    started = time.monotonic()
    outcome = sandbox.run(program.encode(), given, replace(SHORT, **limits))
    assert time.monotonic() - started < SHORT.wall + LATE
    return outcome


@pytest.fixture
def nothing_left(sandbox):
    """Checks that a test leaves no descendant process."""
    process = psutil.Process(os.getpid())
    before = {child.pid for child in process.children(recursive=True)}
    yield
    assert {child.pid for child in process.children(recursive=True)} <= before


@pytest.fixture(scope="session")
def verify(tmp_path_factory):
    """Verifies a program on a row, at the strongest available level; returns the verdict."""
    folder = tmp_path_factory.mktemp("rows")
    settings = Programs(seconds=0.25, seconds_in_all=2.0, memory=256, output=1)
    with ProgramVerifier(settings, unsafe=True) as verifier:
        yield lambda row, program: verifier.verify(problem_of(row, folder), f"So:\n```python\n{program}\n```\n")


def problem_of(row, folder):
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return program_problems(Task(name="t", path=str(file), verifier="programs"))[0]
