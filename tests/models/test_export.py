"""An exported folder is complete or absent."""

import random
import resource
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tessy_jax.errors import CheckpointError
from tessy_jax.models import hf
from tessy_jax.models.export import export
from tessy_jax.store import files
from tests.models.tiny import reference
from tests.text.tiny_tokenizer import save_tokenizer

EXPORTER = """
import sys, jax
from tessy_jax.models import hf
from tessy_jax.models.export import export
model = hf.load(sys.argv[1])
print("ready", flush=True)
for i in range(1000):
    export(model, f"{sys.argv[2]}/out{i}", shard_bytes=20_000)
"""


def values(folder):
    return {path: np.asarray(p[...]) for path, p in hf.parameter_paths(nnx.state(hf.load(folder)))}


def test_an_export_killed_at_any_instant_leaves_complete_folders_only(tmp_path):
    source = reference("qwen3-untied").folder
    expected = values(source)
    rng = random.Random(5)
    for attempt in range(4):
        out = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", EXPORTER, str(source), str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout.readline().strip() == b"ready"
        time.sleep(rng.uniform(0.02, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        folders = sorted(out.glob("out*")) if out.exists() else []
        for folder in folders[-2:]:
            exported = values(folder)
            for path, value in expected.items():
                np.testing.assert_array_equal(exported[path], value)
        export(hf.load(source), out / "out0001")  # a killed export is no obstacle to the next


def test_an_export_removes_the_remains_of_a_killed_one(tmp_path):
    partial = tmp_path / ".out.123.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    export(hf.load(reference("qwen3-untied").folder), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_an_export_does_not_touch_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        export(hf.load(reference("qwen3-untied").folder), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        export(hf.load(reference("qwen3-untied").folder), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_grow_to_its_size_leaves_nothing(tmp_path):
    model = hf.load(reference("qwen3-untied").folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"out: cannot be written"):
            export(model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_an_export_copies_the_tokenizer_and_keeps_the_dtype_of_the_parameters(tmp_path):
    import json
    import shutil

    shutil.copytree(reference("qwen3-untied").folder, tmp_path / "in")
    save_tokenizer(tmp_path / "in")
    export(hf.load(tmp_path / "in", dtype=jnp.bfloat16), tmp_path / "out", copy_from=tmp_path / "in")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    dtypes = {p.dtype for _, p in hf.parameter_paths(nnx.state(hf.load(tmp_path / "out", dtype=jnp.bfloat16)))}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
