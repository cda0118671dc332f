"""Every level of the sandbox that this machine has; those that it lacks are skipped, saying why."""

import json
import os

import psutil
import pytest

from tessy_jax.config.evaluation import Programs, Task
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.programs.levels import LEVELS
from tessy_jax.evaluate.programs.pool import Limits, Sandbox
from tessy_jax.evaluate.programs.rows import program_problems
from tessy_jax.evaluate.programs.verifier import ProgramVerifier

NAMES = [level.name for level in LEVELS]
MEMORY = 256 << 20
SHORT = Limits(cpu=1.0, wall=2.0, memory=MEMORY, output=1 << 20, files=8 << 20)


@pytest.fixture(scope="session", params=NAMES)
def sandbox(request):
    """A sandbox of each level, with two servers."""
    try:
        opened = Sandbox(MEMORY, 2, unsafe=True, level=request.param)
    except ConfigError as error:
        pytest.skip(str(error).split("(", 1)[1].split(");")[0])
    with opened:
        yield opened


@pytest.fixture
def nothing_left(sandbox):
    """Sees that what a test ran leaves no process behind, in all that this one has started."""
    ours = psutil.Process(os.getpid())
    sandbox.run(b"pass", b"", SHORT)
    before = {child.pid for child in ours.children(recursive=True)}
    yield
    after = {child.pid for child in ours.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}
    assert len(after) <= len(before) + 4, "more is left than the second server"
    names = {" ".join(psutil.Process(pid).cmdline()[:6]) for pid in after - before if psutil.pid_exists(pid)}
    assert all("-S -s -P -B" in name or "bwrap" in name for name in names), names


@pytest.fixture(scope="session")
def judge(tmp_path_factory):
    """Judges one program on one row, at the strongest level there is: its verdict."""
    folder = tmp_path_factory.mktemp("rows")
    settings = Programs(seconds=0.5, seconds_in_all=2.0, memory=256, output=1)
    with ProgramVerifier(settings, unsafe=True) as verifier:
        yield lambda row, program: verifier.verify(problem_of(row, folder), f"So:\n```python\n{program}\n```\n")


def problem_of(row, folder):
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return program_problems(Task(name="t", path=str(file), verifier="programs"))[0]
