"""Tests of the persistent compilation cache: later starts of a job load their programs instead of compiling them."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, compiling
from tests.small_job import job

CODE = """
import sys, jax, jax.numpy as jnp
from tessy_jax import compile_cache
compile_cache.keep_programs({where!r}, print)
jax.jit(lambda x: jnp.tanh(x @ x)).lower(jnp.ones((8, 8))).compile()
print(compile_cache.hits())
"""


def started(folder, where=True, **variables):
    """The lines that a compiling process prints: the message, if any, and the number of cache hits."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
    environment = keep | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(ROOT), **variables}
    code = CODE.format(where=where)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_the_second_start_loads_its_programs_from_the_users_cache_directory(tmp_path):
    message, hits = started(tmp_path)
    assert message.startswith(f"compilation cache: {tmp_path}/tessy_jax/programs/")
    assert hits == "0"
    again, hits = started(tmp_path)
    assert again == message
    assert int(hits) >= 1


def test_a_given_folder_is_used_and_false_turns_the_cache_off(tmp_path):
    assert started(tmp_path / "unused", str(tmp_path / "mine"))[0] == f"compilation cache: {tmp_path}/mine"
    assert any((tmp_path / "mine").iterdir())
    assert started(tmp_path / "off", False) == ["0"]
    assert not (tmp_path / "off").exists()
    assert not (tmp_path / "unused").exists()


def test_a_cache_that_is_already_configured_is_not_changed(tmp_path):
    assert started(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs")) == ["0"]
    assert not (tmp_path / "ours").exists()


def test_the_message_names_a_folder_that_is_not_writable_and_the_job_continues(tmp_path):
    (tmp_path / "file").write_text("")
    message, hits = started(tmp_path, str(tmp_path / "file" / "cache"))
    assert message.startswith(f"compilation cache: off, because {tmp_path}/file/cache is not writable; set compile_cache to")
    assert hits == "0"


@pytest.mark.slow
def test_the_second_start_of_a_job_compiles_nothing_even_in_a_new_run_folder(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XLA_FLAGS": compiling()}
    seconds = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "tessy_jax.cli", "run", str(job(tmp_path, name, items_each=1)), "--json"]
        subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True)
        rounds = tmp_path / name / "round-1"
        places = (rounds / "synthesis", tmp_path / name / "before" / "rollouts")
        seconds.append([json.loads((place / "summary.json").read_text())["compile_seconds"] for place in places])
    assert min(seconds[0]) > 0
    assert seconds[1] == [0, 0]
