"""Several processes train as one does, and stop together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.train.test_job import config, lines, student, train, weights  # noqa: F401  (fixtures)

MESH = "mesh={data: 2, fsdp: 2, tensor: 2}"


def start(file, *options, devices=4, processes=2):
    """So many processes of one training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tessy_jax.cli", "train", str(file), "--json", "--distributed", "--set", MESH]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla"),
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [*command, *options],
            env={**environment, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def summary(said):
    """The last line; the transport between CPUs prints, too."""
    return json.loads(said[0].splitlines()[-1])


def ended(running):
    said = [process.communicate(timeout=240) for process in running]
    return [process.returncode for process in running], said


@pytest.mark.slow
def test_two_processes_give_the_losses_and_the_model_of_one(config, tmp_path, capsys):  # noqa: F811
    evaluation = {"evaluation": {"path": str(tmp_path / "rows.jsonl")}}
    assert train(capsys, config("one", **evaluation), "--set", MESH)[0] == 0
    codes, said = ended(start(config("two", **evaluation)))
    assert codes == [0, 0], said
    assert summary(said[0])["processes"] == 2
    assert "{" not in said[1][0], "the second process has nothing to tell"
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        assert a.get("evaluation_loss", 0) == pytest.approx(b.get("evaluation_loss", 0), rel=1e-5)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_stop_together_on_sigterm_and_go_on(config, tmp_path, capsys):  # noqa: F811
    file = config("two", training={"steps": 400, "save_every": 1000, "tokens": 128, "rows": 8})
    running = start(file)
    folder = tmp_path / "two" / "config.yaml"
    while not folder.exists() and all(process.poll() is None for process in running):
        time.sleep(0.05)
    time.sleep(8)
    running[1].send_signal(signal.SIGTERM)
    codes, said = ended(running)
    assert codes == [0, 0], said
    stopped = summary(said[0])
    assert not stopped["finished"]
    assert [int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir()] == [stopped["steps"]]
    code, after = train(capsys, file, "--set", "training.steps=400")
    assert code == 0, after
    assert (after["steps"], after["steps_of_this_start"]) == (400, 400 - stopped["steps"])


def test_what_the_first_process_refuses_all_do(config, tmp_path, capsys):  # noqa: F811
    assert train(capsys, config("two"))[0] == 0
    codes, said = ended(start(config("two", seed=5)))
    assert codes == [2, 2]
    assert all("other settings (seed)" in err for _, err in said)


def test_a_mesh_that_leaves_out_devices_of_several_processes_is_refused_by_all(config):  # noqa: F811
    codes, said = ended(start(config("two"), "--set", "mesh={}"))
    assert codes == [2, 2], said
    assert all("make the product of its axes 8" in err for _, err in said)
