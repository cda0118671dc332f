"""Tests of the persistent compilation cache: later starts of a job load their programs instead of compiling them."""

import json
import os
import subprocess
import sys

import jax
import pytest

from tessy_jax import compile_cache
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


def test_a_folder_that_is_already_configured_is_named_and_keeps_every_program(tmp_path):
    theirs = tmp_path / "theirs"
    assert started(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(theirs)) == [f"compilation cache: {theirs}", "0"]
    assert any(file.name.endswith("-cache") for file in theirs.iterdir())
    assert not (tmp_path / "ours").exists()


@pytest.fixture
def settings():
    """Restores JAX's settings of the cache."""
    names = [*compile_cache.KEEP_ALL, "jax_compilation_cache_dir", "jax_enable_compilation_cache"]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_false_also_turns_off_a_cache_that_is_already_configured(settings):
    lines = []
    jax.config.update("jax_compilation_cache_dir", "somewhere")
    compile_cache.keep_programs(False, lines.append)
    assert not jax.config.jax_enable_compilation_cache
    assert lines == []


def test_settings_of_the_user_are_kept(settings):
    jax.config.update("jax_compilation_cache_dir", "somewhere")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)
    compile_cache.keep_programs(True, lambda text: None)
    assert jax.config.jax_compilation_cache_dir == "somewhere"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 5.0


def test_jax_receives_an_address_unchanged(settings):
    lines = []
    compile_cache.keep_programs("gs://bucket/programs", lines.append)
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/programs"
    assert lines == ["compilation cache: gs://bucket/programs"]


def test_a_folder_that_cannot_exist_turns_the_cache_off_and_the_job_continues(settings, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no home directory
    for where in ("~nobody/programs", "a\0b", True):
        lines = []
        compile_cache.keep_programs(where, lines.append)
        assert [line.partition(", because ")[0] for line in lines] == ["compilation cache: off"]
    assert jax.config.jax_compilation_cache_dir is None


def test_the_least_recently_used_programs_of_the_users_folder_are_deleted(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compile_cache, "MOST_BYTES", 25)
    folder = compile_cache.user_folder()
    folder.mkdir(parents=True)
    for age, name in enumerate(("newest", "newer", "old")):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (2e9 - age, 1e9))
    compile_cache.keep_programs(True, lambda text: None)
    assert {file.name for file in folder.iterdir()} == {"newest", "newer"}


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
