"""TensorBoard, Weights & Biases and the progress bar show the metrics of a training; counted operations match XLA's."""

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
    """(name, step) → the last value in all event files, without steps that a later file purges."""
    values = {}
    for file in sorted(folder.glob("events*"), key=lambda f: f.stat().st_mtime_ns):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            if event.session_log.status == 1:  # a start, which purges from its step on
                values = {key: value for key, value in values.items() if key[1] < event.step}
            values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return values


def test_tensorboard_has_the_values_of_metrics_jsonl_after_an_interruption(config, tmp_path, capsys):  # noqa: F811
    from tessy_jax.config import Train, read
    from tessy_jax.train.job import train as run

    def stop(line, steps):
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    file = config(training={"tensorboard": True})
    assert run(read(Train, file), on_step=stop).summary["steps"] == 3
    assert train(capsys, file)[0] == 0
    values = scalars(tmp_path / "run" / "tensorboard")
    for line in lines(tmp_path / "run"):
        for name in ("loss", "loss_cap", "loss_sty", "lr", "grad_norm"):
            assert values[name, line["step"]] == pytest.approx(line[name], rel=1e-6)
    assert ("mfu", 1) not in values, "the MFU of a CPU is unknown"


def test_weights_and_biases_gets_every_step_and_a_folder_is_one_run(config, tmp_path, capsys, monkeypatch):  # noqa: F811
    calls, logged = [], []

    def init(**options):
        calls.append(options)
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
    code, output = train(capsys, config(training={"wandb": "x"}))
    assert code == 2
    assert "pip install 'tessy_jax[wandb]'" in output


def test_the_bar_shows_loss_speed_and_the_end_without_a_terminal(capsys):
    with progress.Bar(shown=True) as bar:
        for step in range(1, 4):
            bar({"step": step, "loss": 1.5, "tokens_per_second": 1234.5, "mfu": 0.5}, 3)
    output = capsys.readouterr().err
    assert "step 1/3  loss 1.5000, 1234 tok/s, MFU 50.0%" in output
    assert "step 3/3" in output


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
    forward_flops = flops.step_flops(config, active, np.array([n])) / 3
    products = 2 * active * n
    assert forward_flops > products
    assert 0.9 < (products + 2 * (forward_flops - products)) / counted < 1.1


def test_several_documents_take_fewer_operations_than_one_of_their_total_length():
    config = hf.load(reference("llama-untied").folder).config  # noqa: F811
    active = flops.active_parameters(config)
    single, several = (flops.step_flops(config, active, np.array(lengths)) for lengths in ([400], [100] * 4))
    assert several < single
    assert flops.step_flops(config, active, np.array([400]), frozen=True) < single
