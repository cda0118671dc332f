"""Threads, memory, output and files of programs are limited, at every level of the sandbox."""

from dataclasses import replace

import pytest

from tessy_jax.evaluate.programs import levels, pool
from tessy_jax.evaluate.programs.pool import Sandbox
from tests.evaluate.programs.conftest import MEMORY, SHORT, both_servers_work, run

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


def test_the_number_of_threads_is_limited(sandbox):
    assert 32 < int(run(sandbox, THREADS).output) <= 64


@pytest.mark.parametrize("own", [True, False])
def test_without_control_groups_threads_are_limited_or_refused(sandbox, monkeypatch, own):
    monkeypatch.setattr(pool.cgroups, "new_group", lambda *_: None)
    if not own:
        monkeypatch.setattr(pool, "_user", lambda number: None)
        monkeypatch.setattr(levels, "_counts_by_namespace", lambda: False)
    with Sandbox(MEMORY, 1, unsafe=True, level=sandbox.level.name) as opened:
        made = int(run(opened, THREADS).output)
        assert made <= 64
        assert ("no threads" in opened.describes) == (made == 0)
        assert own or made == 0


def test_memory_is_limited(sandbox):
    outcome = run(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))", cpu=5.0, wall=16.0)
    assert outcome.ended == "memory" or "MemoryError" in outcome.errors


def test_the_total_memory_of_a_builds_processes_is_limited(sandbox):
    if "no control groups" in sandbox.describes:
        pytest.skip("this process may not use control groups")
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
    assert both_servers_work(sandbox)


def test_ten_gigabytes_of_output_are_cut(sandbox):
    outcome = run(
        sandbox, "import os\npiece = b'x' * (1 << 20)\nfor _ in range(10 << 10): os.write(1, piece)", cpu=5.0, wall=16.0
    )
    assert (outcome.ended, len(outcome.output)) == ("output", SHORT.output)


def test_only_the_end_of_standard_error_is_kept(sandbox):
    outcome = run(sandbox, "import os\nfor _ in range(2000): os.write(2, b'x' * 65536)\nprint(1)", cpu=5.0, wall=16.0)
    assert (outcome.ended, outcome.output) == ("exited", b"1\n")
    assert len(outcome.errors) <= 4096


def test_the_total_size_of_files_is_limited(sandbox):
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


def test_the_number_of_files_is_limited(sandbox):
    program = """
made = 0
try:
    for made in range(9000): open(f"/tmp/{made}", "x").close()
except OSError: pass
print(made)
"""
    assert int(run(sandbox, program, cpu=5.0, wall=16.0).output) < 4096
