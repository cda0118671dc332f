"""What programs can take has limits, at every level of the sandbox."""

from dataclasses import replace

import pytest

from tessy_jax.evaluate.programs import levels, pool
from tessy_jax.evaluate.programs.pool import Sandbox
from tests.evaluate.programs.conftest import MEMORY, SHORT, both_do_well, run

pytestmark = pytest.mark.usefixtures("nothing_left")

THREADS = """
import threading, time
threading.stack_size(1 << 15)
made = 0
try:
    for made in range(500): threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
except RuntimeError: pass
print(made, flush=True)
import os
os._exit(0)
"""


def test_threads_have_a_limit(sandbox):
    assert 32 < int(run(sandbox, THREADS).output) <= 64


@pytest.mark.parametrize("own", [True, False])
def test_threads_have_a_limit_without_control_groups_or_are_none(sandbox, monkeypatch, own):
    monkeypatch.setattr(pool.cgroups, "made", lambda *_: None)
    if not own:
        monkeypatch.setattr(pool, "_user", lambda number: None)
        monkeypatch.setattr(levels, "_counts_by_namespace", lambda: False)
    with Sandbox(MEMORY, 1, unsafe=True, level=sandbox.level.name) as found:
        made = int(run(found, THREADS).output)
        assert made <= 64
        assert ("no threads" in found.describes) == (made == 0)
        assert own or made == 0


def test_memory_has_a_limit(sandbox):
    outcome = run(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))", cpu=5.0, wall=16.0)
    assert outcome.ended == "memory" or "MemoryError" in outcome.errors


def test_memory_of_all_processes_of_a_build_together_has_a_limit(sandbox):
    if "no control groups" in sandbox.describes:
        pytest.skip("there are no control groups here that this process may use")
    program = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        x = bytearray(100 << 20)
        for place in range(0, len(x), 4096): x[place] = 1
        time.sleep(0.5)
        os._exit(0)
for _ in range(8): os.wait()
"""
    outcome = sandbox.run(program.encode(), b"", replace(SHORT, cpu=10.0, wall=20.0), build=True)
    assert outcome.ended == "memory", f"800 MiB of {MEMORY >> 20}"
    assert both_do_well(sandbox)


def test_ten_gigabytes_of_output_are_cut(sandbox):
    outcome = run(
        sandbox, "import os\npiece = b'x' * (1 << 20)\nfor _ in range(10 << 10): os.write(1, piece)", cpu=5.0, wall=16.0
    )
    assert (outcome.ended, len(outcome.output)) == ("output", SHORT.output)


def test_standard_error_without_end_is_not_kept(sandbox):
    outcome = run(sandbox, "import os\nfor _ in range(2000): os.write(2, b'x' * 65536)\nprint(1)", cpu=5.0, wall=16.0)
    assert (outcome.ended, outcome.output) == ("exited", b"1\n")
    assert len(outcome.errors) <= 4096


def test_files_have_a_limit_together(sandbox):
    program = """
total = 0
try:
    for name in range(10000):
        with open(f"/tmp/{name}", "wb") as file: total += file.write(b"x" * (1 << 16))
except OSError: pass
print(total)
"""
    outcome = run(sandbox, program, cpu=5.0, wall=16.0)
    assert int(outcome.output) <= SHORT.files


def test_the_number_of_files_has_a_limit(sandbox):
    program = """
made = 0
try:
    for made in range(9000): open(f"/tmp/{made}", "x").close()
except OSError: pass
print(made)
"""
    assert int(run(sandbox, program, cpu=5.0, wall=16.0).output) < 4096
