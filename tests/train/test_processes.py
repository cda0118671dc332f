"""Several processes train as one does, and stop at the same step."""

import json
import signal
import time
from functools import partial

import numpy as np
import pytest

from tests import several
from tests.several import tessy
from tests.train.test_job import config, lines, student, train, weights  # noqa: F401  (fixtures)

MESH = "mesh={data: 2, fsdp: 2, tensor: 2}"


def start(file, *options, **keywords):
    """Starts the processes of one training."""
    return tessy("train", file, "--set", MESH, *options, **keywords)


def summary(outputs):
    """The last line; the transport between CPUs prints others."""
    return json.loads(outputs[0].splitlines()[-1])


ended = partial(several.ended, timeout=240)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_the_model_of_one(config, tmp_path, capsys):  # noqa: F811
    evaluation = {"evaluation": {"path": str(tmp_path / "rows.jsonl")}}
    assert train(capsys, config("one", **evaluation), "--set", MESH)[0] == 0
    codes, outputs = ended(start(config("two", **evaluation)))
    assert codes == [0, 0], outputs
    assert summary(outputs[0])["processes"] == 2
    assert "{" not in outputs[1][0], "the second process prints no summary"
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        assert a.get("evaluation_loss", 0) == pytest.approx(b.get("evaluation_loss", 0), rel=1e-5)
    expected, actual = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in expected:
        np.testing.assert_allclose(expected[name], actual[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_on_sigterm_and_continue(config, tmp_path, capsys):  # noqa: F811
    file = config("two", training={"steps": 400, "save_every": 1000, "max_seq_len": 128, "batch_size": 8})
    running = start(file)
    folder = tmp_path / "two" / "config.yaml"
    while not folder.exists() and all(process.poll() is None for process in running):
        time.sleep(0.05)
    time.sleep(8)
    running[1].send_signal(signal.SIGTERM)
    codes, outputs = ended(running)
    assert codes == [0, 0], outputs
    stopped = summary(outputs[0])
    assert not stopped["finished"]
    assert [int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir()] == [stopped["steps"]]
    code, after = train(capsys, file, "--set", "training.steps=400")
    assert code == 0, after
    assert (after["steps"], after["steps_of_this_start"]) == (400, 400 - stopped["steps"])


def test_a_refusal_of_the_first_process_ends_all(config, tmp_path, capsys):  # noqa: F811
    assert train(capsys, config("two"))[0] == 0
    codes, outputs = ended(start(config("two", seed=5)))
    assert codes == [2, 2]
    assert all("other settings (seed)" in err for _, err in outputs)


def test_a_mesh_that_leaves_out_devices_of_several_processes_is_refused_by_all(config):  # noqa: F811
    codes, outputs = ended(start(config("two"), "--set", "mesh={}"))
    assert codes == [2, 2], outputs
    assert all("make the product of its axes 8" in err for _, err in outputs)
