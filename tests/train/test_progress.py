"""What is told about a training is what happened, wherever it is told."""

import os
import signal
import struct
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorboardX.proto.event_pb2 import Event

from tessy_jax.models import hf
from tessy_jax.train import flops, progress
from tests.models.tiny import reference
from tests.train.test_job import config, lines, student, train  # noqa: F401  (fixtures)


def scalars(folder):
    """(name, step) → value of all event files, the last word on each; steps that a later file purges are gone."""
    found = {}
    for file in sorted(folder.glob("events*"), key=lambda f: f.stat().st_mtime_ns):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            if event.session_log.status == 1:  # a start, which purges from its step on
                found = {key: value for key, value in found.items() if key[1] < event.step}
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def test_tensorboard_is_told_what_metrics_jsonl_says_also_when_a_training_goes_on(config, tmp_path, capsys):  # noqa: F811
    from tessy_jax.config import Train, read
    from tessy_jax.train.job import train as run

    def stop(line, steps):
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    file = config(training={"tensorboard": True})
    assert run(read(Train, file), on_step=stop).summary["steps"] == 3
    assert train(capsys, file)[0] == 0
    found = scalars(tmp_path / "run" / "tensorboard")
    for line in lines(tmp_path / "run"):
        for name in ("loss", "loss_cap", "loss_sty", "lr", "grad_norm"):
            assert found[name, line["step"]] == pytest.approx(line[name], rel=1e-6)
    assert ("mfu", 1) not in found, "no MFU is known on a CPU"


def test_weights_and_biases_gets_every_step_and_a_run_goes_by_its_folder(config, tmp_path, capsys, monkeypatch):  # noqa: F811
    calls, logged = [], []

    def init(**how):
        calls.append(how)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values["loss"])), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    file = config(training={"wandb": "a-project"})
    assert train(capsys, file)[0] == 0
    assert train(capsys, file)[0] == 0
    assert [call["id"] for call in calls] == [calls[0]["id"]] * 2
    assert (calls[0]["project"], calls[0]["resume"]) == ("a-project", "allow")
    assert logged == [(line["step"], line["loss"]) for line in lines(tmp_path / "run")]


def test_a_sink_whose_package_is_missing_is_refused_with_the_remedy(config, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, said = train(capsys, config(training={"wandb": "x"}))
    assert code == 2
    assert "pip install 'tessy_jax[wandb]'" in said


def test_the_bar_tells_loss_speed_and_the_end_where_there_is_no_terminal(capsys):
    with progress.Bar(shown=True) as bar:
        for step in range(1, 4):
            bar({"step": step, "loss": 1.5, "tokens_per_second": 1234.5, "mfu": 0.5}, 3)
    said = capsys.readouterr().err
    assert "step 1/3  loss 1.5000, 1234 tok/s, MFU 50.0%" in said
    assert "step 3/3" in said


@pytest.mark.parametrize("name", ["llama-untied", "qwen3-tied"])
def test_the_operations_of_a_step_are_those_that_xla_counts(name):
    """Of a forward pass; XLA counts attention to all keys, we those that are seen."""
    model = hf.load(reference(name).folder)
    graph, params = nnx.split(model)
    n = 512

    def forward(params, tokens):
        decoder = nnx.merge(graph, params)
        return decoder.logits(decoder(tokens)[0])

    counted = jax.jit(forward).lower(params, jnp.zeros((1, n), jnp.int32)).compile().cost_analysis()["flops"]
    config = model.config  # noqa: F811
    active = flops.active_parameters(config)
    seen = flops.step_flops(config, active, np.array([n])) / 3
    products = 2 * active * n
    assert seen > products
    assert 0.9 < (products + 2 * (seen - products)) / counted < 1.1


def test_documents_apart_are_worth_less_than_one_of_their_length():
    config = hf.load(reference("llama-untied").folder).config  # noqa: F811
    active = flops.active_parameters(config)
    one, four = (flops.step_flops(config, active, np.array(lengths)) for lengths in ([400], [100] * 4))
    assert four < one
    assert flops.step_flops(config, active, np.array([400]), frozen=True) < one
